//! A client written for EC2 cannot tell: answers to the byte, over real sockets, through the data plane.
//!
//! The requests and the answers are in `tests/fixtures/vectors`, the trees in `tests/fixtures/tree`, both reviewed as text;
//! `cargo xtask bless` writes down what is answered now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use imds_tests::{
    Address, Connection, Guest, GuestBuilder, Host, Place, TOKEN, TOKEN_FIELD, check_vectors,
    eventually, fixture, shown_body, walk,
};

/// The guest of which everything is said that the configuration can say.
fn rich(host: &mut Host) -> Guest {
    host.guest("rich")
        .routed("10.0.0.10")
        .id("i-0a1b2c3d4e5f60718")
        .toml(&fixture::read("instances/rich.toml"))
        .up()
}

/// Lets it hear what a Spot Instance hears before its end.
fn announce(host: &Host) {
    let state_dir = host.state_dir();
    let state_dir = state_dir.to_str().expect("temporary paths are text");
    let interruption = ["spot-interruption", "--at", "2031-01-01T00:00:00Z"];
    for event in [&["rebalance"][..], &interruption] {
        let argv = [&["event", "rich"], event, &["--state-dir", state_dir]].concat();
        let output = host.imds(&argv);
        assert!(output.status.success(), "{output:?}");
    }
}

/// A guest of little note, the same in every run.
fn plain<'host>(host: &'host mut Host, name: &str) -> GuestBuilder<'host> {
    host.guest(name).routed("10.0.0.10")
}

/// A token of a guest that ended before it is returned.
fn expired_token(guest: &Guest) -> String {
    let token = guest.put_token(1);
    let is_refused = || {
        let answer = guest.get_with_token("/", &token);
        (answer.status() == 401).then_some(())
    };
    eventually(
        "the end of a token of one second",
        Duration::from_secs(5),
        is_refused,
    );
    token
}

#[test]
fn answers_are_ec2s_to_the_byte() {
    let Some(mut host) = Host::new() else { return };
    host.seeded();
    let web = plain(&mut host, "web").up();
    let strict = plain(&mut host, "strict").tokens_required().up();
    let off = plain(&mut host, "off")
        .option("http-endpoint", "\"disabled\"")
        .up();
    let rich = rich(&mut host);
    let _daemon = host.start();
    let words = |guest: &Guest| {
        BTreeMap::from([
            ("web-token", web.put_token(21_600)),
            ("strict-token", strict.put_token(21_600)),
            ("rich-token", rich.put_token(21_600)),
            ("expired", expired_token(guest)),
        ])
    };
    let guests = [&web, &strict, &off, &rich];
    check_vectors("vectors/protocol.txt", &guests, &BTreeMap::new());
    check_vectors("vectors/tokens.txt", &guests, &words(&web));
    check_vectors("vectors/acceptance.txt", &guests, &words(&rich));
}

#[test]
fn who_asks_too_often_gets_the_page_of_503() {
    let Some(mut host) = Host::new() else { return };
    let slow = plain(&mut host, "slow")
        .tables("[instance.limits]\nrequests-per-second = 1\n")
        .up();
    let _daemon = host.start();
    check_vectors("vectors/limits.txt", &[&slow], &BTreeMap::new());
}

// --- the tree ---

/// Every path of a version that a client finds by following the listings, asked for on one connection.
fn places_of(guest: &Guest, version: &str) -> Vec<Place> {
    let mut connection = guest.connect();
    walk(version, |path| fetch(&mut connection, path))
}

/// What is at a path that was listed: the same with a slash and without.
fn fetch(connection: &mut Connection, path: &str) -> Option<Vec<u8>> {
    let answer = connection.get(path, &[]);
    let slashed = connection.get(&format!("{path}/"), &[]);
    assert_eq!(
        (slashed.status(), &slashed.body),
        (answer.status(), &answer.body),
        "{path}/"
    );
    if answer.status() == 404 {
        return None;
    }
    let kind = match path.ends_with("/user-data") {
        true => "application/octet-stream",
        false => "text/plain",
    };
    assert_eq!(answer.status(), 200, "{path}: {answer:?}");
    assert_eq!(answer.header("content-type"), Some(kind), "{path}");
    Some(answer.body)
}

fn shown(places: &[Place]) -> String {
    let place = |place: &Place| {
        let slash = if place.is_directory { "/" } else { "" };
        format!("{}{slash}\n{}", place.path, shown_body(&place.body))
    };
    places.iter().map(place).collect()
}

fn check_tree(name: &str, guest: &Guest) {
    let places = places_of(guest, "latest");
    fixture::check(
        name,
        &format!("{}\n{}", fixture::origin(name), shown(&places)),
    );
}

#[test]
fn an_instance_with_everything_shows_everything() {
    let Some(mut host) = Host::new() else { return };
    let rich = rich(host.seeded());
    let _daemon = host.start();
    announce(&host);
    check_tree("tree/rich.txt", &rich);
}

#[test]
fn a_bare_instance_shows_what_every_instance_has() {
    let Some(mut host) = Host::new() else { return };
    let bare = plain(host.seeded(), "bare").up();
    let _daemon = host.start();
    check_tree("tree/bare.txt", &bare);
}

#[test]
fn no_body_ends_its_line_but_a_public_keys() {
    let Some(mut host) = Host::new() else { return };
    let rich = rich(host.seeded());
    let _daemon = host.start();
    for Place { path, body, .. } in places_of(&rich, "latest") {
        let ends_line = path.ends_with("/openssh-key") || path.ends_with("/user-data");
        assert_eq!(body.ends_with(b"\n"), ends_line, "{path}");
        assert!(!body.contains(&b'\r'), "{path}");
    }
}

#[test]
fn head_is_get_without_a_body() {
    let Some(mut host) = Host::new() else { return };
    let rich = rich(host.seeded());
    let _daemon = host.start();
    let mut connection = rich.connect();
    for Place { path, body, .. } in places_of(&rich, "latest") {
        let keep = [("Connection", "keep-alive")];
        let head = connection
            .exchange("HEAD", &path, &keep)
            .expect("an answer");
        let get = connection.exchange("GET", &path, &keep).expect("an answer");
        let without_date = |headers: &[(String, String)]| {
            let mut headers = headers.to_vec();
            headers.retain(|(name, _)| name != "Date");
            headers
        };
        assert_eq!(head.status_line, get.status_line, "{path}");
        assert_eq!(
            without_date(&head.headers),
            without_date(&get.headers),
            "{path}"
        );
        assert_eq!(get.body, body, "{path}");
    }
}

/// Under every version: what is listed is there, and what any version has and this one does not list is not.
#[test]
fn what_a_version_lists_is_there_and_nothing_else_is() {
    let Some(mut host) = Host::new() else { return };
    let rich = rich(host.seeded());
    let _daemon = host.start();
    announce(&host);
    let versions = rich.get("/");
    let versions: Vec<&str> = versions.text().lines().collect();
    assert_eq!(versions.len(), 30);
    let trees: Vec<BTreeSet<String>> = versions
        .iter()
        .map(|version| {
            let root = format!("/{version}");
            let places = places_of(&rich, version).into_iter();
            places
                .map(|place| place.path[root.len()..].to_owned())
                .collect()
        })
        .collect();
    let union: BTreeSet<&String> = trees.iter().flatten().collect();
    let mut connection = rich.connect();
    for (version, tree) in versions.iter().zip(&trees) {
        for path in union.iter().filter(|path| !tree.contains(**path)) {
            let path = format!("/{version}{path}");
            assert_eq!(
                connection.get(&path, &[]).status(),
                404,
                "{path} is not listed"
            );
        }
    }
    check_versions(&versions, &trees);
}

/// Holds what each version adds to the one before against its fixture.
fn check_versions(versions: &[&str], trees: &[BTreeSet<String>]) {
    const NAME: &str = "tree/versions.txt";
    let mut text = fixture::origin(NAME);
    let mut before = BTreeSet::new();
    for (version, tree) in versions.iter().zip(trees) {
        text.push_str(&format!("\n{version}\n"));
        for path in tree.difference(&before).filter(|path| !path.is_empty()) {
            text.push_str(&format!("+ {path}\n"));
        }
        for path in before.difference(tree) {
            text.push_str(&format!("- {path}\n"));
        }
        before.clone_from(tree);
    }
    fixture::check(NAME, &text);
}

/// Where instances may be, with a key of the configuration that says so.
const ZONES: &[(&str, &str, &str)] = &[
    ("virginia", "availability-zone", "\"us-east-1a\""),
    ("ohio", "availability-zone", "\"us-east-2b\""),
    ("local", "availability-zone", "\"us-west-2-lax-1a\""),
    ("wave", "availability-zone", "\"us-east-1-wl1-bos-wlz-1\""),
    ("china", "availability-zone", "\"cn-northwest-1b\""),
    ("gov", "availability-zone", "\"us-gov-west-1a\""),
    ("iso", "availability-zone", "\"us-iso-east-1a\""),
    ("isob", "availability-zone", "\"us-isob-east-1a\""),
    ("isoe", "availability-zone", "\"eu-isoe-west-1a\""),
    ("isof", "availability-zone", "\"us-isof-south-1a\""),
    ("eusc", "availability-zone", "\"eusc-de-east-1a\""),
    ("native", "subnet.ipv6-native", "true"),
];

/// What follows from it.
const ZONE_PATHS: &[&str] = &[
    "hostname",
    "iam/info",
    "local-hostname",
    "local-ipv4",
    "placement/availability-zone",
    "placement/availability-zone-id",
    "placement/region",
    "public-hostname",
    "public-ipv4",
    "services/domain",
    "services/partition",
    "../dynamic/instance-identity/document",
];

#[test]
fn what_follows_from_the_zone_does() {
    const NAME: &str = "tree/zones.txt";
    let Some(mut host) = Host::new() else { return };
    host.seeded();
    let guests: Vec<Guest> = ZONES
        .iter()
        .map(|(name, key, value)| {
            let guest = plain(&mut host, name).key(key, value);
            let guest = match *name {
                "native" => guest.key("ipv6s", "[\"2001:db8::10\"]"),
                _ => guest
                    .key("private-ipv4", "\"10.0.1.6\"")
                    .key("public-ipv4", "\"203.0.113.25\""),
            };
            guest.tables("[instance.role]\nname = \"web-role\"\n").up()
        })
        .collect();
    let _daemon = host.start();
    let mut text = fixture::origin(NAME);
    for guest in guests {
        text.push_str(&format!("\n@ {}\n", guest.name()));
        let mut connection = guest.connect();
        for path in ZONE_PATHS {
            let path = match path.strip_prefix("../") {
                Some(path) => format!("/latest/{path}"),
                None => format!("/latest/meta-data/{path}"),
            };
            let answer = connection.get(&path, &[]);
            let seen = match answer.status() {
                200 => shown_body(&answer.body),
                status => format!("{status}\n"),
            };
            text.push_str(&format!("{path}\n{seen}"));
        }
    }
    fixture::check(NAME, &text);
}

// --- what has no place in a text ---

/// Vector 20: the largest user data there is, of every byte.
#[test]
fn user_data_is_sent_verbatim() {
    let bytes: Vec<u8> = (0..16_384_u32).map(|n| ((n * n) >> 7) as u8).collect();
    assert_eq!(bytes.iter().collect::<BTreeSet<_>>().len(), 256);
    let Some(mut host) = Host::new() else { return };
    let web = plain(&mut host, "web").user_data(&bytes).up();
    let _daemon = host.start();
    for path in ["/latest/user-data", "/1.0/user-data/"] {
        let answer = web.get(path);
        assert_eq!(
            (answer.status(), answer.body.len()),
            (200, 16_384),
            "{path}"
        );
        assert!(answer.body == bytes, "{path} differs");
        assert_eq!(
            answer.header("content-type"),
            Some("application/octet-stream")
        );
    }
}

#[test]
fn a_client_that_is_done_with_sending_gets_its_answers() {
    let Some(mut host) = Host::new() else { return };
    let web = plain(&mut host, "web").up();
    let _daemon = host.start();
    let mut connection = web.connect();
    let keep = "GET /latest/meta-data/instance-id HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
    let requests = keep.repeat(3);
    connection
        .send(requests.as_bytes())
        .expect("the requests go out");
    connection
        .finish_sending()
        .expect("the connection takes an end");
    for _ in 0..3 {
        assert_eq!(connection.receive().expect("an answer").text(), web.id());
    }
    assert_eq!(
        connection.receive_raw(Duration::from_secs(5)),
        (Vec::new(), true)
    );
}

/// Both addresses are one service (A1): the same answers, tokens good for both.
#[test]
fn the_ipv6_address_answers_alike() {
    let Some(mut host) = Host::new() else { return };
    let web = plain(&mut host, "web")
        .ipv6("fd00:1::10")
        .tokens_required()
        .up();
    let closed = plain(&mut host, "closed").up();
    let _daemon = host.start();
    let token = web.connect_to(Address::V6).put_token(60);
    for path in [
        "/",
        "/latest/meta-data/",
        "/latest/meta-data/nothing",
        "/latest/user-data",
    ] {
        let fields = [(TOKEN_FIELD, token.as_str())];
        let v4 = web.connect_to(Address::V4).get(path, &fields);
        let v6 = web.connect_to(Address::V6).get(path, &fields);
        assert_eq!(
            (v4.status_line, v4.body),
            (v6.status_line, v6.body),
            "{path}"
        );
        let names = |headers: &[(String, String)]| {
            headers
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&v4.headers), names(&v6.headers), "{path}");
    }
    assert_eq!(
        web.connect_to(Address::V6)
            .exchange("GET", TOKEN, &[])
            .unwrap()
            .status(),
        405
    );
    assert!(closed.try_connect(Address::V6).is_err(), "off by default");
}
