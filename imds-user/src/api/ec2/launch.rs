//! `RunInstances`: records of instances to come. Whoever runs machines makes their guests of them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::instance::{Known, all};
use super::options::{Given, check_servable};
use super::{attributes, defaults, describe, places, power, profiles, tags, types};
use crate::api::call::{Call, Change, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::config::ground::{Image, Launching};
use crate::config::{PortBy, PortName};
use crate::instance::details::LifeCycle;
use crate::instance::network::PrivateIpv4;
use crate::instance::{
    Instance, InstanceId, Ipv4Cidr, MacAddress, NetworkInterface, NetworkInterfaceId, PublicKey,
    ReservationId, Role, SecurityGroup, Subnet, Switch, Tag, USER_DATA_BYTES_MAX, UserData,
};
use crate::launch::plan::{self, Names};
use crate::life::Life;
use crate::store::record::{Attributes, Launch, Machine, StateReason, Transition};
use crate::store::{Digest, InstanceRecord, Key, Kind, Owner, Record};

/// What EC2 takes for the type where none is given.
const DEFAULT_TYPE: &str = "m1.small";
/// The tag by which a launch names the port of a guest that somebody else runs.
pub(super) const PORT_TAG: &str = "imds:port";
/// The most instances that one call launches.
const COUNT_MAX: i32 = 1000;
/// As many as there are slots.
const INSTANCES_MAX: usize = 1 << 16;
/// Longest client token in characters.
const CLIENT_TOKEN_MAX: usize = 64;
/// Addresses at the start of a subnet that EC2 keeps (network, router, DNS, future use); the last one is kept too.
const RESERVED_ADDRESSES: u32 = 4;

pub(super) fn run(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let parameters = parameters(call);
    if let Some(outcome) = same_again(call, parameters)? {
        return Ok(outcome);
    }
    let order = Order::read(call, parameters)?;
    let records = order.records(call)?;
    let mut outcome = reply(call, &records);
    // Nobody else may have launched with this token, or taken one of these addresses.
    outcome.relies_on_all.push(Kind::Instance);
    outcome.relies_on.push(Key::defaults());
    let records = records.into_iter();
    outcome.changes = records
        .map(|record| Change::Put(Record::Instance(Box::new(record))))
        .collect();
    Ok(outcome)
}

fn reply(call: &Call<'_>, records: &[InstanceRecord]) -> Outcome {
    static NOTHING: Life = Life::NOTHING;
    let launch: Vec<_> = records
        .iter()
        .map(|record| Known {
            record,
            life: &NOTHING,
            ground: call.ground,
        })
        .collect();
    call.ec2_reply(|xml| describe::write_reservation(xml, &launch))
}

/// The parameters that make two calls the same.
fn parameters(call: &Call<'_>) -> Digest {
    let fields = call.params.fields();
    let fields = fields
        .into_iter()
        .filter(|(name, _)| !matches!(name.as_str(), "ClientToken" | "DryRun" | "Version"));
    let text: String = fields
        .map(|(name, value)| format!("{name}={value}\n"))
        .collect();
    Digest::of(text.as_bytes())
}

/// A call with the token of an earlier one launches nothing more, and is answered as that one was.
fn same_again(call: &Call<'_>, parameters: Digest) -> Result<Option<Outcome>, Refusal> {
    let Some(token) = client_token(call)? else {
        return Ok(None);
    };
    let has_token = |known: &Known<'_>| known.record.launch.client_token.as_deref() == Some(token);
    let mut launched: Vec<_> = all(call).filter(has_token).collect();
    launched.sort_by_key(|known| known.spec().launch_index);
    let Some(first) = launched.first() else {
        return Ok(None);
    };
    if first.record.launch.parameters != Some(parameters) {
        return Err(Refusal::new(
            Code::IdempotentParameterMismatch,
            "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
        ));
    }
    let outcome = call.ec2_reply(|xml| describe::write_reservation(xml, &launched));
    Ok(Some(outcome))
}

fn client_token<'a>(call: &Call<'a>) -> Result<Option<&'a str>, Refusal> {
    let token = call.params.text("ClientToken");
    let is_fit = |token: &&str| token.len() <= CLIENT_TOKEN_MAX && token.is_ascii();
    match token {
        Some(token) if !is_fit(&token) => Err(Refusal::invalid_value(
            token,
            "ClientToken",
            format!("At most {CLIENT_TOKEN_MAX} ASCII characters are allowed."),
        )),
        token => Ok(token),
    }
}

/// What a call wants, checked.
pub(super) struct Order {
    count: u32,
    template: InstanceRecord,
    /// Where the instances' addresses are to come from.
    address: Option<Ipv4Addr>,
    home: Home,
}

/// Where the guests of a launch are.
enum Home {
    /// At this port, where somebody else runs one.
    Port(PortName),
    /// With the launcher of this state directory, which makes them of this image.
    Launcher(PathBuf, plan::Image),
    /// Nowhere.
    Nowhere,
}

impl Home {
    fn of(call: &Call<'_>, tags: &[Tag], image: &Image, count: u32) -> Result<Self, Refusal> {
        if let Some(tag) = tags.iter().find(|tag| &*tag.key == PORT_TAG) {
            return Self::named(call, &tag.value, count);
        }
        match &call.ground.launching {
            Launching::By(state_dir) => Ok(Self::Launcher(state_dir.clone(), image.runs.clone())),
            Launching::Records => Ok(Self::Nowhere),
            Launching::Refused => Err(Refusal::new(
                Code::InsufficientInstanceCapacity,
                format!(
                    "Nobody launches guests on this host: start `imds launcher` there, or name the port of a guest that \
                     somebody else runs with the tag {PORT_TAG}"
                ),
            )),
        }
    }

    fn named(call: &Call<'_>, name: &str, count: u32) -> Result<Self, Refusal> {
        let port: PortName = name
            .parse()
            .map_err(|why| Refusal::invalid_value(name, PORT_TAG, why))?;
        if count > 1 {
            return Err(Refusal::new(
                Code::InvalidParameterCombination,
                format!("The tag {PORT_TAG} names a port, and a port has one instance"),
            ));
        }
        let by = PortBy::Name(port.clone());
        let mut there = all(call).filter(|known| !known.record.is_terminated());
        match there.find(|known| known.record.port.as_ref() == Some(&by)) {
            Some(known) => {
                let whose = format!("It is the port of {}.", known.id());
                Err(Refusal::invalid_value(name, PORT_TAG, whose))
            }
            None => Ok(Self::Port(port)),
        }
    }

    fn give_to(&self, record: &mut InstanceRecord) -> Result<(), Refusal> {
        match self {
            Self::Port(port) => record.port = Some(PortBy::Name(port.clone())),
            Self::Launcher(state_dir, image) => {
                if record.spec.primary.private_ipv4().is_none() {
                    return Err(Refusal::unsupported(
                        "Guests are launched with an IPv4 address here",
                    ));
                }
                let names = Names::of(state_dir, record.spec.id);
                // Fifteen plain characters.
                record.port = names.port.parse().ok().map(PortBy::Name);
                record.machine = Some(Machine {
                    image: image.clone(),
                    reboot: false,
                });
            }
            Self::Nowhere => record.state_reason = Some(StateReason::NoGuest),
        }
        Ok(())
    }
}

impl Order {
    pub(super) fn read(call: &Call<'_>, parameters: Digest) -> Result<Self, Refusal> {
        let params = &call.params;
        refuse_what_is_not_here(params)?;
        let count = count(call)?;
        let image = image(call, params.required("ImageId")?)?;
        let instance_type = params.text("InstanceType").unwrap_or(DEFAULT_TYPE);
        types::check(instance_type)?;
        let options = Given::read(&params.at("MetadataOptions"))?;
        let options = defaults::at_launch(options, call.view.defaults(), image)?;
        let given_tags = tags::specified(params, "instance", IGNORED_TAGS)?;
        check_servable(&options, &given_tags)?;
        let home = Home::of(call, &given_tags, image, count)?;
        let (primary, address) = interface(call)?;
        if address.is_some() && count > 1 {
            return Err(Refusal::new(
                Code::InvalidParameterCombination,
                "Network interfaces and an instance-level private IP address may not be specified on the same request \
                 for more than one instance",
            ));
        }
        let key_pair = key_pair(call)?;
        let role = profiles::given(call, &params.at("IamInstanceProfile"))?;
        let spec = Instance {
            id: InstanceId::from_digest(&[0; 9]),
            image_id: image.id,
            instance_type: instance_type.into(),
            reservation_id: ReservationId::from_digest(&call.entropy.bytes("reservation", 0)),
            launch_index: 0,
            pending_time: call.now(),
            options,
            primary,
            secondary: Box::default(),
            public_keys: key_pair.clone().into_iter().collect(),
            role: role.map(Box::<Role>::new),
            tags: given_tags.into(),
            user_data: user_data(params, "UserData")?,
            details: None,
        };
        let mut template = InstanceRecord::new("", Owner::Api, spec);
        template.key_name = key_pair.map(|pair| pair.name);
        template.transition = Some(Transition::Pending);
        template.attributes = launch_attributes(params)?;
        template.launch = Launch {
            client_token: client_token(call)?.map(Box::from),
            parameters: Some(parameters),
        };
        rare_facts(params, &mut template.spec)?;
        Ok(Self {
            count,
            template,
            address,
            home,
        })
    }

    pub(super) fn records(&self, call: &Call<'_>) -> Result<Vec<InstanceRecord>, Refusal> {
        if call.view.instances().len() + self.count as usize > INSTANCES_MAX {
            return Err(Refusal::new(
                Code::InstanceLimitExceeded,
                format!("At most {INSTANCES_MAX} instances have room on a host"),
            ));
        }
        let mut taken: BTreeSet<_> = all(call).flat_map(|known| addresses(&known)).collect();
        (0..self.count)
            .map(|index| self.record(call, index, &mut taken))
            .collect()
    }

    fn record(
        &self,
        call: &Call<'_>,
        index: u32,
        taken: &mut BTreeSet<Ipv4Addr>,
    ) -> Result<InstanceRecord, Refusal> {
        let number = u64::from(index);
        let bytes = |what| call.entropy.bytes::<9>(what, number);
        let mut record = self.template.clone();
        let spec = &mut record.spec;
        spec.id = InstanceId::from_digest(&bytes("instance"));
        spec.launch_index = index;
        spec.primary.id = NetworkInterfaceId::from_digest(&bytes("interface"));
        let [a, b, c, d, e] = call.entropy.bytes("mac", number);
        // Locally administered and unicast, beginning as most of EC2's do.
        spec.primary.mac = MacAddress([0x06, a, b, c, d, e]);
        let address = match self.address {
            Some(address) if taken.contains(&address) => {
                let message = format!("Address {address} is in use.");
                return Err(Refusal::new(Code::InvalidIpAddressInUse, message));
            }
            Some(address) => Some(address),
            None => match spec.primary.subnet.ipv4_cidr {
                Some(range) => Some(free_address(call, number, range, taken)?),
                None => None,
            },
        };
        taken.extend(address);
        spec.primary.private_ipv4s = address
            .map(|address| PrivateIpv4 {
                address,
                public: None,
            })
            .into_iter()
            .collect();
        record.name = spec.id.as_str().into();
        self.home.give_to(&mut record)?;
        let spec = &record.spec;
        record.profile_association = spec
            .role
            .as_ref()
            .map(|_| profiles::new_association(call, number));
        Ok(record)
    }
}

fn addresses(known: &Known<'_>) -> Vec<Ipv4Addr> {
    let interfaces = known.spec().interfaces();
    let addresses = interfaces.flat_map(|interface| &interface.private_ipv4s);
    addresses.map(|private| private.address).collect()
}

/// An address of the subnet that nobody has: the first one from a random place on.
fn free_address(
    call: &Call<'_>,
    number: u64,
    range: Ipv4Cidr,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, Refusal> {
    let size = 1_u32.checked_shl(32 - u32::from(range.prefix_bits()));
    let n_usable = size
        .unwrap_or(u32::MAX)
        .saturating_sub(RESERVED_ADDRESSES + 1);
    let start = u32::from_be_bytes(call.entropy.bytes("address", number));
    let first = range.network().to_bits().saturating_add(RESERVED_ADDRESSES);
    let candidates = (0..n_usable).map(|step| {
        let place = (u64::from(start) + u64::from(step)) % u64::from(n_usable);
        Ipv4Addr::from_bits(first + u32::try_from(place).unwrap_or(0))
    });
    let mut free = candidates.filter(|address| !taken.contains(address));
    free.next().ok_or_else(|| {
        Refusal::new(
            Code::InsufficientFreeAddressesInSubnet,
            "There are not enough free addresses in the subnet",
        )
    })
}

/// Tags that a launch gives to what is not modelled here: volumes have none, for there are none.
const IGNORED_TAGS: &[&str] = &["volume", "network-interface", "spot-instances-request"];

fn refuse_what_is_not_here(params: &Params<'_>) -> Result<(), Refusal> {
    for (name, what) in [
        ("BlockDeviceMapping", "Volumes"),
        ("LaunchTemplate", "Launch templates"),
        ("LicenseSpecification", "Licences"),
        ("ElasticGpuSpecification", "Elastic GPUs"),
        ("CapacityReservationSpecification", "Capacity reservations"),
    ] {
        if params.at(name).is_given() {
            return Err(Refusal::unsupported(format!(
                "{what} are not available on this host"
            )));
        }
    }
    Ok(())
}

fn count(call: &Call<'_>) -> Result<u32, Refusal> {
    let at_least = call.params.number("MinCount", 1..=COUNT_MAX)?;
    let at_most = call.params.number("MaxCount", 1..=COUNT_MAX)?;
    let at_least = at_least.ok_or_else(|| Refusal::missing("MinCount"))?;
    let at_most = at_most.ok_or_else(|| Refusal::missing("MaxCount"))?;
    if at_least > at_most {
        return Err(Refusal::invalid_value(
            &at_least.to_string(),
            "MinCount",
            "It must not be larger than MaxCount.",
        ));
    }
    Ok(at_most.unsigned_abs())
}

fn image<'a>(call: &Call<'a>, text: &str) -> Result<&'a Image, Refusal> {
    let id = places::image_id(text)?;
    let images = &call.ground.images;
    images
        .iter()
        .find(|image| image.id == id)
        .ok_or_else(|| places::no_image(text))
}

/// The primary interface, and the address that it is to have. It is asked for at the top or as the first of the interfaces.
fn interface(call: &Call<'_>) -> Result<(NetworkInterface, Option<Ipv4Addr>), Refusal> {
    let interfaces = call.params.list("NetworkInterface")?;
    let place = match &interfaces[..] {
        [] => call.params.clone(),
        [one] => one.clone(),
        _ => {
            return Err(Refusal::unsupported(
                "Instances are launched with one network interface here",
            ));
        }
    };
    let _usual = (
        place.number("DeviceIndex", 0..=0)?,
        place.flag("DeleteOnTermination")?,
        place.flag("AssociatePublicIpAddress")?,
    );
    if place.at("NetworkInterfaceId").is_given() {
        return Err(Refusal::unsupported(
            "Network interfaces are made with their instances here",
        ));
    }
    let subnet = match place.text("SubnetId") {
        Some(id) => places::subnet(call, id)?,
        None => Arc::clone(&call.ground.subnet),
    };
    let address = address(&place, &subnet)?;
    let interface = NetworkInterface {
        id: NetworkInterfaceId::from_digest(&[0; 9]),
        mac: MacAddress([0; 6]),
        device_number: 0,
        network_card: 0,
        owner_id: None,
        private_ipv4s: Box::default(),
        ipv6s: Box::default(),
        ipv4_prefixes: Box::default(),
        ipv6_prefixes: Box::default(),
        security_groups: security_groups(call, &place, &subnet)?,
        subnet,
    };
    Ok((interface, address))
}

fn address(place: &Params<'_>, subnet: &Subnet) -> Result<Option<Ipv4Addr>, Refusal> {
    let right = "It must be an address of the subnet.";
    place.parsed("PrivateIpAddress", right, |text| {
        let address: Ipv4Addr = text.parse().ok()?;
        let range = subnet.ipv4_cidr?;
        range.contains(address).then_some(address)
    })
}

fn security_groups(
    call: &Call<'_>,
    place: &Params<'_>,
    subnet: &Subnet,
) -> Result<Arc<[SecurityGroup]>, Refusal> {
    let by_id = place.texts("SecurityGroupId")?;
    let by_name = place.texts("SecurityGroup")?;
    if !by_id.is_empty() {
        return places::groups_by_id(call, &by_id);
    }
    if !by_name.is_empty() {
        return places::groups_by_name(call, &by_name);
    }
    let group = call
        .ground
        .security_group(subnet.vpc_id, &call.ground.group.name);
    Ok(Arc::new([group]))
}

fn key_pair(call: &Call<'_>) -> Result<Option<PublicKey>, Refusal> {
    let Some(name) = call.params.text("KeyName") else {
        return Ok(None);
    };
    let pair = call.view.key_pair(name).ok_or_else(|| {
        Refusal::new(
            Code::InvalidKeyPairNotFound,
            format!("The key pair '{name}' does not exist"),
        )
    })?;
    Ok(Some(PublicKey {
        name: pair.name.clone(),
        openssh: pair.openssh.clone(),
    }))
}

/// User data, which is in base64 on the wire and nowhere else. Empty is none.
pub(super) fn user_data(params: &Params<'_>, name: &str) -> Result<Option<UserData>, Refusal> {
    let Some(text) = params.text(name) else {
        return Ok(None);
    };
    let malformed = |message: String| Refusal::new(Code::InvalidUserDataMalformed, message);
    // Some clients break lines, as `base64` does.
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD
        .decode(text)
        .map_err(|_| malformed("Invalid BASE64 encoding of user data.".to_owned()))?;
    let data = UserData::try_from(bytes::Bytes::from(bytes));
    data.map(Some).map_err(|_| {
        malformed(format!(
            "User data is limited to {USER_DATA_BYTES_MAX} bytes"
        ))
    })
}

fn launch_attributes(params: &Params<'_>) -> Result<Attributes, Refusal> {
    let usual = Attributes::default();
    let flag = |name| Ok::<_, Refusal>(params.flag(name)?.unwrap_or(false));
    let behavior = params.word(
        "InstanceInitiatedShutdownBehavior",
        attributes::SHUTDOWN_BEHAVIORS,
    )?;
    Ok(Attributes {
        disable_api_termination: flag("DisableApiTermination")?,
        disable_api_stop: flag("DisableApiStop")?,
        instance_initiated_shutdown_behavior: behavior
            .unwrap_or(usual.instance_initiated_shutdown_behavior),
        ebs_optimized: flag("EbsOptimized")?,
        cpu_credits: params.word("CreditSpecification.CpuCredits", attributes::CPU_CREDITS)?,
        ..usual
    })
}

fn rare_facts(params: &Params<'_>, spec: &mut Instance) -> Result<(), Refusal> {
    let monitoring = params.flag("Monitoring.Enabled")?.unwrap_or(false);
    let hibernation = params
        .flag("HibernationOptions.Configured")?
        .unwrap_or(false);
    if hibernation {
        return Err(Refusal::unsupported("Instances cannot be hibernated here"));
    }
    let market = params.word(
        "InstanceMarketOptions.MarketType",
        &[("spot", LifeCycle::Spot)],
    )?;
    let group = params.text("Placement.GroupName").map(Box::from);
    let zone = params.text("Placement.AvailabilityZone");
    let zone = zone.map(places::zone).transpose()?;
    power::change_details(spec, |details| {
        details.monitoring = monitoring.then_some(Switch::Enabled);
        details.life_cycle = market.unwrap_or_default();
        details.placement_group = group;
        details.zone = zone;
    });
    Ok(())
}
