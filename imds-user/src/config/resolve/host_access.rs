//! Which processes of the host may reach the host's own metadata service.

use super::super::file::HostEntry;
use super::super::{CgroupPath, HostAccess, Problem};
use super::{parsed, problem, word};

/// The most cgroups that can be named.
const CGROUPS_MAX: usize = 1024;

/// The two words of `host-access`.
#[derive(Clone, Copy)]
enum Access {
    Any,
    AllowList,
}

const WORDS: [(&str, Access); 2] = [("any", Access::Any), ("allow-list", Access::AllowList)];

/// Who may. Cgroups without `allow-list` are refused, since whoever names them does not mean that all may.
pub(super) fn host_access(entry: &HostEntry) -> Result<HostAccess, Problem> {
    let access = entry.host_access.as_ref();
    let access = access.map(|text| word(text, &WORDS)).transpose()?;
    match (access, &entry.host_access_cgroups) {
        (Some(Access::AllowList), cgroups) => {
            let cgroups = cgroups.as_ref();
            if let Some(one_too_many) = cgroups.and_then(|all| all.get_ref().get(CGROUPS_MAX)) {
                return Err(problem(
                    one_too_many,
                    format!("more than {CGROUPS_MAX} cgroups: name one that they are below"),
                ));
            }
            let cgroups = cgroups.iter().flat_map(|all| all.get_ref());
            let mut named = cgroups
                .map(parsed)
                .collect::<Result<Vec<CgroupPath>, _>>()?;
            named.sort();
            named.dedup();
            Ok(HostAccess::AllowList(named))
        }
        (Some(Access::Any) | None, Some(cgroups)) => Err(problem(
            cgroups,
            "all processes of the host may reach its metadata service: write `host-access = \"allow-list\"` if only these may, or remove them",
        )),
        (Some(Access::Any) | None, None) => Ok(HostAccess::Any),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{ConfigError, Files, Installation, load};
    use crate::instance::UnixSeconds;

    struct One(String);

    impl Files for One {
        fn read(&self, _path: &Path, _bytes_max: usize) -> std::io::Result<Vec<u8>> {
            Ok(self.0.as_bytes().to_vec())
        }
    }

    fn check(keys: &str, expected: Result<Option<&[&str]>, &str>) {
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(0),
        };
        let toml = One(format!("[host]\n{keys}"));
        let settings = load(Path::new("imds.toml"), &installation, &toml);
        match (settings.map(|settings| settings.host_access), expected) {
            (Ok(HostAccess::Any), Ok(None)) => {}
            (Ok(HostAccess::AllowList(named)), Ok(Some(expected))) => {
                let named: Vec<&str> = named.iter().map(CgroupPath::as_str).collect();
                assert_eq!(named, expected, "{keys}");
            }
            (Err(ConfigError::Wrong { message, .. }), Err(words)) => {
                assert!(message.contains(words), "{keys}: {message}");
            }
            (access, expected) => panic!("{keys}: {access:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn all_may_unless_there_is_a_list() {
        check("", Ok(None));
        check("host-access = \"any\"", Ok(None));
        check("host-access = \"allow-list\"", Ok(Some(&[])));
        check(
            "host-access = \"allow-list\"\nhost-access-cgroups = []",
            Ok(Some(&[])),
        );
        check(
            "host-access = \"allow-list\"\nhost-access-cgroups = [\"/system.slice/b.service\", \"a.slice/\", \"a.slice\"]",
            Ok(Some(&["a.slice", "system.slice/b.service"])),
        );
    }

    #[test]
    fn what_could_not_be_meant_is_refused() {
        check(
            "host-access = \"none\"",
            Err("write one of any, allow-list"),
        );
        check(
            "host-access = \"allowlist\"",
            Err("did you mean `allow-list`"),
        );
        for access in ["", "host-access = \"any\"\n"] {
            check(
                &format!("{access}host-access-cgroups = [\"a.slice\"]"),
                Err("host-access = \"allow-list\""),
            );
        }
        let deep = vec!["a"; 33].join("/");
        for (path, words) in [
            ("/", "every process is below the root"),
            ("", "not the place of a cgroup"),
            ("a//b", "not the place of a cgroup"),
            ("a/../b", "not the place of a cgroup"),
            ("./a", "not the place of a cgroup"),
            (
                "/sys/fs/cgroup/system.slice",
                "leave out where cgroups are mounted",
            ),
            (&deep, "deeper than 32 levels"),
        ] {
            check(
                &format!("host-access = \"allow-list\"\nhost-access-cgroups = [\"{path}\"]"),
                Err(words),
            );
        }
    }

    #[test]
    fn the_deepest_and_the_last_are_taken() {
        let deep = vec!["a"; 32].join("/");
        check(
            &format!("host-access = \"allow-list\"\nhost-access-cgroups = [\"{deep}\"]"),
            Ok(Some(&[&deep])),
        );
        let names = |count: usize| -> String {
            let names = (0..count).map(|number| format!("\"a{number:04}\""));
            names.collect::<Vec<_>>().join(",")
        };
        check(
            &format!(
                "host-access = \"allow-list\"\nhost-access-cgroups = [{}]",
                names(CGROUPS_MAX + 1)
            ),
            Err("more than 1024 cgroups"),
        );
    }
}
