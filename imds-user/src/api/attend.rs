//! Instances on the way to something: brought there as soon as nothing else is waited for. One that nobody runs a machine for
//! does at once what it is told.

use super::call::Change;
use super::ec2::settle::{Others, settle};
use crate::instance::UnixMillis;
use crate::store::{Note, Store, StoreError, Transaction, View, Who};

/// Ends transitions whenever something changed, notes which options are applied, and forgets instances that are terminated for
/// long. Returns when the store is closed.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn attend(
    store: Store,
    others: impl Others,
    now: impl Fn() -> UnixMillis,
) -> Result<(), StoreError> {
    let mut watch = store.watch(store.read(View::revision));
    loop {
        let decide = |view: &View| {
            let at = now();
            let changes = settle(view, &others, at.seconds());
            if changes.is_empty() {
                return Ok((Transaction::default(), ()));
            }
            let mut draft = view.draft(Note {
                at,
                who: Who::Daemon,
                what: "settle".into(),
            });
            for change in changes {
                match change {
                    Change::Put(record) => draft.put(&record)?,
                    Change::Remove(key) => draft.remove(&key),
                }
            }
            Ok::<_, StoreError>((draft.finish(), ()))
        };
        store.update(decide).await?;
        match tokio::time::timeout(LOOK_EVERY, watch.next()).await {
            Ok(Err(StoreError::Closed)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}

/// How often it is looked for instances to be forgotten.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(60);
