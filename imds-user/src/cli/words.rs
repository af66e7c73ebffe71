//! Arguments that are one of a few words of EC2's: a slip is answered with the word that was meant, and shells complete
//! them.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command, Error};
use imds_user::config::nearest::nearest;

/// The values that there are, and the word for each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<T: 'static> {
    pub(super) all: &'static [T],
    pub(super) as_str: fn(T) -> &'static str,
}

impl<T: Copy> Words<T> {
    fn find(self, written: &str) -> Result<T, String> {
        let known: Vec<&str> = self.all.iter().map(|value| (self.as_str)(*value)).collect();
        if let Some(at) = known.iter().position(|word| *word == written) {
            return Ok(self.all[at]);
        }
        Err(match nearest(written, &known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("write one of {}", known.join(", ")),
        })
    }
}

impl<T: Copy + Send + Sync + 'static> TypedValueParser for Words<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let words = *self;
        let parser = move |written: &str| words.find(written);
        TypedValueParser::parse_ref(&parser, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.all.iter().map(|value| (self.as_str)(*value));
        Some(Box::new(words.map(PossibleValue::new)))
    }
}
