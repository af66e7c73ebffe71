//! What holds whatever a guest sends, without a fuzzer: seeded randomness over templates, and the fuzzers' corpus.

use std::fs;
use std::path::Path;

use imds_tests::properties::{World, check_packet};

/// splitmix64. `IMDS_TEST_SEED` gives another seed than the usual one.
struct Random(u64);

impl Random {
    fn new() -> (Self, u64) {
        let given = std::env::var("IMDS_TEST_SEED").ok();
        let seed = given
            .and_then(|text| text.parse().ok())
            .unwrap_or(20_240_411);
        (Self(seed), seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Runs `check` many times, and names the seed when it fails.
fn with_seed(times: usize, mut check: impl FnMut(&mut Random)) {
    let (mut random, seed) = Random::new();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        (0..times).for_each(|_| check(&mut random));
    }));
    assert!(outcome.is_ok(), "with IMDS_TEST_SEED={seed}");
}

/// Parts that heads are made of, right and wrong ones.
const METHODS: &[&str] = &["GET", "HEAD", "PUT", "OPTIONS", "POST", "get", ""];
const TARGETS: &[&str] = &[
    "/",
    "/latest/api/token",
    "/latest/api/token/",
    "/2021-03-23/api/token",
    "/latest/meta-data/instance-id",
    "/latest/user-data",
    "http://x/latest/meta-data",
    "*",
    "",
];
const ENDS: &[&str] = &[
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    " HTTP/1.1\n",
    " HTTP/2.0\r\n",
    "\r\n",
];
const FIELDS: &[&str] = &[
    "Host: 169.254.169.254\r\n",
    "Connection: keep-alive\r\n",
    "Connection: close\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "X-Forwarded-For: 10.0.0.1\r\n",
    "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n",
    "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n",
    "x-aws-ec2-metadata-token: AQAEA\r\n",
    "A: \u{e9}\r\n",
    "no colon\r\n",
    " folded\r\n",
];

#[test]
fn any_connection_is_answered_as_ec2_would() {
    let world = World::new();
    with_seed(3_000, |random| {
        let mut text = String::new();
        for _ in 0..=random.below(3) {
            text.push_str(random.pick(METHODS));
            text.push(' ');
            text.push_str(random.pick(TARGETS));
            text.push_str(random.pick(ENDS));
            for _ in 0..random.below(5) {
                text.push_str(random.pick(FIELDS));
            }
            text.push_str("\r\n");
        }
        let mut bytes = text.into_bytes();
        for _ in 0..random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.next() as u8;
        }
        world.check_connection(&bytes);
    });
}

/// Parts that paths are made of: names of the tree, and what paths are bent with.
const NAMES: &[&str] = &[
    "latest",
    "2009-04-04",
    "2016-09-02",
    "2024-04-11",
    "meta-data",
    "dynamic",
    "user-data",
    "iam",
    "info",
    "security-credentials",
    "web-role",
    "omega-role",
    "public-keys",
    "0",
    "openssh-key",
    "0=my%20key=0",
    "network",
    "interfaces",
    "macs",
    "06:17:04:d7:26:09",
    "06:ba:5e:ba:11:09",
    "tags",
    "instance",
    "Name",
    "Owner",
    "placement",
    "region",
    "instance-id",
    "api",
    "token",
];
const BENDS: &[&str] = &[
    "/", "//", "/./", "/../", "%2F", "%2f", "%", "%zz", "%00", "?", "#", "\u{e9}", "%C3%A9",
];

#[test]
fn any_path_shows_what_the_listings_name_and_nothing_else() {
    let world = World::new();
    let paths = world.paths();
    with_seed(20_000, |random| {
        let mut parts: Vec<String> = random.pick(&paths).split('/').map(str::to_owned).collect();
        for _ in 0..random.below(3) {
            bend(&mut parts, random);
        }
        world.check_path(&parts.join("/").replace(' ', "%20"));
    });
}

/// Changes a path a little: a part becomes another name, is repeated, loses its case, or gets something odd into it.
fn bend(parts: &mut Vec<String>, random: &mut Random) {
    let at = random.below(parts.len());
    match random.below(6) {
        0 | 1 => parts[at] = random.pick(NAMES).to_owned(),
        2 => parts.push(random.pick(NAMES).to_owned()),
        3 => parts[at] = parts[at].to_uppercase(),
        4 => parts[at].push_str(random.pick(BENDS)),
        _ => parts.insert(at, parts[at].clone()),
    }
}

#[test]
fn any_packet_is_ours_or_foreign_for_good_reasons() {
    const ADDRESS_V4: [u8; 4] = [169, 254, 169, 254];
    const ADDRESS_V6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];
    with_seed(200_000, |random| {
        let mut bytes: Vec<u8> = (0..random.below(100))
            .map(|_| random.next() as u8)
            .collect();
        let address: &[u8] = random.pick(&[&ADDRESS_V4[..], &ADDRESS_V6[..]]);
        // Where sources, destinations and targets are in IPv4, ARP, IPv6 and neighbour discovery.
        let at = [8, 12, 14, 16, 24, 48][random.below(6)];
        if let Some(field) = bytes.get_mut(at..at + address.len()) {
            field.copy_from_slice(address);
        }
        for (at, value) in [(0, 0x45), (0, 0x60), (6, 6), (6, 58), (9, 6)] {
            if random.below(3) == 0
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = value;
            }
        }
        check_packet(&bytes);
    });
}

/// What the fuzzers found worth keeping. It is there for them to begin with, and cheap to look at again.
#[test]
fn the_fuzzers_corpus_holds() {
    let world = World::new();
    let mut n_inputs = 0;
    for_each_input("request_head", |bytes| {
        n_inputs += 1;
        world.check_connection(bytes);
    });
    for_each_input("path", |bytes| {
        n_inputs += 1;
        world.check_path(&String::from_utf8_lossy(bytes));
    });
    for_each_input("packet", |bytes| {
        n_inputs += 1;
        check_packet(bytes);
    });
    assert!(n_inputs > 20, "{n_inputs} inputs");
}

fn for_each_input(target: &str, mut check: impl FnMut(&[u8])) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let corpus = tests.join("../fuzz/corpus").join(target);
    for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{corpus:?}: {error}")) {
        let path = entry.expect("a corpus can be listed").path();
        check(&fs::read(&path).expect("an input can be read"));
    }
}
