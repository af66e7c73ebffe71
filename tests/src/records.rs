//! Writers of a store.

use imds_user::instance::{InstanceId, UnixMillis};
use imds_user::store::backend::{Backend, State};
use imds_user::store::{CommitError, InstanceRecord, Note, Record, Sqlite, Transaction, View, Who};

/// What is in a store now.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn view_of(store: &mut Sqlite) -> View {
    let State { revision, items } = store.load().expect("it can be read");
    let mut view = View::default();
    view.take(revision, items).expect("it is understood");
    view
}

/// What makes records what is given, as a user does it.
///
/// # Panics
/// When one cannot be written down.
#[must_use]
pub fn put(view: &View, records: impl IntoIterator<Item = InstanceRecord>) -> Transaction {
    let mut draft = view.draft(Note {
        at: UnixMillis(1),
        who: Who::User(0),
        what: "test".into(),
    });
    for record in records {
        let put = draft.put(&Record::Instance(Box::new(record)));
        put.expect("it can be written down");
    }
    draft.finish()
}

/// Counts one up in the record of an instance, as often as it takes until nobody was faster; what it counted to, and how often it
/// was too late.
///
/// # Panics
/// When it is not there, or cannot be kept.
pub fn count_up(store: &mut Sqlite, id: InstanceId) -> (u32, u32) {
    let mut n_late = 0;
    loop {
        let view = view_of(store);
        let mut record = view.instance(id).expect("it is there").clone();
        record.spec.launch_index += 1;
        let count = record.spec.launch_index;
        match store.commit(&put(&view, [record])) {
            Ok(_) => return (count, n_late),
            Err(CommitError::Conflict(_)) => n_late += 1,
            Err(error) => panic!("{error}"),
        }
    }
}
