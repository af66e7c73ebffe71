//! Figures a and b: requests through the whole path, against the same responder without our programs, and against a plain
//! server that always gives the same answer.
//!
//! ```text
//!   guest ──veth── host (programs) ──veth── responder's namespace: responder :80     whole path
//!   bare  ───────────────veth────────────── responder's namespace: responder :80     bare pair
//!   bare  ───────────────veth────────────── responder's namespace: plain     :8080   plain server
//! ```
//!
//! There are two plain servers, so that it can be told where the time goes: the one that figure b is about answers with the
//! header fields that hyper writes by itself, the other with those that EC2 has. All answers are of the same length.
//!
//! On the bare pair the client itself names the guest's tag address, so the responder takes it for the same guest. That
//! works because the bench is root and puts a cable of its own into the responder's namespace; no guest can.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use imds_ebpf::abi::slot;
use imds_tests::{Address, Daemon, Guest, Host, INSTANCE_ID, Namespace, TOKEN_FIELD};

use crate::{
    cpu::{self, Cpus},
    load::{self, Call, Connections, Turn},
    options::Figure,
    plain::{FixedAnswer, PlainServer},
    results::{Aim, Row, Unit},
    statistics::{median, ratios},
    tell,
};

const PATH_AIM: Aim = Aim::AtLeast {
    aim: 0.95,
    floor: Some(0.9),
};
const PLAIN_AIM: Aim = Aim::AtLeast {
    aim: 0.85,
    floor: None,
};
/// EC2's limit.
const USER_DATA_BYTES: usize = 16 << 10;
const USER_DATA: &str = "/latest/user-data";
/// The longest document of the tree.
const RSA2048: &str = "/latest/dynamic/instance-identity/rsa2048";
/// The client's address on the bare pair, and the gateway that it sends everything to.
const BARE_CLIENT: &str = "10.0.1.10";
const BARE_GATEWAY: &str = "192.0.2.1";
/// The plain servers' first port.
const PLAIN_PORT: u16 = 8080;

/// How long it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) rounds: u32,
    pub(crate) turn: Duration,
}

/// What is asked for, and how.
struct Case {
    what: &'static str,
    path: &'static str,
    connections: Connections,
}

const CASES: &[Case] = &[
    Case {
        what: "instance-id, 1 connection kept",
        path: INSTANCE_ID,
        connections: Connections::Kept(1),
    },
    Case {
        what: "instance-id, 16 connections kept",
        path: INSTANCE_ID,
        connections: Connections::Kept(16),
    },
    Case {
        what: "instance-id, a connection a request",
        path: INSTANCE_ID,
        connections: Connections::OneARequest,
    },
    Case {
        what: "rsa2048, 1 connection kept",
        path: RSA2048,
        connections: Connections::Kept(1),
    },
    Case {
        what: "rsa2048, 16 connections kept",
        path: RSA2048,
        connections: Connections::Kept(16),
    },
    Case {
        what: "16 KB user data, 1 connection kept",
        path: USER_DATA,
        connections: Connections::Kept(1),
    },
    Case {
        what: "16 KB user data, 16 connections kept",
        path: USER_DATA,
        connections: Connections::Kept(16),
    },
];

impl Case {
    /// What hyper adds to an answer after which the connection ends.
    fn closing_bytes(&self) -> usize {
        match self.connections {
            Connections::Kept(_) => 0,
            Connections::OneARequest => "connection: close\r\n".len(),
        }
    }
}

/// Measures; `figures` are those of the two that are wanted, `words` what the names of the wanted cases contain.
pub(crate) fn measure(
    figures: &[Figure],
    words: &str,
    extent: Extent,
    cpus: &Cpus,
) -> anyhow::Result<Vec<Row>> {
    let cases: Vec<&Case> = CASES
        .iter()
        .filter(|case| case.what.contains(words))
        .collect();
    ensure!(!cases.is_empty(), "no case is called {words:?}");
    // What is started from here on stays there, the daemon and its responder included.
    cpu::pin(cpus.server)?;
    let stage = Stage::build()?;
    let mut rows = Vec::new();
    for (number, case) in cases.into_iter().enumerate() {
        tell(format_args!(
            "a, b: {} ({} rounds of each contestant)",
            case.what, extent.rounds
        ));
        let port = PLAIN_PORT + 2 * u16::try_from(number).context("few cases")?;
        rows.extend(stage.play(case, port, figures, extent, cpus)?);
    }
    cpus.release()?;
    // As the table has them: figure by figure.
    rows.sort_by_key(|row| row.figure == Figure::B);
    Ok(rows)
}

/// Everything in place. Fields are dropped from the top, so the daemon ends before its host goes.
struct Stage {
    _daemon: Daemon,
    guest: Guest,
    /// The client's end of the bare pair.
    bare: Namespace,
    responder: Namespace,
    /// The guest's, which the whole path writes into packets and the bare client names itself.
    tag: Ipv4Addr,
    token: String,
    _host: Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    WholePath,
    BarePair,
    Plain,
    PlainWithFields,
}

impl Who {
    const fn name(self) -> &'static str {
        match self {
            Self::WholePath => "whole path",
            Self::BarePair => "bare pair",
            Self::Plain => "plain server",
            Self::PlainWithFields => "plain, EC2's fields",
        }
    }
}

/// One of those that are compared: a client's place, and what it calls.
struct Contestant<'a> {
    who: Who,
    client: &'a Namespace,
    call: Call,
    /// It ends with its contestant.
    _server: Option<PlainServer>,
}

impl Stage {
    fn build() -> anyhow::Result<Self> {
        // The harness switches both limits off for its hosts.
        let mut host = Host::new().context("network namespaces take root and `ip`")?;
        let user_data: Vec<u8> = (b'a'..=b'z').cycle().take(USER_DATA_BYTES).collect();
        let guest = host
            .guest("bench")
            .routed("10.0.0.10")
            .tokens_required()
            .user_data(&user_data)
            .up();
        let daemon = host.start();
        let token = guest.put_token(21_600);
        let id = guest.get_with_token(INSTANCE_ID, &token);
        ensure!(id.text() == guest.id(), "the guest is told {id:?}");

        let status = host.status();
        let slot = status["ports"][0]["slot"]
            .as_u64()
            .context("a slot in imds status")?;
        let tag = Ipv4Addr::from(slot::tag_v4(
            u32::try_from(slot).context("a slot is a small number")?,
        ));
        let responder = Namespace::of(daemon.responder_pid());
        let bare = Namespace::new();
        lay_bare_pair(&responder, &bare);
        Ok(Self {
            _daemon: daemon,
            guest,
            bare,
            responder,
            tag,
            token,
            _host: host,
        })
    }

    fn play(
        &self,
        case: &Case,
        port: u16,
        figures: &[Figure],
        extent: Extent,
        cpus: &Cpus,
    ) -> anyhow::Result<Vec<Row>> {
        let mut contestants = vec![self.whole_path(case)?];
        if figures.contains(&Figure::A) {
            contestants.push(self.bare_pair(case)?);
        }
        if figures.contains(&Figure::B) {
            let asked = &contestants[0].call;
            let own = self
                .guest
                .namespace()
                .enter(|| load::first_answer(asked.to, &asked.request))?;
            let filled_up = FixedAnswer::filled_up(own.len() - case.closing_bytes());
            let like = FixedAnswer::like(&own);
            contestants.push(self.plain(Who::Plain, case, port, &filled_up, cpus)?);
            contestants.push(self.plain(Who::PlainWithFields, case, port + 1, &like, cpus)?);
        }
        for rival in &contestants[1..] {
            let (own, other) = (contestants[0].call.answer_bytes, rival.call.answer_bytes);
            let name = rival.who.name();
            ensure!(own == other, "answers of {own} and, {name}, {other} bytes");
        }
        let played = take_turns(&contestants, case.connections, extent, cpus)?;
        Ok(rows(case, &played))
    }

    fn whole_path(&self, case: &Case) -> anyhow::Result<Contestant<'_>> {
        let (client, to) = (self.guest.namespace(), Address::V4.socket());
        self.contestant(Who::WholePath, client, to, case)
    }

    fn bare_pair(&self, case: &Case) -> anyhow::Result<Contestant<'_>> {
        self.contestant(Who::BarePair, &self.bare, (self.tag, 80).into(), case)
    }

    fn plain(
        &self,
        who: Who,
        case: &Case,
        port: u16,
        answer: &FixedAnswer,
        cpus: &Cpus,
    ) -> anyhow::Result<Contestant<'_>> {
        let listen = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        let listener = self
            .responder
            .enter(listen)
            .context("listen for the plain server")?;
        let server = PlainServer::start(listener, cpus.server, answer)?;
        let contestant = self.contestant(who, &self.bare, (self.tag, port).into(), case)?;
        Ok(Contestant {
            _server: Some(server),
            ..contestant
        })
    }

    /// Makes sure that the contestant answers, and how long its answers are.
    fn contestant<'a>(
        &self,
        who: Who,
        client: &'a Namespace,
        to: SocketAddr,
        case: &Case,
    ) -> anyhow::Result<Contestant<'a>> {
        let (name, request) = (who.name(), request(case, &self.token));
        let answer = client
            .enter(|| load::first_answer(to, &request))
            .with_context(|| format!("ask the {name} for {}", case.path))?;
        if matches!(who, Who::WholePath | Who::BarePair) && case.path == INSTANCE_ID {
            let is_own = answer.ends_with(self.guest.id().as_bytes());
            ensure!(is_own, "the {name} answers for somebody else");
        }
        let answer_bytes = answer.len();
        let call = Call {
            to,
            request,
            answer_bytes,
        };
        Ok(Contestant {
            who,
            client,
            call,
            _server: None,
        })
    }
}

/// A cable from the client straight into the responder's namespace, with the offers (MSS) of the namespace's own way out.
fn lay_bare_pair(responder: &Namespace, bare: &Namespace) {
    // Tags are loopback addresses, and here they are somewhere else.
    bare.ip("address delete 127.0.0.1/8 dev lo");
    bare.sysctl("net/ipv4/conf/all/route_localnet", "1");
    responder.ip(&format!(
        "link add bare0 mtu 9216 type veth peer name eth0 mtu 1500 netns {}\nlink set bare0 up",
        bare.path()
    ));
    responder.sysctl("net/ipv4/conf/bare0/rp_filter", "0");
    responder.sysctl("net/ipv4/conf/bare0/route_localnet", "1");
    bare.ip("link set eth0 up");
    let (server_mac, client_mac) = (responder.mac("bare0"), bare.mac("eth0"));
    responder.ip(&format!(
        "neighbour add {BARE_CLIENT} lladdr {client_mac} dev bare0 nud permanent\n\
         route add {BARE_CLIENT}/32 dev bare0 advmss 1220"
    ));
    bare.ip(&format!(
        "address add {BARE_CLIENT}/32 dev eth0\n\
         neighbour add {BARE_GATEWAY} lladdr {server_mac} dev eth0 nud permanent\n\
         route add default via {BARE_GATEWAY} dev eth0 onlink src {BARE_CLIENT}"
    ));
}

/// As curl would send it.
fn request(case: &Case, token: &str) -> Vec<u8> {
    let connection = match case.connections {
        Connections::Kept(_) => "keep-alive",
        Connections::OneARequest => "close",
    };
    format!(
        "GET {} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: imds-bench\r\nAccept: */*\r\n\
         {TOKEN_FIELD}: {token}\r\nConnection: {connection}\r\n\r\n",
        case.path
    )
    .into_bytes()
}

/// The turns of one contestant.
struct Played {
    who: Who,
    turns: Vec<Turn>,
}

/// Rounds of A B C A B C …, so that whatever the machine does meanwhile it does to all.
fn take_turns(
    contestants: &[Contestant<'_>],
    connections: Connections,
    extent: Extent,
    cpus: &Cpus,
) -> anyhow::Result<Vec<Played>> {
    let mut played: Vec<Played> = contestants
        .iter()
        .map(|contestant| Played {
            who: contestant.who,
            turns: Vec::new(),
        })
        .collect();
    for _ in 0..extent.rounds {
        for (contestant, played) in contestants.iter().zip(&mut played) {
            let turn = contestant.client.enter(|| {
                cpu::pin(cpus.client)?;
                let turn = load::turn(&contestant.call, connections, extent.turn)?;
                Ok::<_, anyhow::Error>(turn)
            });
            let turn = turn.with_context(|| format!("a turn of the {}", played.who.name()))?;
            played.turns.push(turn);
        }
    }
    Ok(played)
}

/// A row for each figure that was played for.
fn rows(case: &Case, played: &[Played]) -> Vec<Row> {
    let of = |who| played.iter().find(|played| played.who == who);
    let Some(whole) = of(Who::WholePath) else {
        return Vec::new();
    };
    let compare = |figure, aim, rival: &Played| {
        let rounds = ratios(&whole.rates(), &rival.rates());
        let row = Row::of_rounds(figure, case.what.to_owned(), &rounds, Unit::Ratio).aimed(aim);
        rival.told_in(whole.told_in(row))
    };
    let path = of(Who::BarePair).map(|bare| compare(Figure::A, PATH_AIM, bare));
    let plain = of(Who::Plain).map(|plain| {
        let row = compare(Figure::B, PLAIN_AIM, plain);
        match of(Who::PlainWithFields) {
            Some(with_fields) => with_fields.told_in(row),
            None => row,
        }
    });
    path.into_iter().chain(plain).collect()
}

impl Played {
    fn rates(&self) -> Vec<f64> {
        self.each(|turn| turn.requests_per_second)
    }

    /// The row with what this contestant did.
    fn told_in(&self, row: Row) -> Row {
        let summary = [
            ("requests_per_second", median(&self.rates())),
            ("p50_us", median(&self.each(|turn| turn.p50_us))),
            ("p99_us", median(&self.each(|turn| turn.p99_us))),
        ];
        row.with(self.who.name(), &summary)
    }

    fn each(&self, value: impl Fn(&Turn) -> f64) -> Vec<f64> {
        self.turns.iter().map(value).collect()
    }
}
