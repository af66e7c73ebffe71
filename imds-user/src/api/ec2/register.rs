//! `imds instance add`: instances whose guests somebody else runs, behind ports that are there or will be.
//!
//! Such an instance is launched like any other, by the rules of `RunInstances` ([`super::launch`]), but for what its guest has
//! already: a name, a port, and perhaps addresses of its own. It runs at once, since nobody starts a machine for it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::instance::all;
use super::launch::Order;
use crate::api::call::{Call, Change, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::{Params, Query};
use crate::config::ground::DEFAULT_GROUP;
use crate::config::resolve::{NAME_BYTES_MAX, is_guest_name};
use crate::config::{Ground, PortBy};
use crate::instance::network::PrivateIpv4;
use crate::instance::{MacAddress, NetworkInterface};
use crate::store::{Digest, Key, Record};

/// The type of instances that say none, as in the configuration file.
const DEFAULT_TYPE: &str = crate::config::resolve::DEFAULT_TYPE;

pub(super) fn register(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let params = &call.params;
    let name = name(params)?;
    let port = port(params)?;
    refuse_what_others_have(call, name, &port)?;
    let (mac, address) = (mac(params)?, address(params)?);
    let parameters = with_defaults(call)?;
    let launch = Call {
        action: call.action,
        params: parameters.params(),
        caller: call.caller,
        view: call.view,
        ground: call.ground,
        now: call.now,
        entropy: call.entropy.clone(),
        request_id: call.request_id,
    };
    let order = Order::read(&launch, Digest::of(b""))?;
    let mut outcome = call.ec2_done();
    for mut record in order.records(&launch)? {
        record.name = name.into();
        record.port = Some(port.clone());
        // Somebody runs it, and runs it now.
        (record.transition, record.machine, record.state_reason) = (None, None, None);
        let primary = &mut record.spec.primary;
        if let Some(mac) = mac {
            primary.mac = mac;
        }
        if let Some(address) = address {
            move_to(primary, address, call.ground);
        }
        outcome.about = Some(Key::instance(record.spec.id));
        let put = Change::Put(Record::Instance(Box::new(record)));
        outcome.changes.push(put);
    }
    Ok(outcome)
}

/// The parameters as of a launch, of one instance, of the image and type that there are.
fn with_defaults(call: &Call<'_>) -> Result<Query, Refusal> {
    let mut fields = call.params.fields();
    let image = call.ground.images.first();
    let image = image.map(|image| image.id.to_string());
    for (name, value) in [
        ("MinCount", Some("1".to_owned())),
        ("MaxCount", Some("1".to_owned())),
        ("ImageId", image),
        ("InstanceType", Some(DEFAULT_TYPE.to_owned())),
    ] {
        let is_given = call.params.text(name).is_some();
        if let (false, Some(value)) = (is_given, value) {
            fields.retain(|(given, _)| given != name);
            fields.push((name.to_owned(), value));
        }
    }
    Query::of(fields)
}

fn name<'a>(params: &Params<'a>) -> Result<&'a str, Refusal> {
    let name = params.required("InstanceName")?;
    if is_guest_name(name) {
        return Ok(name);
    }
    let right = format!("A name has 1 to {NAME_BYTES_MAX} bytes, no space and no `/`.");
    Err(Refusal::invalid_value(name, "InstanceName", right))
}

fn port(params: &Params<'_>) -> Result<PortBy, Refusal> {
    let place = params.at("Port");
    let text = |name| place.text(name);
    let wrong = |name: &str, text: &str, why: String| {
        Refusal::invalid_value(text, place.at(name).path(), why)
    };
    match (text("Name"), text("Mac"), text("Netns")) {
        (Some(name), None, None) => {
            let parsed = name.parse().map(PortBy::Name);
            parsed.map_err(|error: crate::config::PortNameError| {
                wrong("Name", name, error.to_string())
            })
        }
        (None, Some(mac), None) => {
            let parsed = mac.parse().map(PortBy::Mac);
            parsed.map_err(|_| wrong("Mac", mac, MAC.to_owned()))
        }
        (None, None, Some(netns)) => {
            let parsed = netns.parse().map(PortBy::Netns);
            parsed.map_err(|error: crate::config::port_by::NetnsNameError| {
                wrong("Netns", netns, error.to_string())
            })
        }
        _ => Err(Refusal::missing("Port.Name, Port.Mac or Port.Netns")),
    }
}

/// What is right where a hardware address is asked for.
const MAC: &str = "Write one such as 02:00:00:00:00:01.";

fn mac(params: &Params<'_>) -> Result<Option<MacAddress>, Refusal> {
    params.parsed("MacAddress", MAC, |text| text.parse().ok())
}

fn address(params: &Params<'_>) -> Result<Option<Ipv4Addr>, Refusal> {
    params.parsed("Address", "Write one such as 10.0.0.10.", |text| {
        text.parse().ok()
    })
}

/// A name or a port has one instance. What is gone has neither.
fn refuse_what_others_have(call: &Call<'_>, name: &str, port: &PortBy) -> Result<(), Refusal> {
    for known in all(call).filter(|known| !known.record.is_terminated()) {
        let id = known.id();
        if *known.record.name == *name {
            let message = format!("the name `{name}` is that of {id}");
            return Err(Refusal::new(Code::InvalidParameterValue, message));
        }
        if known.record.port.as_ref() == Some(port) {
            let other = &known.record.name;
            let message = format!("{port} is the port of instance {other} ({id})");
            return Err(Refusal::new(Code::InvalidParameterValue, message));
        }
    }
    Ok(())
}

/// Gives the interface an address that its guest has already. Guests of several ports may have the same one, and it need not
/// be of the network that launches land in.
fn move_to(interface: &mut NetworkInterface, address: Ipv4Addr, ground: &Ground) {
    let range = interface.subnet.ipv4_cidr;
    if !range.is_some_and(|range| range.contains(address)) {
        let subnet = ground.subnet_around(address);
        interface.security_groups = Arc::new([ground.security_group(subnet.vpc_id, DEFAULT_GROUP)]);
        interface.subnet = Arc::new(subnet);
    }
    interface.private_ipv4s = Box::new([PrivateIpv4 {
        address,
        public: None,
    }]);
}
