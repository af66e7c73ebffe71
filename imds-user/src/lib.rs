//! Library.
pub mod control;
pub mod netns;
