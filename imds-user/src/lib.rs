//! Library.
pub mod netns;
