//! The configuration file as it is written: kebab-case TOML, unknown keys refused. Nothing is checked here beyond types.
//!
//! Values keep their place in the text ([`Spanned`]), so that whatever turns out to be wrong can be pointed at.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use zeroize::Zeroize;

use super::Problem;
use super::nearest::nearest;

/// A value that is text in the file, and its place.
pub type Text = Spanned<String>;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileConfig {
    /// What all instances share.
    pub host: Arc<HostEntry>,
    /// The instances.
    pub instance: Vec<Spanned<InstanceEntry>>,
    /// Instances that turn up.
    pub template: Vec<Spanned<Arc<InstanceEntry>>>,
    /// Where they turn up.
    pub discovery: DiscoveryEntry,
}

/// `[discovery]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiscoveryEntry {
    /// Patterns of interfaces that are guests'.
    pub ports: Vec<Text>,
    /// Whether Docker's containers are looked at.
    pub docker: Option<bool>,
    /// Where Docker's socket is.
    pub docker_socket: Option<Text>,
}

/// `[host]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostEntry {
    /// Region of the instances.
    pub region: Option<Text>,
    /// Their zone.
    pub availability_zone: Option<Text>,
    /// Its id.
    pub availability_zone_id: Option<Text>,
    /// The account that owns them.
    pub account_id: Option<Text>,
    /// Domain of private host names, in place of EC2's.
    pub domain_name: Option<Text>,
    /// Whether public addresses have names.
    pub dns_hostnames: Option<bool>,
    /// What each guest may take of the service.
    pub limits: LimitsEntry,
    /// Whether forwarded packets to the metadata addresses are dropped on the uplinks.
    pub guard: Option<bool>,
    /// The uplinks, if not those with default routes.
    pub uplinks: Option<Spanned<Vec<Text>>>,
    /// Whether all processes of the host may reach the host's own metadata service.
    pub host_access: Option<Text>,
    /// The cgroups whose processes may, if not all.
    pub host_access_cgroups: Option<Spanned<Vec<Text>>>,
}

/// `[host.limits]` and `[instance.limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LimitsEntry {
    /// Packets to the service; 0 is no limit.
    pub packets_per_second: Option<Spanned<i64>>,
    /// Requests; 0 is no limit.
    pub requests_per_second: Option<Spanned<i64>>,
    /// New connections; 0 is no limit.
    pub connections_per_second: Option<Spanned<i64>>,
    /// Connections at the same time.
    pub connections: Option<Spanned<i64>>,
    /// Requests at the same time that are not over at once.
    pub requests_in_flight: Option<Spanned<i64>>,
}

/// `[[instance]]` and `[[template]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct InstanceEntry {
    /// What commands call it.
    pub name: Option<Text>,
    /// The interface of the host by which its packets come in.
    pub port: Option<Text>,
    /// The hardware address of that interface, if it is found by that.
    pub port_mac: Option<Text>,
    /// The network namespace that the other end of that interface is in, if it is found by that.
    pub netns: Option<Text>,
    /// Of a template: patterns of the interfaces that get such an instance.
    pub ports: Option<Spanned<Vec<Text>>>,
    /// What it may take of the service.
    pub limits: LimitsEntry,
    /// `i-…`
    pub id: Option<Text>,
    /// Instance type.
    pub r#type: Option<Text>,
    /// `ami-…`
    pub image_id: Option<Text>,
    /// `r-…`
    pub reservation_id: Option<Text>,
    /// Index within the launch request.
    pub launch_index: Option<u32>,
    /// When it was last launched or started.
    pub launch_time: Option<Text>,
    /// Primary private IPv4 address.
    pub private_ipv4: Option<Text>,
    /// Further private IPv4 addresses.
    pub secondary_private_ipv4s: Vec<Text>,
    /// Public address of the primary private one.
    pub public_ipv4: Option<Text>,
    /// Public addresses and the private ones that they belong to.
    pub ipv4_associations: BTreeMap<Text, Text>,
    /// IPv6 addresses.
    pub ipv6s: Vec<Text>,
    /// IPv4 prefixes delegated to the primary interface.
    pub ipv4_prefixes: Vec<Text>,
    /// IPv6 prefixes delegated to the primary interface.
    pub ipv6_prefixes: Vec<Text>,
    /// MAC address of the primary interface.
    pub mac: Option<Text>,
    /// `eni-…` of the primary interface.
    pub interface_id: Option<Text>,
    /// Names of the security groups of the primary interface.
    pub security_groups: Option<Vec<Text>>,
    /// Their ids, in the same order.
    pub security_group_ids: Option<Spanned<Vec<Text>>>,
    /// Subnet of the primary interface.
    pub subnet: SubnetEntry,
    /// Further interfaces.
    pub network_interface: Vec<Spanned<NetworkInterfaceEntry>>,
    /// User data as text.
    pub user_data: Option<Text>,
    /// User data in a file.
    pub user_data_file: Option<Text>,
    /// User data in base64.
    pub user_data_base64: Option<Text>,
    /// EC2's instance metadata options.
    pub metadata_options: MetadataOptionsEntry,
    /// Tags.
    pub tags: BTreeMap<Text, Text>,
    /// The role of the instance profile.
    pub role: Option<RoleEntry>,
    /// Key pairs.
    pub public_key: Vec<PublicKeyEntry>,
    /// Owner, if not the host's account.
    pub account_id: Option<Text>,
    /// Zone, if not the host's.
    pub availability_zone: Option<Text>,
    /// Its id.
    pub availability_zone_id: Option<Text>,
    /// Private host name.
    pub hostname: Option<Text>,
    /// Architecture, if it does not follow from the type.
    pub architecture: Option<Text>,
    /// Hypervisor, if it does not follow from the type.
    pub system: Option<Text>,
    /// Virtualisation profile.
    pub profile: Option<Text>,
    /// How it is paid for.
    pub life_cycle: Option<Text>,
    /// `instance-action`
    pub instance_action: Option<Text>,
    /// `ami-manifest-path`
    pub manifest_path: Option<Text>,
    /// `ancestor-ami-ids`
    pub ancestor_ami_ids: Vec<Text>,
    /// `aki-…`
    pub kernel_id: Option<Text>,
    /// `ari-…`
    pub ramdisk_id: Option<Text>,
    /// Marketplace product codes.
    pub product_codes: Vec<Text>,
    /// Billing products.
    pub billing_products: Vec<Text>,
    /// Virtual names and devices.
    pub block_device_mapping: BTreeMap<Text, Text>,
    /// Whether detailed monitoring is on.
    pub monitoring: Option<Text>,
    /// Whether hibernation is configured.
    pub hibernation_configured: Option<bool>,
    /// State that Auto Scaling takes it to.
    pub target_lifecycle_state: Option<Text>,
    /// Placement group.
    pub placement_group: Option<Text>,
    /// Its partition.
    pub partition_number: Option<u8>,
    /// `h-…`
    pub dedicated_host_id: Option<Text>,
    /// What EC2 Instance Connect put in place.
    pub managed_ssh_keys: ManagedSshKeysEntry,
}

/// `[instance.managed-ssh-keys]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ManagedSshKeysEntry {
    /// Keys that were pushed.
    pub active_keys: Vec<ActiveKeysEntry>,
    /// PEM certificate chain of the signer.
    pub signer_cert: Option<Text>,
    /// OCSP staples: names, and responses in base64.
    pub signer_ocsp: BTreeMap<Text, Text>,
}

/// `[[instance.managed-ssh-keys.active-keys]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ActiveKeysEntry {
    /// The user of the operating system.
    pub os_user: Text,
    /// The signed keys.
    pub blob: Text,
    /// From then on there are none.
    pub expiration: Text,
}

/// `subnet = { … }`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SubnetEntry {
    /// `subnet-…`
    pub id: Option<Text>,
    /// IPv4 range.
    pub ipv4_cidr: Option<Text>,
    /// IPv6 ranges.
    pub ipv6_cidrs: Vec<Text>,
    /// Whether it has no IPv4 range.
    pub ipv6_native: Option<Spanned<bool>>,
    /// `vpc-…`
    pub vpc_id: Option<Text>,
    /// IPv4 ranges of the VPC, the primary one first.
    pub vpc_ipv4_cidrs: Vec<Text>,
    /// IPv6 ranges of the VPC.
    pub vpc_ipv6_cidrs: Vec<Text>,
}

/// `[[instance.network-interface]]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkInterfaceEntry {
    /// `eni-…`
    pub id: Option<Text>,
    /// MAC address.
    pub mac: Option<Text>,
    /// Position on its card.
    pub device_number: Option<u8>,
    /// Network card.
    pub network_card: Option<u8>,
    /// Owner, if not the instance's.
    pub owner_id: Option<Text>,
    /// Primary private IPv4 address.
    pub private_ipv4: Option<Text>,
    /// Further private IPv4 addresses.
    pub secondary_private_ipv4s: Vec<Text>,
    /// Public address of the primary private one.
    pub public_ipv4: Option<Text>,
    /// Public addresses and the private ones that they belong to.
    pub ipv4_associations: BTreeMap<Text, Text>,
    /// IPv6 addresses.
    pub ipv6s: Vec<Text>,
    /// Delegated IPv4 prefixes.
    pub ipv4_prefixes: Vec<Text>,
    /// Delegated IPv6 prefixes.
    pub ipv6_prefixes: Vec<Text>,
    /// Names of its security groups.
    pub security_groups: Option<Vec<Text>>,
    /// Their ids, in the same order.
    pub security_group_ids: Option<Spanned<Vec<Text>>>,
    /// Its subnet.
    pub subnet: SubnetEntry,
}

/// `[instance.metadata-options]`
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetadataOptionsEntry {
    /// `optional` or `required`
    pub http_tokens: Option<Text>,
    /// `enabled` or `disabled`
    pub http_endpoint: Option<Text>,
    /// 1 to 64
    pub http_put_response_hop_limit: Option<Spanned<i64>>,
    /// `enabled` or `disabled`
    pub http_protocol_ipv6: Option<Text>,
    /// `enabled` or `disabled`
    pub instance_metadata_tags: Option<Text>,
}

/// `[instance.role]`
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RoleEntry {
    /// Name of the role.
    pub name: Text,
    /// Name of the instance profile, if not the role's.
    pub instance_profile: Option<Text>,
    /// Id of the instance profile.
    pub instance_profile_id: Option<Text>,
    /// Of the credentials.
    pub access_key_id: Option<Text>,
    /// Of the credentials.
    pub secret_access_key: Option<Text>,
    /// Of the credentials.
    pub token: Option<Text>,
    /// Of the credentials.
    pub expiration: Option<Text>,
    /// A command that prints credentials, and its arguments.
    pub credential_process: Option<Spanned<CommandLine>>,
    /// What it sees of the daemon's environment.
    pub credential_process_environment: Option<Spanned<Vec<Text>>>,
    /// A role of IAM that STS is asked for.
    pub assume_role_arn: Option<Text>,
    /// What its trust policy asks for.
    pub external_id: Option<Text>,
    /// Name of the session, if not the instance's id.
    pub session_name: Option<Text>,
    /// Life of the session.
    pub session_duration_seconds: Option<Spanned<i64>>,
    /// Where STS is.
    pub endpoint_url: Option<Text>,
}

/// Wipes the credentials, which were copied to where they are needed.
impl Drop for RoleEntry {
    fn drop(&mut self) {
        let secrets = [&mut self.secret_access_key, &mut self.token];
        for secret in secrets.into_iter().flatten() {
            secret.get_mut().zeroize();
        }
    }
}

/// A command and its arguments. A list, not one text as the AWS CLI has it: TOML has lists, and with one there are no
/// rules of quoting to get wrong.
pub struct CommandLine(pub Vec<Text>);

impl<'de> Deserialize<'de> for CommandLine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ListOfWords)
    }
}

/// Reads a list, and says what a list is to somebody who wrote something else. What they wrote may hold a secret and is
/// not repeated.
struct ListOfWords;

impl<'de> Visitor<'de> for ListOfWords {
    type Value = CommandLine;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(A_LIST)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CommandLine, A::Error> {
        let mut words = Vec::new();
        while let Some(word) = list.next_element()? {
            words.push(word);
        }
        Ok(CommandLine(words))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<CommandLine, E> {
        Err(E::custom(A_LIST))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<CommandLine, E> {
        Err(E::custom(A_LIST))
    }
}

const A_LIST: &str = "write a list of the command and its arguments, such as [\"/usr/local/bin/credentials\", \"web\"]: no \
                      shell reads it, so nothing has to be quoted";

/// Shows no credentials.
impl std::fmt::Debug for RoleEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleEntry")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// `[[instance.public-key]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PublicKeyEntry {
    /// Name of the key pair.
    pub name: Text,
    /// The OpenSSH line.
    pub openssh: Text,
}

/// Reads the text of a file.
///
/// # Errors
/// It is not TOML, or has keys or types that are not ours.
pub fn parse(text: &str) -> Result<FileConfig, Problem> {
    toml::from_str(text).map_err(|error| Problem {
        span: error.span().unwrap_or(0..0),
        message: explain(error.message()),
    })
}

/// What serde says about an unknown key, ``unknown field `prot`, expected one of `name`, `port`, …``, names every key
/// there is; people want the one that they meant. Anything else is left as it is, in one line.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.starts_with("unknown field"), &quoted[..]) {
        (true, [unknown, known @ ..]) if !known.is_empty() => match nearest(unknown, known) {
            Some(meant) => format!("unknown key `{unknown}`: did you mean `{meant}`?"),
            None => format!(
                "unknown key `{unknown}`: the keys here are {}",
                known.join(", ")
            ),
        },
        _ => message.lines().collect::<Vec<_>>().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, at: &str, message: &str) {
        let problem = parse(text).unwrap_err();
        assert_eq!(
            (&text[problem.span.clone()], &*problem.message),
            (at, message),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_one_that_was_meant() {
        check(
            "[[instance]]\nprot = \"x\"",
            "prot",
            "unknown key `prot`: did you mean `port`?",
        );
        check(
            "[hosts]",
            "hosts",
            "unknown key `hosts`: did you mean `host`?",
        );
        check(
            "[[instance]]\n[instance.metadata-options]\nHttpTokens = \"required\"",
            "HttpTokens",
            "unknown key `HttpTokens`: did you mean `http-tokens`?",
        );
        check(
            "[[instance]]\nport = \"x\"\nport-mca = \"y\"",
            "port-mca",
            "unknown key `port-mca`: did you mean `port-mac`?",
        );
        check(
            "zzzzzzzz = 1",
            "zzzzzzzz",
            "unknown key `zzzzzzzz`: the keys here are host, instance, template, discovery",
        );
    }

    #[test]
    fn wrong_types_and_syntax_are_pointed_at() {
        check(
            "[[instance]]\nport = 5",
            "5",
            "invalid type: integer `5`, expected a string",
        );
        check(
            "[[instance]]\nport = \"a\"\nport = \"b\"",
            "port",
            "duplicate key",
        );
    }

    #[test]
    fn debug_shows_no_credentials() {
        let text = "[[instance]]\n[instance.role]\nname = \"r\"\nsecret-access-key = \"hunter2\"\ntoken = \"hunter3\"";
        let shown = format!("{:?}", parse(text).unwrap());
        assert!(
            shown.contains("name") && !shown.contains("hunter"),
            "{shown}"
        );
    }
}
