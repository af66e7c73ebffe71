//! EC2-style instance metadata for every guest of a Linux host: the library behind the command `imds`.

pub mod dataplane;
pub mod netns;
