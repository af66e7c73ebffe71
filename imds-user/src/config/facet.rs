//! What the file says of an instance and others may change too: the API does, and the file must not take it back unless the
//! file itself changed. Everything else of an instance is what the file says and nothing else.

use serde::{Deserialize, Serialize};

use super::file::InstanceEntry;

/// One such thing, by its key in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Facet {
    /// `metadata-options.http-tokens`
    HttpTokens,
    /// `metadata-options.http-endpoint`
    HttpEndpoint,
    /// `metadata-options.http-put-response-hop-limit`
    HttpPutResponseHopLimit,
    /// `metadata-options.http-protocol-ipv6`
    HttpProtocolIpv6,
    /// `metadata-options.instance-metadata-tags`
    InstanceMetadataTags,
    /// `type`
    Type,
    /// `tags`, all of them
    Tags,
    /// `user-data` and its like
    UserData,
    /// `role`
    Role,
    /// `monitoring`
    Monitoring,
    /// `security-groups` and their ids, of the primary interface
    SecurityGroups,
}

impl Facet {
    /// Every facet.
    pub const ALL: &'static [Self] = &[
        Self::HttpTokens,
        Self::HttpEndpoint,
        Self::HttpPutResponseHopLimit,
        Self::HttpProtocolIpv6,
        Self::InstanceMetadataTags,
        Self::Type,
        Self::Tags,
        Self::UserData,
        Self::Role,
        Self::Monitoring,
        Self::SecurityGroups,
    ];

    fn is_said(self, entry: &InstanceEntry) -> bool {
        let options = &entry.metadata_options;
        match self {
            Self::HttpTokens => options.http_tokens.is_some(),
            Self::HttpEndpoint => options.http_endpoint.is_some(),
            Self::HttpPutResponseHopLimit => options.http_put_response_hop_limit.is_some(),
            Self::HttpProtocolIpv6 => options.http_protocol_ipv6.is_some(),
            Self::InstanceMetadataTags => options.instance_metadata_tags.is_some(),
            Self::Type => entry.r#type.is_some(),
            Self::Tags => !entry.tags.is_empty(),
            Self::UserData => [
                &entry.user_data,
                &entry.user_data_file,
                &entry.user_data_base64,
            ]
            .iter()
            .any(|text| text.is_some()),
            Self::Role => entry.role.is_some(),
            Self::Monitoring => entry.monitoring.is_some(),
            Self::SecurityGroups => {
                entry.security_groups.is_some() || entry.security_group_ids.is_some()
            }
        }
    }
}

/// Of which of them a file speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said(u16);

impl Said {
    /// What is written of an instance.
    pub(super) fn of(entry: &InstanceEntry) -> Self {
        let said = Facet::ALL.iter().filter(|facet| facet.is_said(entry));
        Self(said.fold(0, |bits, facet| bits | 1 << (*facet as u16)))
    }

    /// Whether this is among it.
    #[must_use]
    pub fn has(self, facet: Facet) -> bool {
        self.0 & 1 << (facet as u16) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::file;
    use super::*;

    fn check(lines: &str, expected: &[Facet]) {
        let file = file::parse(&format!("[[instance]]\n{lines}\n")).unwrap();
        let said = Said::of(file.instance[0].get_ref());
        let facets = Facet::ALL.iter().copied();
        let facets: Vec<Facet> = facets.filter(|facet| said.has(*facet)).collect();
        assert_eq!(facets, expected, "{lines}");
    }

    #[test]
    fn what_is_written_is_said() {
        check("port = \"x\"", &[]);
        check("type = \"t3.micro\"", &[Facet::Type]);
        check("user-data-file = \"x\"", &[Facet::UserData]);
        check("user-data = \"\"", &[Facet::UserData]);
        check("security-group-ids = []", &[Facet::SecurityGroups]);
        check("monitoring = \"disabled\"\ntags = {}", &[Facet::Monitoring]);
        check(
            "tags.a = \"b\"\nrole.name = \"r\"",
            &[Facet::Tags, Facet::Role],
        );
        let options = "metadata-options = { http-tokens = \"optional\", http-endpoint = \"enabled\", \
                       http-put-response-hop-limit = 1, http-protocol-ipv6 = \"disabled\", \
                       instance-metadata-tags = \"disabled\" }";
        check(options, &Facet::ALL[..5]);
    }
}
