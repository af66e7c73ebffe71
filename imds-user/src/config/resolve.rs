//! From what was typed to what is true.

use std::path::Path;

use super::file::FileConfig;
use super::{Files, Installation, Problem, Settings};

/// Checks what was typed and completes it. Paths are relative to `directory`.
///
/// # Errors
/// The first thing that is wrong.
pub fn resolve(
    _file: &FileConfig,
    _installation: &Installation,
    _directory: &Path,
    _files: &dyn Files,
) -> Result<Settings, Problem> {
    Err(Problem {
        span: 0..0,
        message: "not read yet".into(),
    })
}
