//! What a file says besides its instances: host, guard, discovery and templates, as values of JSON, so that it can be kept
//! and written down again. Pure.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Settings;

/// The tables of a file without its instances, complete in what follows from the host, and with whole paths.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rest(pub Map<String, Value>);

/// Shows no values: a template may have credentials.
impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rest")
            .field(&self.0.keys().collect::<Vec<_>>())
            .finish()
    }
}

impl Rest {
    /// Of a file that was found right. Paths in it are relative to `directory`.
    pub(super) fn of(text: &str, settings: &Settings, directory: &Path) -> Self {
        // It was read before.
        let mut tables: Map<String, Value> = toml::from_str(text).unwrap_or_default();
        tables.remove("instance");
        let host = tables.entry("host").or_insert_with(|| Map::new().into());
        if let Value::Object(host) = host {
            complete(host, settings);
        }
        let absolute = |value: &mut Value| {
            if let Value::String(path) = value {
                *path = directory.join(&*path).display().to_string();
            }
        };
        if let Some(path) = tables
            .get_mut("discovery")
            .and_then(|table| table.get_mut("docker-socket"))
        {
            absolute(path);
        }
        if let Some(Value::Array(templates)) = tables.get_mut("template") {
            for path in templates
                .iter_mut()
                .filter_map(|table| table.get_mut("user-data-file"))
            {
                absolute(path);
            }
        }
        Self(tables)
    }
}

/// What is made up where it is not written differs from installation to installation.
fn complete(host: &mut Map<String, Value>, settings: &Settings) {
    let zone = &settings.host.zone;
    for (key, value) in [
        ("region", zone.region()),
        ("availability-zone", zone.name()),
        ("availability-zone-id", zone.id()),
        ("account-id", settings.host.account_id.as_str()),
    ] {
        host.insert(key.to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::{Files, Installation, load_with_rest};
    use super::*;
    use crate::instance::UnixSeconds;

    struct OneFile(&'static str);
    impl Files for OneFile {
        fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            Ok(self.0.into())
        }
    }

    #[track_caller]
    fn check(text: &'static str, expected: Value) {
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(1000),
        };
        let (_, rest) = load_with_rest(
            Path::new("/etc/imds/imds.toml"),
            &installation,
            &OneFile(text),
        )
        .unwrap();
        assert_eq!(Value::Object(rest.0), expected, "{text}");
    }

    #[test]
    fn what_is_not_an_instance_is_kept_with_what_follows_from_the_host() {
        let host = serde_json::json!({
            "region": "us-east-1",
            "availability-zone": "us-east-1a",
            "availability-zone-id": "use1-az1",
            "account-id": "123456789012",
        });
        check(
            "host.account-id = \"123456789012\"\n[[instance]]\nport = \"x\"\n",
            serde_json::json!({ "host": host }),
        );
        check(
            "host.account-id = \"123456789012\"\ndiscovery = { ports = [\"tap*\"], docker-socket = \"d.sock\" }\n\
             [[template]]\nports = [\"tap*\"]\nuser-data-file = \"init.sh\"\n",
            serde_json::json!({
                "host": host,
                "discovery": { "ports": ["tap*"], "docker-socket": "/etc/imds/d.sock" },
                "template": [{ "ports": ["tap*"], "user-data-file": "/etc/imds/init.sh" }],
            }),
        );
    }
}
