//! Kernel settings of one network namespace, `/proc/sys/net/…`.
//!
//! The kernel shows a thread the values of the namespace that the thread is in, so each access is made by a
//! thread inside (`net_ctl_root` in the kernel's net/sysctl_net.c).

use std::fs;
use std::io;

use super::{NetNs, NetNsError};

/// Writes a setting. Keys are paths below `/proc/sys` (`net/ipv4/conf/all/rp_filter`), since the dotted form
/// cannot tell the dots of an interface's name from its own.
///
/// # Errors
/// When the key is not there or the value is refused.
pub fn set(namespace: &NetNs, key: &str, value: &str) -> Result<(), SysctlError> {
    namespace.run(|| set_here(key, value))?
}

/// Reads a setting, without the newline at its end.
///
/// # Errors
/// When the key is not there.
pub fn get(namespace: &NetNs, key: &str) -> Result<String, SysctlError> {
    namespace.run(|| {
        let text = fs::read_to_string(path_of(key));
        text.map(|text| text.trim_end().to_owned())
            .map_err(|cause| SysctlError::Read {
                key: key.to_owned(),
                cause,
            })
    })?
}

/// As [`set`], in the namespace of the calling thread.
///
/// # Errors
/// As [`set`].
pub fn set_here(key: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path_of(key), value).map_err(|cause| SysctlError::Write {
        key: key.to_owned(),
        value: value.to_owned(),
        cause,
    })
}

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The namespace could not be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// Not written.
    #[error("set /proc/sys/{key} to {value}")]
    Write {
        /// Its path below /proc/sys.
        key: String,
        /// What was to be written.
        value: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// Not read.
    #[error("read /proc/sys/{key}")]
    Read {
        /// Its path below /proc/sys.
        key: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

fn path_of(key: &str) -> String {
    format!("/proc/sys/{key}")
}

#[cfg(test)]
mod tests {
    use super::super::for_test::Scratch;
    use super::*;

    #[test]
    fn a_setting_changes_in_its_namespace_alone() {
        const KEY: &str = "net/ipv4/ip_default_ttl";
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let outside = fs::read_to_string(path_of(KEY)).unwrap();
        set(&scratch.0, KEY, "33").unwrap();
        assert_eq!(get(&scratch.0, KEY).unwrap(), "33");
        assert_eq!(fs::read_to_string(path_of(KEY)).unwrap(), outside);
    }

    #[test]
    fn errors_name_the_key() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let error = set(&scratch.0, "net/ipv4/conf/no-such/rp_filter", "0").unwrap_err();
        assert_eq!(
            error.to_string(),
            "set /proc/sys/net/ipv4/conf/no-such/rp_filter to 0"
        );
    }
}
