#![no_std]
//! Placeholder, replaced in the next commit.
