//! The daemon's side of signing: each document is signed once, whoever asks and however often.
//!
//! The responder keeps signatures only for as long as nothing about a guest changes, and may have been broken into. So what
//! was signed is kept here too, for as long as the document is the same, and a responder that asks without end costs no
//! more than its messages.

use std::collections::{HashMap, HashSet};

use crate::identity::{
    Signatures,
    signer::{Signed, Signer},
};

/// What was signed, by slot, and what is being signed.
#[derive(Debug)]
pub(super) struct Signing {
    signer: Signer,
    known: HashMap<u32, Signatures>,
    under_way: HashSet<u32>,
}

impl Signing {
    pub(super) fn new(signer: Signer) -> Self {
        Self {
            signer,
            known: HashMap::new(),
            under_way: HashSet::new(),
        }
    }

    /// The signatures of a slot's document. When there are none yet they are made, once, and [`Self::next`] has them.
    pub(super) fn ask(&mut self, slot: u32, document: String) -> Option<&Signatures> {
        let known = self.known.get(&slot);
        let known = known.filter(|known| known.are_of(document.as_bytes()));
        if known.is_none() && self.under_way.insert(slot) {
            self.signer.sign(slot, document);
        }
        known
    }

    /// What was signed next.
    pub(super) async fn next(&mut self) -> Signed {
        let signed = self.signer.next().await;
        self.under_way.remove(&signed.slot);
        signed
    }

    /// Keeps signatures of a slot that is still somebody's.
    pub(super) fn keep(&mut self, slot: u32, signatures: &Signatures) {
        self.known.insert(slot, signatures.clone());
    }

    /// Forgets slots whose instance is gone.
    pub(super) fn forget(&mut self, slots: &[u32]) {
        for slot in slots {
            self.known.remove(slot);
        }
    }
}
