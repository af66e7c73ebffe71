//! Actions over records in memory: a call is a line, and so is what becomes of it.

use std::path::Path;

use super::settle::{Others, TERMINATED_SECONDS, settle};
use super::{ACTIONS, REGISTER, meant};
use crate::api::call::{Call, Caller, Change, Entropy, Outcome, action_of, answer};
use crate::api::fault::Refusal;
use crate::api::query::Query;
use crate::config::ground::{Image, Launching};
use crate::config::{Files, Ground, Installation, PortBy, load};
use crate::instance::{InstanceId, UnixMillis, UnixSeconds};
use crate::life::Life;
use crate::store::backend::{Item, Revision};
use crate::store::record::{Machine, Transition};
use crate::store::{InstanceRecord, KeyRole, Owner, Record, View, Who};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const ID: &str = "i-0123456789abcdef0";
const FILE: &str = r#"
[[instance]]
port = "veth0"
id = "i-0123456789abcdef0"

[instance.tags]
"a/b" = ""
"#;

struct OneFile;

impl Files for OneFile {
    fn read(&self, _: &Path, _: usize) -> std::io::Result<Vec<u8>> {
        Ok(FILE.as_bytes().to_vec())
    }
}

/// Records, and what calls make of them.
struct World {
    view: View,
    ground: Ground,
    role: KeyRole,
}

impl World {
    /// With an instance of the API's.
    fn new() -> Self {
        let installation = Installation {
            seed: [5; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings = load(Path::new("x.toml"), &installation, &OneFile).unwrap();
        let instance = settings.guests.into_iter().next().unwrap().instance;
        let record = InstanceRecord::new("web", Owner::Api, instance);
        let mut world = Self {
            view: View::default(),
            ground: Ground::of(settings.host, installation),
            role: KeyRole::Admin,
        };
        world.keep(vec![Change::Put(Record::Instance(Box::new(record)))]);
        world
    }

    fn keep(&mut self, changes: Vec<Change>) {
        let revision = Revision(self.view.revision().0 + 1);
        let items = changes.into_iter().map(|change| match change {
            Change::Put(record) => Item {
                key: record.key(),
                value: Some(record.encode().unwrap()),
                revision,
            },
            Change::Remove(key) => Item {
                key,
                value: None,
                revision,
            },
        });
        self.view.take(revision, items.collect()).unwrap();
    }

    fn call(&self, form: &str, entropy: u8) -> Result<Outcome, Refusal> {
        let form = form
            .replace("ID", ID)
            .replace("IMAGE", self.ground.images[0].id.as_str());
        let query = Query::read(b"", form.as_bytes())?;
        let params = query.params();
        let action = action_of(ACTIONS, &params)?;
        let caller = Caller {
            who: Who::User(0),
            role: self.role,
        };
        answer(
            action,
            &Call {
                action: action.name,
                params: params.clone(),
                caller: &caller,
                view: &self.view,
                ground: &self.ground,
                now: NOW,
                entropy: Entropy::new([entropy; 32]),
                request_id: "4a",
            },
        )
    }

    /// With this image, too.
    fn with_image(mut self, alias: &str) -> Self {
        self.ground = self.ground.known_as(&[alias.parse().unwrap()]);
        self
    }

    /// Makes a call and keeps what it changes. Its answer has this in it: a part of the document, or the error.
    fn check(&mut self, form: &str, part: &str) {
        let shown = match self.call(form, 7) {
            Ok(outcome) => {
                self.keep(outcome.changes);
                String::from_utf8(outcome.body).unwrap()
            }
            Err(refusal) => refusal.to_string(),
        };
        assert!(shown.contains(part), "{form}: {shown}");
    }

    fn settle(&mut self, others: &Machines, now: UnixSeconds) {
        self.keep(settle(&self.view, others, now));
    }

    fn check_state(&self, state: &str, options: &str) {
        let id: InstanceId = ID.parse().unwrap();
        let record = self.view.instance(id).unwrap();
        let found = record.state(self.view.life(id)).as_str();
        assert_eq!((found, record.options.state()), (state, options));
    }
}

/// Others, who do what they are told to or not.
struct Machines {
    has_machine: bool,
    serves: bool,
}

impl Others for Machines {
    fn has_machine(&self, _: InstanceId) -> bool {
        self.has_machine
    }

    fn serves(&self, _: &InstanceRecord) -> bool {
        self.serves
    }
}

const NOBODY: Machines = Machines {
    has_machine: false,
    serves: true,
};

#[test]
fn a_rehearsal_changes_nothing_and_is_refused_like_the_real_thing() {
    let mut world = World::new();
    let before = world.view.clone();
    let modify = "Action=ModifyInstanceMetadataOptions&DryRun=true&InstanceId=";
    world.check(
        &format!("{modify}ID&HttpTokens=required"),
        "DryRunOperation: ",
    );
    world.check(
        &format!("{modify}ID&HttpTokens=maybe"),
        "InvalidParameterValue: ",
    );
    world.check(
        &format!("{modify}i-12345678"),
        "InvalidInstanceID.NotFound: ",
    );
    world.role = KeyRole::ReadOnly;
    world.check(
        &format!("{modify}ID&HttpTokens=required"),
        "UnauthorizedOperation: ",
    );
    world.check("Action=DescribeInstances&DryRun=true", "DryRunOperation: ");
    assert_eq!(world.view, before);
}

#[test]
fn an_action_is_one_of_the_list() {
    let mut world = World::new();
    world.check("Version=2016-11-15", "MissingAction: ");
    world.check("Action=", "MissingAction: ");
    world.check(
        "Action=RunInstance",
        "InvalidAction: The action RunInstance is not valid",
    );
    let names: Vec<_> = ACTIONS.iter().map(|action| action.name).collect();
    assert!(
        names.is_sorted(),
        "a list that is looked through is in order"
    );
}

#[test]
fn options_are_applied_when_somebody_serves_them() {
    let mut world = World::new();
    let modify = "Action=ModifyInstanceMetadataOptions&InstanceId=ID&HttpTokens=required";
    world.check(
        modify,
        "<state>pending</state><httpTokens>required</httpTokens>",
    );
    let nobody_serves = Machines {
        serves: false,
        ..NOBODY
    };
    world.settle(&nobody_serves, NOW.seconds());
    world.check_state("running", "pending");
    world.settle(&NOBODY, NOW.seconds());
    world.check_state("running", "applied");
    // What is so already is not waited for.
    world.check(modify, "<state>applied</state>");
}

#[test]
fn empty_parameters_are_not_given() {
    let mut world = World::new();
    let modify =
        "Action=ModifyInstanceMetadataOptions&InstanceId=ID&HttpEndpoint=&HttpTokens=required";
    world.check(modify, "<httpTokens>required</httpTokens>");
    let run = "Action=RunInstances&ImageId=IMAGE&MinCount=1&MaxCount=1&InstanceType=t3.micro";
    world.check(
        &format!("{run}&Placement.AvailabilityZone="),
        "<name>pending</name>",
    );
}

#[test]
fn tags_that_are_no_paths_are_not_served() {
    let mut world = World::new();
    world.check(
        "Action=ModifyInstanceMetadataOptions&InstanceId=ID&InstanceMetadataTags=enabled",
        "InvalidParameterValue: 'a/b' is not a valid tag key",
    );
    world.check(
        "Action=DeleteTags&ResourceId.1=ID&Tag.1.Key=a/b",
        "<return>true</return>",
    );
    world.check(
        "Action=ModifyInstanceMetadataOptions&InstanceId=ID&InstanceMetadataTags=enabled",
        "<instanceMetadataTags>enabled<",
    );
    world.check(
        "Action=CreateTags&ResourceId.1=ID&Tag.1.Key=.&Tag.1.Value=",
        "InvalidParameterValue: '.' is not a valid tag key",
    );
}

#[test]
fn a_transition_ends_when_there_is_nothing_to_wait_for() {
    let mut world = World::new();
    let somebody = Machines {
        has_machine: true,
        ..NOBODY
    };
    let now = NOW.seconds();
    world.check(
        "Action=StopInstances&InstanceId.1=ID",
        "<currentState><code>64</code><name>stopping</name></currentState>\
         <previousState><code>16</code><name>running</name></previousState>",
    );
    world.check(
        "Action=StartInstances&InstanceId.1=ID",
        "IncorrectInstanceState: ",
    );
    world.settle(&somebody, now);
    world.check_state("stopping", "applied");
    world.settle(&NOBODY, now);
    world.check_state("stopped", "applied");
    world.check(
        "Action=StartInstances&InstanceId.1=ID",
        "<name>pending</name>",
    );
    world.settle(&NOBODY, now);
    world.check_state("running", "applied");
    world.check(
        "Action=TerminateInstances&InstanceId.1=ID",
        "<name>shutting-down</name>",
    );
    world.settle(&NOBODY, now);
    world.check_state("terminated", "applied");
    world.check(
        "Action=StartInstances&InstanceId.1=ID",
        "IncorrectInstanceState: ",
    );
    world.check(
        "Action=DescribeInstances&InstanceId.1=ID",
        "<code>48</code>",
    );
}

#[test]
fn a_terminated_instance_is_forgotten_after_a_while() {
    let mut world = World::new();
    world.check(
        "Action=TerminateInstances&InstanceId.1=ID",
        "<name>shutting-down</name>",
    );
    let now = NOW.seconds();
    world.settle(&NOBODY, now);
    world.settle(&NOBODY, UnixSeconds(now.0 + TERMINATED_SECONDS));
    world.check_state("terminated", "applied");
    world.settle(&NOBODY, UnixSeconds(now.0 + TERMINATED_SECONDS + 1));
    assert!(world.view.instances().is_empty() && world.view.lives().is_empty());
}

#[test]
fn an_attempt_that_is_repeated_makes_the_same_instances() {
    let world = World::new();
    let run = "Action=RunInstances&ImageId=IMAGE&MinCount=2&MaxCount=2&InstanceType=t3.micro";
    let changes = |entropy| world.call(run, entropy).map(|outcome| outcome.changes).ok();
    assert_eq!(changes(1), changes(1));
    assert_ne!(changes(1), changes(2));
}

#[test]
fn a_subnet_has_room_for_as_many_as_it_has_addresses() {
    let mut world = World::new();
    let subnet = crate::instance::Subnet::clone(&world.ground.subnet);
    world.ground.subnet = std::sync::Arc::new(crate::instance::Subnet {
        ipv4_cidr: Some("172.31.0.0/28".parse().unwrap()),
        ..subnet
    });
    let run = |n: u32| {
        format!("Action=RunInstances&ImageId=IMAGE&MinCount={n}&MaxCount={n}&InstanceType=t3.micro")
    };
    world.check(&run(12), "InsufficientFreeAddressesInSubnet: ");
    world.check(&run(11), "<privateIpAddress>172.31.0.14</privateIpAddress>");
    let addresses = world
        .view
        .instances()
        .values()
        .flat_map(|record| record.value.spec.primary.private_ipv4s.to_vec());
    let mut addresses: Vec<_> = addresses.map(|private| private.address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 12, "no two have the same");
}

/// What a launch finds decides whether its instances have guests.
#[test]
fn a_launch_is_a_guest_of_the_launchers_or_of_somebody_elses_or_nobody() {
    let run = "Action=RunInstances&ImageId=IMAGE&MinCount=1&MaxCount=1";
    let tag = |port: &str| {
        format!(
            "{run}&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=imds:port\
             &TagSpecification.1.Tag.1.Value={port}"
        )
    };
    let launched = |world: &World| {
        let records = world.view.instances().values();
        let mut records = records.filter(|record| record.value.spec.id.as_str() != ID);
        InstanceRecord::clone(&records.next().unwrap().value)
    };
    let mut world = World::new();
    world.check(run, "<code>imds.NoGuest</code>");
    let record = launched(&world);
    assert_eq!((record.port, record.machine), (None, None));

    let mut world = World::new();
    world.ground.launching = Launching::Refused;
    world.check(run, "InsufficientInstanceCapacity: ");
    world.check(&tag("vnet7"), "<value>vnet7</value>");
    let record = launched(&world);
    assert_eq!(record.port, Some(PortBy::Name("vnet7".parse().unwrap())));
    assert_eq!(record.machine, None);
    world.check(&tag("vnet7"), "InvalidParameterValue: ");
    world.check(&tag("a/b"), "InvalidParameterValue: ");
    world.check(
        &tag("vnet8").replace("MaxCount=1", "MaxCount=2"),
        "InvalidParameterCombination: ",
    );

    let mut world = World::new();
    world.ground.launching = Launching::By("/var/lib/imds".into());
    let web = Image::of_docker("sha256:1", "web:1");
    world.ground.images.push(web.clone());
    world.check(
        "Action=DescribeImages&Filter.1.Name=name&Filter.1.Value.1=web:*",
        web.id.as_str(),
    );
    world.check(
        &run.replace("IMAGE", web.id.as_str()),
        "<name>pending</name>",
    );
    let record = launched(&world);
    assert_eq!(record.machine.unwrap().image, web.runs);
    assert!(matches!(record.port, Some(PortBy::Name(port)) if port.as_str().starts_with("imdsg")));
    // Nobody else ends its transitions.
    world.settle(&NOBODY, NOW.seconds());
    let record = launched(&world);
    assert_eq!(record.transition, Some(Transition::Pending));
}

#[test]
fn a_terminated_instance_is_not_forgotten_before_its_guest_is_gone() {
    let mut world = World::new();
    let id: InstanceId = ID.parse().unwrap();
    let mut record = world.view.instance(id).unwrap().clone();
    record.transition = Some(Transition::Terminated { at: NOW.seconds() });
    record.machine = Some(Machine {
        image: crate::launch::plan::Image::Host,
        reboot: false,
    });
    world.keep(vec![Change::Put(Record::Instance(Box::new(record)))]);
    world.settle(
        &NOBODY,
        UnixSeconds(NOW.seconds().0 + 10 * TERMINATED_SECONDS),
    );
    assert!(world.view.instance(id).is_some());
}

/// An instance is registered; what became of it, or why not.
fn registered(world: &World, fields: &[(&str, &str)]) -> Result<InstanceRecord, String> {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let query = Query::of(fields).unwrap();
    let caller = Caller {
        who: Who::User(0),
        role: KeyRole::Admin,
    };
    let call = Call {
        action: REGISTER.name,
        params: query.params(),
        caller: &caller,
        view: &world.view,
        ground: &world.ground,
        now: NOW,
        entropy: Entropy::new([9; 32]),
        request_id: "",
    };
    let outcome = answer(&REGISTER, &call).map_err(|refusal| {
        let meant = meant(&refusal, &call.params, call.ground);
        format!("{} {}", refusal.message, meant.unwrap_or_default())
    })?;
    match &outcome.changes[..] {
        [Change::Put(Record::Instance(record))] => Ok(InstanceRecord::clone(record)),
        changes => panic!("{} changes", changes.len()),
    }
}

#[test]
fn a_registered_instance_runs_at_once_with_what_its_guest_has() {
    let world = World::new();
    let record = registered(
        &world,
        &[
            ("InstanceName", "db"),
            ("Port.Name", "vnet0"),
            ("Address", "192.0.2.7"),
            ("MacAddress", "02:00:00:00:00:07"),
            ("MetadataOptions.HttpTokens", "required"),
        ],
    )
    .unwrap();
    assert_eq!((&*record.name, record.owner), ("db", Owner::Api));
    assert_eq!(
        record.port.as_ref().map(ToString::to_string).as_deref(),
        Some("vnet0")
    );
    assert_eq!(record.state(&Life::NOTHING).as_str(), "running");
    assert_eq!(record.options.state(), "applied");
    assert_eq!(&*record.spec.instance_type, "t3.micro");
    assert_eq!(record.spec.options.http_tokens.as_str(), "required");
    let primary = &record.spec.primary;
    assert_eq!(primary.mac.to_string(), "02:00:00:00:00:07");
    let address = primary.private_ipv4().unwrap();
    assert!(
        primary.subnet.ipv4_cidr.unwrap().contains(address),
        "{address}"
    );
    assert_ne!(
        primary.subnet, world.ground.subnet,
        "it is of another network"
    );
    assert_ne!(primary.security_groups[0], world.ground.group);
    // One of the default network stays there.
    let fields = [("InstanceName", "db"), ("Port.Netns", "blue")];
    let record = registered(&world, &fields).unwrap();
    assert_eq!(record.spec.primary.subnet, world.ground.subnet);
}

#[test]
fn what_cannot_be_registered_is_refused_with_what_can() {
    let world = World::new();
    for (name, fields, words) in [
        (
            "web",
            &[("Port.Name", "vnet0")][..],
            "the name `web` is that of i-0123456789abcdef0",
        ),
        ("a b", &[("Port.Name", "vnet0")], "no space"),
        ("db", &[], "Port.Name, Port.Mac or Port.Netns"),
        (
            "db",
            &[("Port.Name", "a/b")],
            "not the name of a network interface",
        ),
        ("db", &[("Port.Mac", "02:00")], "02:00:00:00:00:01"),
        (
            "db",
            &[("Port.Name", "a"), ("Port.Netns", "b")],
            "Port.Name, Port.Mac or Port.Netns",
        ),
        (
            "db",
            &[("Port.Name", "a"), ("InstanceType", "m5.lrge")],
            "did you mean `m5.large`?",
        ),
        (
            "db",
            &[("Port.Name", "a"), ("ImageId", "ami-12345678")],
            "did you mean `ami-",
        ),
        (
            "db",
            &[("Port.Name", "a"), ("MetadataOptions.HttpTokens", "x")],
            "optional, required",
        ),
    ] {
        let mut fields = fields.to_vec();
        fields.push(("InstanceName", name));
        let refused = registered(&world, &fields)
            .map(|record| record.name)
            .unwrap_err();
        assert!(refused.contains(words), "{fields:?}: {refused}");
    }
}

#[test]
fn an_image_may_have_ids_that_commands_for_ec2_name() {
    const RUN: &str = "Action=RunInstances&MinCount=1&MaxCount=1&ImageId=ami-12c6146b";
    World::new().check(RUN, "InvalidAMIID.NotFound");
    let mut world = World::new().with_image("ami-12c6146b=ubuntu");
    world.check(RUN, "<imageId>ami-12c6146b</imageId>");
    world.check(
        "Action=DescribeImages&ImageId.1=ami-12c6146b",
        "<name>ubuntu</name>",
    );
    for (wrong, why) in [
        ("ubuntu", "is no id of an image"),
        ("ami-12c6146b=", "has a character"),
        ("i-12c6146b", "is no id of an image"),
    ] {
        let refused = wrong.parse::<crate::config::ground::ImageAlias>();
        assert!(refused.unwrap_err().contains(why), "{wrong}");
    }
}

#[test]
fn a_vpc_has_what_terraform_reads_of_it() {
    let mut world = World::new();
    let vpc = world.ground.subnet.vpc_id.to_string();
    let check =
        |world: &mut World, form: &str, part: &str| world.check(&form.replace("VPC", &vpc), part);
    for (attribute, value) in [
        ("enableDnsHostnames", true),
        ("enableDnsSupport", true),
        ("enableNetworkAddressUsageMetrics", false),
    ] {
        let form = format!("Action=DescribeVpcAttribute&VpcId=VPC&Attribute={attribute}");
        let part = format!("<{attribute}><value>{value}</value></{attribute}>");
        check(&mut world, &form, &part);
    }
    check(
        &mut world,
        "Action=DescribeVpcAttribute&VpcId=VPC&Attribute=dns",
        "InvalidParameterValue",
    );
    check(
        &mut world,
        "Action=DescribeVpcAttribute&VpcId=vpc-0&Attribute=enableDnsSupport",
        "InvalidVpcID.NotFound",
    );
    let main = "Filter.1.Name=association.main&Filter.1.Value.1=true&Filter.2.Name=vpc-id&Filter.2.Value.1=VPC";
    check(
        &mut world,
        &format!("Action=DescribeRouteTables&{main}"),
        "<main>true</main>",
    );
    check(
        &mut world,
        "Action=DescribeRouteTables&RouteTableId.1=rtb-0",
        "InvalidRouteTableID.NotFound",
    );
    for filter in ["default-for-az", "defaultForAz"] {
        let form = format!("Action=DescribeSubnets&Filter.1.Name={filter}&Filter.1.Value.1=true");
        check(&mut world, &form, "<defaultForAz>true</defaultForAz>");
        let form = format!("Action=DescribeSubnets&Filter.1.Name={filter}&Filter.1.Value.1=false");
        check(&mut world, &form, "<subnetSet></subnetSet>");
    }
}
