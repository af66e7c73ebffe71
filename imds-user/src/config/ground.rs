//! What a launch through the API finds here: a network, a security group, images, and names for what is made up.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Installation;
use super::made_up::MadeUp;
use crate::instance::{Host, ImageId, SecurityGroup, Subnet, VpcId};
use crate::launch::plan;

/// The name of the group that every VPC has.
pub const DEFAULT_GROUP: &str = "default";

/// An image that instances may be launched of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `ami-…`
    pub id: ImageId,
    /// Its name.
    pub name: Box<str>,
    /// Whether it says `imdsSupport` `v2.0`: then its instances begin with tokens required, unless something says otherwise.
    pub has_imds_v2: bool,
    /// What a launcher makes of it.
    pub runs: plan::Image,
}

impl Image {
    /// A local image of Docker's. Its id follows from Docker's own, so it is the same wherever the image is, and another one
    /// once its name means another image.
    #[must_use]
    pub fn of_docker(id: &str, name: &str) -> Self {
        let digest = Sha256::digest(format!("docker {id}"));
        Self {
            id: ImageId::from_digest(&std::array::from_fn(|at| digest[at])),
            name: name.into(),
            has_imds_v2: false,
            runs: plan::Image::Docker(id.to_owned()),
        }
    }
}

/// Another id of the image of the host's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageAlias {
    /// `ami-…`
    pub id: ImageId,
    /// What it is called.
    pub name: Box<str>,
}

impl FromStr for ImageAlias {
    type Err = String;

    /// `ami-0123456789abcdef0` or `ami-0123456789abcdef0=NAME`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, name) = text.split_once('=').unwrap_or((text, text));
        let id = id.parse().map_err(|_| {
            format!("`{id}` is no id of an image: ami-0123456789abcdef0, for example")
        })?;
        if name.is_empty() {
            return Err("an image's name has a character at least".to_owned());
        }
        Ok(Self {
            id,
            name: name.into(),
        })
    }
}

/// Whether launches come to have a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launching {
    /// By the launcher of this state directory, whose path is canonical.
    By(PathBuf),
    /// By nobody: an instance is a record.
    Records,
    /// By nobody, so there are none.
    Refused,
}

/// Where launches land: the default network of the account, as EC2 gives one to each.
#[derive(Clone, Debug)]
pub struct Ground {
    /// What all instances share.
    pub host: Host,
    /// The subnet of the host's zone in the default VPC.
    pub subnet: Arc<Subnet>,
    /// The group of instances that name none.
    pub group: SecurityGroup,
    /// What may be launched. Never empty.
    pub images: Vec<Image>,
    /// Who launches guests.
    pub launching: Launching,
    installation: Installation,
}

impl Ground {
    /// Of an installation: the same network and image that instances of the file have which do not say theirs.
    #[must_use]
    pub fn of(host: Host, installation: Installation) -> Self {
        let made_up = MadeUp::of(&installation);
        let subnet = made_up.default_subnet(&host.zone, true);
        let group = SecurityGroup {
            id: made_up.security_group_id(subnet.vpc_id, DEFAULT_GROUP),
            name: DEFAULT_GROUP.into(),
        };
        let image = Image {
            id: made_up.image_id(),
            name: "imds-guest".into(),
            has_imds_v2: false,
            runs: plan::Image::Host,
        };
        Self {
            host,
            subnet: Arc::new(subnet),
            group,
            images: vec![image],
            launching: Launching::Records,
            installation,
        }
    }

    /// With more names for the image of the host's programs, so that commands that were written for EC2 launch here as they are.
    #[must_use]
    pub fn known_as(mut self, images: &[ImageAlias]) -> Self {
        let images = images.iter().map(|alias| Image {
            id: alias.id,
            name: alias.name.clone(),
            has_imds_v2: false,
            runs: plan::Image::Host,
        });
        self.images.extend(images);
        self
    }

    /// The subnet that an address could be in which is of another network.
    #[must_use]
    pub fn subnet_around(&self, address: Ipv4Addr) -> Subnet {
        MadeUp::of(&self.installation).subnet_around(address, self.subnet.dns_hostnames)
    }

    /// The id of the instance profile with this name, the same that it has in the file.
    #[must_use]
    pub fn instance_profile_id(&self, name: &str) -> Box<str> {
        let made_up = MadeUp::of(&self.installation);
        made_up.instance_profile_id(name).into()
    }

    /// The security group of a VPC that has this name, the same that it has in the file.
    #[must_use]
    pub fn security_group(&self, vpc: VpcId, name: &str) -> SecurityGroup {
        SecurityGroup {
            id: MadeUp::of(&self.installation).security_group_id(vpc, name),
            name: name.into(),
        }
    }
}
