//! What Docker says of a container, as far as it matters here. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::config::pairs::Pairs;

/// What begins a label of ours.
pub(super) const LABEL: &str = "imds.";

/// A container.
#[derive(Debug, Deserialize)]
#[serde(from = "Inspected")]
pub(super) struct Container {
    /// Sixty-four hexadecimal digits, which no other container has.
    pub(super) id: String,
    pub(super) name: String,
    /// The id of its image.
    pub(super) image: String,
    pub(super) network: Network,
    labels: BTreeMap<String, String>,
}

/// Whose network it has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Network {
    /// None yet, or none any more.
    None,
    /// Its own: the file that stands for its namespace.
    Own(PathBuf),
    /// The host's.
    OfHost,
    /// Another container's.
    OfContainer,
}

/// The answer to `GET /containers/ID/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    image: String,
    config: Config,
    host_config: HostConfig,
    network_settings: NetworkSettings,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default)]
    sandbox_key: String,
}

impl From<Inspected> for Container {
    fn from(inspected: Inspected) -> Self {
        let mode = inspected.host_config.network_mode.as_str();
        let sandbox = inspected.network_settings.sandbox_key;
        let network = if mode == "host" {
            Network::OfHost
        } else if mode.starts_with("container:") {
            Network::OfContainer
        } else if sandbox.is_empty() {
            Network::None
        } else {
            Network::Own(sandbox.into())
        };
        Self {
            id: inspected.id,
            name: inspected.name.trim_start_matches('/').to_owned(),
            image: inspected.image,
            network,
            labels: inspected.config.labels.unwrap_or_default(),
        }
    }
}

impl Container {
    /// What its labels say, without those that come from its image.
    ///
    /// # Errors
    /// When it cannot be told which do, or all do.
    pub(super) fn pairs(
        &self,
        of_image: Option<&BTreeMap<String, String>>,
    ) -> Result<Pairs, String> {
        let Some(of_image) = of_image else {
            return Err(
                "its image is gone, so it cannot be told which of its labels came from there"
                    .to_owned(),
            );
        };
        let pairs: Vec<(String, String)> = self
            .labels
            .iter()
            .filter(|(key, value)| of_image.get(*key) != Some(value))
            .filter_map(|(key, value)| Some((key.strip_prefix(LABEL)?.to_owned(), value.clone())))
            .collect();
        if pairs.is_empty() {
            return Err(format!(
                "its {LABEL}* labels come from its image, which anybody may have made: give them when it is run"
            ));
        }
        Ok(Pairs::new(LABEL, pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(mode: &str, sandbox: &str, labels: &str) -> Container {
        let text = format!(
            r#"{{"Id":"0af9","Name":"/web","Image":"sha256:1","State":{{"Running":true}},
                "Config":{{"Labels":{labels},"Env":[]}},"HostConfig":{{"NetworkMode":"{mode}"}},
                "NetworkSettings":{{"SandboxKey":"{sandbox}","Ports":{{}}}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_container_has_its_own_network_or_somebody_elses() {
        let own = Network::Own("/run/docker/netns/1".into());
        for (mode, sandbox, expected) in [
            ("default", "/run/docker/netns/1", own),
            ("bridge", "", Network::None),
            ("host", "/run/docker/netns/default", Network::OfHost),
            ("container:0b", "", Network::OfContainer),
        ] {
            let container = container(mode, sandbox, "null");
            assert_eq!(container.network, expected, "{mode}");
            assert_eq!((&*container.name, &*container.id), ("web", "0af9"));
        }
    }

    #[test]
    fn labels_count_unless_the_image_brought_them() {
        let labels = r#"{"imds.type":"m5.large","imds.role":"admin","other":"x"}"#;
        let web = container("default", "/x", labels);
        let image = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let pairs = |pairs: &[(&str, &str)]| Pairs::new(LABEL, image(pairs).into_iter().collect());
        assert_eq!(
            web.pairs(Some(&image(&[]))),
            Ok(pairs(&[("type", "m5.large"), ("role", "admin")]))
        );
        assert_eq!(
            web.pairs(Some(&image(&[
                ("imds.role", "admin"),
                ("imds.type", "t3.nano")
            ]))),
            Ok(pairs(&[("type", "m5.large")]))
        );
        let both = image(&[("imds.role", "admin"), ("imds.type", "m5.large")]);
        assert!(web.pairs(Some(&both)).unwrap_err().contains("image"));
        assert!(web.pairs(None).unwrap_err().contains("image is gone"));
    }
}
