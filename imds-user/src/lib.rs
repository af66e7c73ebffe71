//! Library.
pub mod control;
pub mod doctor;
pub mod lab;
pub mod netns;
