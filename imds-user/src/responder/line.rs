//! The daemon's end of the line to one responder.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    time::Duration,
};

use tokio::{
    net::unix::OwnedWriteHalf,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    desired::{Desired, Update},
    door::Door,
    greeting::Order,
    protocol::{self, Attached, CHUNK_INSTANCES, Counted, Counters, FromResponder, ToResponder},
};
use crate::{instance::InstanceId, metrics::Meter};

/// How long a message may take to be taken by the responder's end.
const SAY_WITHIN: Duration = Duration::from_secs(5);

/// What the daemon knows of what was counted, and of whom it may be said that anything was: a responder that was broken into
/// invents counts at most, and no instances.
pub(super) struct Books<'a> {
    pub(super) desired: &'a Desired,
    /// Who was removed, and what was counted for them at last is not said yet.
    pub(super) leaving: &'a mut HashMap<u32, InstanceId>,
    pub(super) counted: &'a mut BTreeMap<u32, Counters>,
    pub(super) meter: &'a Meter,
}

impl Books<'_> {
    /// Enters what a responder says. Of instances that are gone nothing is kept by their slot.
    fn enter(&mut self, mut said: Vec<Counted>) {
        said.retain(|one| self.knows(one));
        self.meter.observe(&said);
        for one in &said {
            if self.desired.id_of(one.slot) == Some(one.id) {
                self.counted.insert(one.slot, one.counters);
            }
        }
    }

    /// Enters what a responder says at last.
    fn close(&mut self, mut at_last: Vec<Counted>) {
        at_last.retain(|one| self.knows(one));
        self.meter.observe(&at_last);
        self.meter.close(&at_last);
        for one in &at_last {
            self.leaving.remove(&one.slot);
        }
    }

    fn knows(&self, one: &Counted) -> bool {
        let id = Some(one.id);
        self.desired.id_of(one.slot) == id
            || self.leaving.get(&one.slot).copied() == id
            || self.meter.id_of(one.slot) == id
    }
}

/// What the daemon and one process say to each other.
pub(super) struct Line {
    writer: OwnedWriteHalf,
    pub(super) messages: mpsc::Receiver<FromResponder>,
    revision: u64,
    /// Who waits for which revision.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    pub(super) questions: Vec<oneshot::Sender<BTreeMap<u32, Counters>>>,
    /// Slots that it wants signatures of.
    pub(super) unsigned: Vec<u32>,
    ping: u64,
    /// How many pings in a row were not answered.
    pub(super) silences: u32,
}

impl Line {
    /// Goes in, as a daemon of the same build, and hears what the responder was told already.
    pub(super) async fn attach(door: &Door) -> io::Result<(Self, Attached)> {
        let (mut line, ..) = door.knock().await?;
        Order::Attach.send(&mut line).await?;
        let (mut reader, writer) = line.into_split();
        let (forward, mut messages) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(message)) = protocol::receive(&mut reader).await {
                if forward.send(message).await.is_err() {
                    return;
                }
            }
        });
        let Some(FromResponder::Attached(told)) = messages.recv().await else {
            return Err(io::Error::other("it does not say what it serves"));
        };
        let line = Self {
            writer,
            messages,
            revision: 0,
            waiting: Vec::new(),
            questions: Vec::new(),
            unsigned: Vec::new(),
            ping: 0,
            silences: 0,
        };
        Ok((line, told))
    }

    pub(super) async fn say(&mut self, message: &ToResponder) -> io::Result<()> {
        timeout(SAY_WITHIN, protocol::send(&mut self.writer, message)).await?
    }

    pub(super) async fn change(&mut self, update: &Update) -> io::Result<()> {
        if let Some(host) = &update.host {
            self.say(&ToResponder::Host(host.clone())).await?;
        }
        if !update.remove.is_empty() {
            self.say(&ToResponder::Remove(update.remove.clone()))
                .await?;
        }
        for chunk in update.upsert.chunks(CHUNK_INSTANCES) {
            self.say(&ToResponder::Upsert(chunk.to_vec())).await?;
        }
        Ok(())
    }

    /// Has somebody wait for the change that is said next, up to [`Line::apply`].
    pub(super) fn promise(&mut self, done: oneshot::Sender<()>) {
        self.revision += 1;
        self.waiting.push((self.revision, done));
    }

    pub(super) async fn apply(&mut self) -> io::Result<()> {
        self.say(&ToResponder::Apply(self.revision)).await
    }

    /// Those who wait for what was said and is not in force. They take it for in force when they are let go.
    pub(super) fn waiting(&mut self) -> Vec<(u64, oneshot::Sender<()>)> {
        std::mem::take(&mut self.waiting)
    }

    pub(super) async fn ping(&mut self) -> io::Result<()> {
        self.ping += 1;
        self.silences += 1;
        self.say(&ToResponder::Ping(self.ping)).await
    }

    pub(super) fn answer(&mut self, counted: &BTreeMap<u32, Counters>) {
        for question in self.questions.drain(..) {
            drop(question.send(counted.clone()));
        }
    }

    pub(super) fn note(&mut self, message: FromResponder, mut books: Books<'_>) {
        match message {
            // Only ever the first.
            FromResponder::Attached(_) => {}
            FromResponder::Applied(revision) => {
                for (_, done) in self
                    .waiting
                    .extract_if(.., |(number, _)| *number <= revision)
                {
                    // Whoever asked may have gone.
                    done.send(()).ok();
                }
            }
            FromResponder::Counters(now) => {
                books.enter(now);
                self.answer(books.counted);
            }
            FromResponder::Changed(now) => books.enter(now),
            FromResponder::Gone(at_last) => books.close(at_last),
            FromResponder::Sign(slot) => self.unsigned.push(slot),
            FromResponder::Alive(_) => self.silences = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{instance::UnixMillis, metrics::ledger::Ledger};

    #[test]
    fn a_responder_invents_no_instances() {
        let id = |number| InstanceId::from_digest(&[number; 9]);
        let said = |slot, number| Counted {
            slot,
            id: id(number),
            counters: Counters::from_words(&[1, 0, 1, 0, 0]),
        };
        let meter = Meter::new(Ledger::default(), || UnixMillis(0));
        let mut leaving = HashMap::from([(2, id(2))]);
        let mut counted = BTreeMap::new();
        let mut books = Books {
            desired: &Desired::default(),
            leaving: &mut leaving,
            counted: &mut counted,
            meter: &meter,
        };
        books.enter(vec![said(1, 1), said(2, 3), said(2, 2)]);
        books.close(vec![said(2, 2), said(3, 4)]);
        // What was said at last is said once.
        books.close(vec![said(2, 2)]);
        let unkept: Vec<_> = meter.unkept().into_iter().collect();
        assert_eq!(unkept, [id(2)]);
        assert_eq!((leaving.len(), counted.len()), (0, 0));
    }
}
