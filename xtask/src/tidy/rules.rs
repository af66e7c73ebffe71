//! The rules, as data: to add one, add an element. A test holds each rule against its own samples.

/// Something that must not be written in some files.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: &'static str,
    /// What would be lost; said with each breach.
    pub(super) why: &'static str,
    /// Starts of paths, relative to the checkout's top; after a `*`, an end.
    pub(super) within: &'static [&'static str],
    /// The same, for what is let be.
    pub(super) except: &'static [&'static str],
    /// Whether a file's unit tests may do it.
    pub(super) spares_tests: bool,
    pub(super) forbidden: Forbidden,
    /// A file that the rule covers, and texts of it: one that breaks the rule, one that does not.
    #[cfg_attr(not(test), expect(dead_code, reason = "samples are for the tests"))]
    pub(super) sample_path: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "samples are for the tests"))]
    pub(super) bad: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "samples are for the tests"))]
    pub(super) good: &'static str,
}

/// What must not be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Forbidden {
    /// Any of these words, comments aside.
    Words(&'static [&'static str]),
    /// Any of these words, also in comments.
    Marks(&'static [&'static str]),
    /// An attribute that starts so, without this word in it.
    Attribute {
        start: &'static str,
        without: &'static str,
    },
    /// A file without this text.
    Absence(&'static str),
}

impl Rule {
    pub(super) fn covers(&self, path: &str) -> bool {
        let is_one_of = |places: &[&str]| {
            let mut places = places.iter();
            places.any(|place| match place.strip_prefix('*') {
                Some(end) => path.ends_with(end),
                None => path.starts_with(place),
            })
        };
        is_one_of(self.within) && !is_one_of(self.except)
    }
}

const SOURCES: &[&str] = &[
    "bench/",
    "fuzz/",
    "imds-ebpf/",
    "imds-user/",
    "tests/",
    "xtask/",
];
/// The files that must spell what they look for.
const THIS: &[&str] = &["xtask/src/tidy"];

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "aya is known to the data plane alone",
        why: "what a guest gets is decided without the kernel, and tested without it",
        within: &["imds-user/src/"],
        except: &["imds-user/src/dataplane"],
        spares_tests: true,
        forbidden: Forbidden::Words(&["aya", "aya_log", "aya_obj"]),
        sample_path: "imds-user/src/daemon.rs",
        bad: "use aya::maps::HashMap;",
        good: "//! Nothing here knows aya.\nuse crate::dataplane::Slots;",
    },
    Rule {
        name: "SQL is known to one store alone",
        why: "another one, which a fleet shares, has keys and values and no SQL",
        within: &["imds-user/src/"],
        except: &["imds-user/src/store/sqlite", "imds-user/src/store/tests.rs"],
        spares_tests: true,
        forbidden: Forbidden::Words(&["rusqlite"]),
        sample_path: "imds-user/src/daemon.rs",
        bad: "use rusqlite::Connection;",
        good: "//! Nothing here knows rusqlite.\nuse crate::store::Store;",
    },
    Rule {
        name: "the middle reads no clock and does no input or output",
        why: "a rule that needs a clock, file or socket cannot be tested as a table",
        within: &[
            "imds-user/src/api/",
            "imds-user/src/credentials/output.rs",
            "imds-user/src/credentials/schedule.rs",
            "imds-user/src/credentials/source.rs",
            "imds-user/src/http/head.rs",
            "imds-user/src/http/respond",
            "imds-user/src/http/status.rs",
            "imds-user/src/identity/",
            "imds-user/src/instance",
            "imds-user/src/launch/plan.rs",
            "imds-user/src/life",
            "imds-user/src/metadata",
            "imds-user/src/store/",
            "imds-user/src/token",
        ],
        except: &[
            "imds-user/src/store/handle.rs",
            "imds-user/src/store/sqlite",
            "imds-user/src/store/tests.rs",
            "imds-user/src/api/attend.rs",
            "imds-user/src/api/server.rs",
            "imds-user/src/api/service.rs",
            "imds-user/src/api/tls.rs",
            "imds-user/src/identity/disk.rs",
            "imds-user/src/identity/signer.rs",
        ],
        spares_tests: true,
        forbidden: Forbidden::Words(&[
            "Instant::now",
            "SystemTime::now",
            "std::fs",
            "TcpListener",
            "TcpStream",
            "tokio",
        ]),
        sample_path: "imds-user/src/token/issue.rs",
        bad: "let now = SystemTime::now();",
        good: "pub fn issue(now: SystemTime) {} // never SystemTime::now()\n#[cfg(test)]\nmod tests { use std::fs; }",
    },
    Rule {
        name: "no signing key is in the responder",
        why: "it reads what guests send; who breaks into it must not be able to sign",
        within: &[
            "imds-user/src/http",
            "imds-user/src/metadata",
            "imds-user/src/responder/confine.rs",
            "imds-user/src/responder/process.rs",
            "imds-user/src/responder/protocol.rs",
        ],
        except: &[],
        spares_tests: true,
        forbidden: Forbidden::Words(&["Keys", "Signer", "identity::disk", "identity::signer"]),
        sample_path: "imds-user/src/responder/process.rs",
        bad: "use crate::identity::{Keys, Signatures};",
        good: "use crate::{identity::Signatures, token::TokenKeys}; // no Keys",
    },
    Rule {
        name: "every crate inherits the workspace's lints",
        why: "a lint that a crate does not inherit is not on there, and nobody notices",
        within: &["*/Cargo.toml"],
        except: &[],
        spares_tests: false,
        forbidden: Forbidden::Absence("[lints]\nworkspace = true"),
        sample_path: "xtask/Cargo.toml",
        bad: "[package]\nname = \"xtask\"\n",
        good: "[package]\nname = \"xtask\"\n\n[lints]\nworkspace = true\n",
    },
    Rule {
        name: "nothing is left for later",
        why: "what is not done is an issue, not a mark in the code; a test that is switched off proves nothing",
        within: SOURCES,
        except: THIS,
        spares_tests: false,
        forbidden: Forbidden::Words(&["todo!", "unimplemented!", "#[ignore"]),
        sample_path: "imds-user/src/daemon.rs",
        bad: "fn reload() { todo!() }",
        good: "fn reload() { self.registry.swap(next) }",
    },
    Rule {
        name: "no comment asks for work",
        why: "what is not done is an issue, where somebody looks for it",
        within: SOURCES,
        except: THIS,
        spares_tests: false,
        forbidden: Forbidden::Marks(&["FIXME", "TODO", "XXX"]),
        sample_path: "imds-user/src/daemon.rs",
        bad: "// FIXME: reload",
        good: "// Reloading keeps what did not change.",
    },
    Rule {
        name: "unsafe code is excepted with a reason",
        why: "a reader must see what cannot be done safely, and why",
        within: SOURCES,
        except: THIS,
        spares_tests: false,
        forbidden: Forbidden::Attribute {
            start: "expect(unsafe_code",
            without: "reason",
        },
        sample_path: "imds-user/src/netns/enter.rs",
        bad: "#[expect(unsafe_code)]\nfn enter() {} // reason",
        good: "#[expect(\n    unsafe_code,\n    reason = \"setns has no safe wrapper\"\n)]\nfn enter() {}",
    },
    Rule {
        name: "unsafe code is expected, not allowed",
        why: "an exception that is no longer needed is found by the compiler only if it was expected",
        within: SOURCES,
        except: THIS,
        spares_tests: false,
        forbidden: Forbidden::Attribute {
            start: "allow(unsafe_code",
            without: "unsafe code is never allowed",
        },
        sample_path: "imds-ebpf/src/maps.rs",
        bad: "#![allow(unsafe_code)]",
        good: "#![expect(unsafe_code, reason = \"maps are\")]",
    },
];
