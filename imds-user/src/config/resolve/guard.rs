//! The guard on the uplinks.

use super::super::file::HostEntry;
use super::super::{Guard, Guest, PortBy, PortName, Problem};
use super::{parsed, problem};

/// Where the guard is. An uplink is no port: what comes in there is no guest's.
pub(super) fn guard(entry: &HostEntry, guests: &[Guest]) -> Result<Guard, Problem> {
    let Some(uplinks) = &entry.uplinks else {
        return Ok(match entry.guard {
            Some(false) => Guard::Off,
            Some(true) | None => Guard::Found,
        });
    };
    if entry.guard == Some(false) {
        return Err(problem(
            uplinks,
            "the guard is off, so no uplink has one: remove `uplinks`, or `guard = false`",
        ));
    }
    if uplinks.get_ref().is_empty() {
        return Err(problem(
            uplinks,
            "no uplink is named: leave it out to have them found, or write `guard = false` if there shall be no guard",
        ));
    }
    let named = uplinks.get_ref().iter().map(|text| {
        let name: PortName = parsed(text)?;
        let port = PortBy::Name(name.clone());
        match guests.iter().find(|guest| guest.port == port) {
            Some(guest) => Err(problem(
                text,
                format!(
                    "{name} is the port of instance {}, and an uplink is no port",
                    guest.name
                ),
            )),
            None => Ok(name),
        }
    });
    Ok(Guard::Named(named.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{ConfigError, Files, Installation, load};
    use crate::instance::UnixSeconds;

    struct One(&'static str);

    impl Files for One {
        fn read(&self, _path: &Path, _bytes_max: usize) -> std::io::Result<Vec<u8>> {
            Ok(self.0.as_bytes().to_vec())
        }
    }

    fn check(toml: &'static str, expected: Result<Guard, &str>) {
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(0),
        };
        let settings = load(Path::new("imds.toml"), &installation, &One(toml));
        let guard = settings.map(|settings| settings.guard);
        match (guard, expected) {
            (Ok(guard), Ok(expected)) => assert_eq!(guard, expected, "{toml}"),
            (Err(ConfigError::Wrong { message, .. }), Err(words)) => {
                assert!(message.contains(words), "{toml}: {message}");
            }
            (guard, expected) => panic!("{toml}: {guard:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_guard_is_on_unless_it_is_off() {
        let named = |names: &[&str]| {
            Ok(Guard::Named(
                names.iter().map(|name| name.parse().unwrap()).collect(),
            ))
        };
        check("", Ok(Guard::Found));
        check("[host]\nguard = true", Ok(Guard::Found));
        check("[host]\nguard = false", Ok(Guard::Off));
        check(
            "[host]\nuplinks = [\"eth0\", \"wg0\"]",
            named(&["eth0", "wg0"]),
        );
        check(
            "[host]\nguard = true\nuplinks = [\"eth0\"]",
            named(&["eth0"]),
        );
        check("[host]\nuplinks = []", Err("guard = false"));
        check(
            "[host]\nguard = false\nuplinks = [\"eth0\"]",
            Err("the guard is off"),
        );
        check("[host]\nuplinks = [\"eth 0\"]", Err("not the name"));
        check(
            "[host]\nuplinks = [\"tap0\"]\n[[instance]]\nname = \"web\"\nport = \"tap0\"",
            Err("tap0 is the port of instance web"),
        );
    }
}
