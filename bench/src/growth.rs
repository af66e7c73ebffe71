//! Figure d: what many instances cost. Their veth pairs are there before the clock starts, in namespaces of their own.

use anyhow::{Context as _, ensure};
use imds_tests::{
    Address, Connection, Host, INSTANCE_ID, InstanceText, Namespace, ProcessStatus, TOKEN_FIELD,
};

use crate::{
    options::Figure,
    results::{Aim, Row, Unit},
    statistics::median,
    tell,
};

const START_AIM: Aim = Aim::Below { aim: 5.0 };
const MEMORY_AIM: Aim = Aim::Below { aim: 4096.0 };

/// How long it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// How many instances, fewest first. The aims are about the last.
    pub(crate) counts: [u32; 3],
    /// How often each is started.
    pub(crate) starts: u32,
}

/// Measures.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let mut measured = Vec::new();
    for count in extent.counts {
        measured.push(Measured::of(count, extent.starts)?);
    }
    let [_, few, many] = &measured[..] else {
        anyhow::bail!("three counts");
    };
    let added = f64::from(many.count - few.count);
    let grown: Vec<f64> = many
        .starts
        .iter()
        .map(|start| (start.kib() - median(&few.each(Start::kib))) * 1024.0 / added)
        .collect();
    let what = format!("memory an instance, {} to {}", few.count, many.count);
    let memory = Row::of_rounds(Figure::D, what, &grown, Unit::Bytes).aimed(MEMORY_AIM);
    let mut rows: Vec<Row> = measured.iter().map(Measured::row).collect();
    if let Some(last) = rows.pop() {
        rows.push(last.aimed(START_AIM));
    }
    rows.push(memory);
    Ok(rows)
}

/// Starts with this many instances.
struct Measured {
    count: u32,
    starts: Vec<Start>,
}

struct Start {
    seconds: f64,
    daemon_kib: f64,
    responder_kib: f64,
}

impl Start {
    fn kib(&self) -> f64 {
        self.daemon_kib + self.responder_kib
    }
}

impl Measured {
    fn of(count: u32, starts: u32) -> anyhow::Result<Self> {
        let mut measured = Self {
            count,
            starts: Vec::new(),
        };
        for number in 1..=starts {
            tell(format_args!(
                "d: start {number} of {starts} with {count} instances"
            ));
            // New interfaces each time: the first filter of an interface takes the kernel longer than the next.
            let start = Town::build(count)?.start()?;
            measured.starts.push(start);
        }
        Ok(measured)
    }

    fn each(&self, value: impl Fn(&Start) -> f64) -> Vec<f64> {
        self.starts.iter().map(value).collect()
    }

    fn row(&self) -> Row {
        let what = match self.count {
            1 => "start with 1 instance".to_owned(),
            count => format!("start with {count} instances"),
        };
        let memory = [
            ("daemon_kib", median(&self.each(|start| start.daemon_kib))),
            (
                "responder_kib",
                median(&self.each(|start| start.responder_kib)),
            ),
        ];
        Row::of_rounds(
            Figure::D,
            what,
            &self.each(|start| start.seconds),
            Unit::Seconds,
        )
        .with("resident", &memory)
    }
}

/// A host with its guests, a few of whom can be asked.
pub(crate) struct Town {
    pub(crate) host: Host,
    count: u32,
    /// The other ends of all other pairs.
    _far_ends: Namespace,
    samples: Vec<Sample>,
}

/// A guest with a namespace of its own, and the id that it must be told.
struct Sample {
    namespace: Namespace,
    id: String,
}

impl Town {
    pub(crate) fn build(count: u32) -> anyhow::Result<Self> {
        let mut host = Host::new().context("network namespaces take root and `ip`")?;
        let far_ends = Namespace::new();
        for namespace in [host.namespace(), &far_ends] {
            // Ten thousand interfaces that come up would announce themselves, which is not what is measured.
            namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        let mut samples = Vec::new();
        let mut lines = String::new();
        for number in 0..count {
            let id = format!("i-{:017x}", number + 1);
            let port = format!("port{number}");
            let is_sample = [0, count / 2, count - 1].contains(&number);
            let (peer, netns) = if is_sample {
                let namespace = Namespace::new();
                let path = namespace.path();
                let id = id.clone();
                samples.push(Sample { namespace, id });
                ("eth0".to_owned(), path)
            } else {
                (format!("far{number}"), far_ends.path())
            };
            lines.push_str(&format!(
                "link add {port} up type veth peer name {peer} netns {netns}\n"
            ));
            host.add_instance(instance(number, &port, &id));
        }
        host.namespace().ip(&lines);
        for sample in &samples {
            sample.namespace.ip("link set eth0 up\n\
                 address add 10.0.0.10/32 dev eth0\n\
                 route add 169.254.169.254/32 dev eth0 src 10.0.0.10");
        }
        Ok(Self {
            host,
            count,
            _far_ends: far_ends,
            samples,
        })
    }

    /// Makes sure that all are served.
    pub(crate) fn check_served(&self) -> anyhow::Result<()> {
        for sample in &self.samples {
            sample.ask()?;
        }
        let status = self.host.status();
        let served = status["ports"].as_array().map_or(0, Vec::len);
        ensure!(
            served == self.count as usize,
            "{served} of {} are served",
            self.count
        );
        Ok(())
    }

    /// Starts the daemon, makes sure that all are served, and stops it.
    fn start(&self) -> anyhow::Result<Start> {
        let daemon = self.host.start();
        let seconds = daemon.ready_after().as_secs_f64();
        self.check_served()?;
        let start = Start {
            seconds,
            daemon_kib: ProcessStatus::of(daemon.pid()).resident_kib() as f64,
            responder_kib: ProcessStatus::of(daemon.responder_pid()).resident_kib() as f64,
        };
        daemon.stop();
        Ok(start)
    }
}

impl Sample {
    fn ask(&self) -> anyhow::Result<()> {
        let told = self.namespace.enter(|| -> std::io::Result<String> {
            let mut connection = Connection::open(Address::V4)?;
            let token = connection.put_token(60);
            Ok(connection
                .get(INSTANCE_ID, &[(TOKEN_FIELD, &token)])
                .text()
                .to_owned())
        })?;
        ensure!(told == self.id, "{} is told that it is {told}", self.id);
        Ok(())
    }
}

/// As an operator would write it.
fn instance(number: u32, port: &str, id: &str) -> InstanceText {
    let name = format!("guest-{number}");
    let mut text = InstanceText::new(&name, port, id);
    text.key("tags.Name", &format!("{name:?}"));
    text.option("http-tokens", "\"required\"");
    text
}
