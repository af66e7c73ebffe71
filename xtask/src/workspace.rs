//! Where things lie: the checkout and what is built of it.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// The checkout's top folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the checkout")
        .to_owned()
}

/// Where cargo put this program, and puts the others of the same profile: `target/debug`.
pub(crate) fn profile_dir() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("find the folder of the built programs")?;
    Ok(own
        .parent()
        .context("a program lies in a folder")?
        .to_owned())
}

/// The binary that is tested and shown.
pub(crate) fn imds() -> anyhow::Result<PathBuf> {
    Ok(profile_dir()?.join("imds"))
}

/// A folder of the task's own below `target`, made if it is not there.
pub(crate) fn target_dir(name: &str) -> anyhow::Result<PathBuf> {
    let dir = root().join("target").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("make the folder {}", dir.display()))?;
    Ok(dir)
}

/// The first file of this name in `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    // Debian leaves the folders of administration out of a plain user's PATH.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}
