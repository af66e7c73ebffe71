//! What was done to whom when, and on which disturbance's account a lost request goes. Pure: moments are arguments.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Something that is done to the service while guests ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The daemon is stopped by its supervisor and started again.
    Restart,
    /// The daemon is stopped, and another version started.
    Upgrade,
    /// The daemon is killed, and started again by its supervisor.
    DaemonKilled,
    /// The daemon is killed while it starts, several times.
    StartKilled,
    /// The daemon is held up for a while.
    DaemonPaused,
    /// Other options and tags, by SIGHUP.
    Reload,
    /// A broken file, by SIGHUP, and the right one again.
    BrokenReload,
    /// The daemon may open no file and no socket more for a while.
    DaemonDescriptors,
    /// The same for the responder.
    ResponderDescriptors,
    /// The state disk is full: commands, restarts and crashes meanwhile.
    FullDisk,
    /// The uplink goes down, its routes with it, and comes back.
    UplinkFlaps,
    /// The responder is killed.
    ResponderKilled,
    /// The responder is stopped by a signal: it hangs.
    ResponderHangs,
    /// Daemon and responder are killed.
    BothKilled,
    /// The responder is killed while the state disk is full.
    FullDiskResponderKilled,
    /// `imds instance stop` and `start`.
    StopAndStart,
    /// Two instances change their ports in the configuration.
    PortsExchanged,
    /// One guest holds as many connections as it gets.
    Greed,
    /// Notifications are lost, and among them an interface's end.
    LostNotifications,
    /// An interface is removed and made anew.
    Recreated,
    /// An interface is renamed, and renamed back.
    Renamed,
    /// Two interfaces change their names.
    NamesExchanged,
    /// Two guests' interfaces are removed and made anew, each with the other's name.
    RecreatedExchanged,
    /// A cable is pulled and put back.
    Unplugged,
}

impl Kind {
    /// All of them, in the order of a report: those of the service first.
    pub const ALL: [Self; 24] = [
        Self::Restart,
        Self::Upgrade,
        Self::DaemonKilled,
        Self::StartKilled,
        Self::DaemonPaused,
        Self::Reload,
        Self::BrokenReload,
        Self::DaemonDescriptors,
        Self::ResponderDescriptors,
        Self::FullDisk,
        Self::UplinkFlaps,
        Self::ResponderKilled,
        Self::ResponderHangs,
        Self::BothKilled,
        Self::FullDiskResponderKilled,
        Self::StopAndStart,
        Self::PortsExchanged,
        Self::Greed,
        Self::LostNotifications,
        Self::Recreated,
        Self::Renamed,
        Self::NamesExchanged,
        Self::RecreatedExchanged,
        Self::Unplugged,
    ];

    const N_OF_SERVICE: usize = 19;

    /// Those that happen to the daemon, the responder and what they have.
    pub const OF_SERVICE: &[Self] = Self::ALL.split_at(Self::N_OF_SERVICE).0;

    /// Those that happen to interfaces alone, at the same time as the others.
    pub const OF_CABLES: &[Self] = Self::ALL.split_at(Self::N_OF_SERVICE).1;

    /// What a report calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Restart => "planned restart",
            Self::Upgrade => "upgrade",
            Self::DaemonKilled => "daemon killed",
            Self::StartKilled => "killed while it starts",
            Self::DaemonPaused => "daemon held up",
            Self::Reload => "reload, other options",
            Self::BrokenReload => "reload, broken file",
            Self::DaemonDescriptors => "daemon without descriptors",
            Self::ResponderDescriptors => "responder without descriptors",
            Self::FullDisk => "state disk full",
            Self::UplinkFlaps => "uplink down and up",
            Self::ResponderKilled => "responder killed",
            Self::ResponderHangs => "responder hangs",
            Self::BothKilled => "both killed",
            Self::FullDiskResponderKilled => "responder killed, disk full",
            Self::StopAndStart => "instance stopped and started",
            Self::PortsExchanged => "instances exchange ports",
            Self::Greed => "a guest takes all connections",
            Self::LostNotifications => "netlink messages lost",
            Self::Recreated => "interface made anew",
            Self::Renamed => "interface renamed",
            Self::NamesExchanged => "interfaces exchange names",
            Self::RecreatedExchanged => "made anew with exchanged names",
            Self::Unplugged => "cable pulled",
        }
    }

    /// Whether requests of the guests that it touches may be lost. Of all others never.
    #[must_use]
    pub const fn may_cost(self) -> bool {
        match self {
            Self::Restart
            | Self::Upgrade
            | Self::DaemonKilled
            | Self::StartKilled
            | Self::DaemonPaused
            | Self::Reload
            | Self::BrokenReload
            | Self::DaemonDescriptors
            | Self::ResponderDescriptors
            | Self::FullDisk
            | Self::UplinkFlaps => false,
            Self::ResponderKilled
            | Self::ResponderHangs
            | Self::BothKilled
            | Self::FullDiskResponderKilled
            | Self::StopAndStart
            | Self::PortsExchanged
            | Self::Greed
            | Self::LostNotifications
            | Self::Recreated
            | Self::Renamed
            | Self::NamesExchanged
            | Self::RecreatedExchanged
            | Self::Unplugged => true,
        }
    }
}

/// Whom a disturbance touches.
#[derive(Clone, Debug)]
pub enum Touched {
    /// Every guest.
    All,
    /// These, by number.
    Some(Vec<usize>),
}

impl Touched {
    fn includes(&self, guest: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(guests) => guests.contains(&guest),
        }
    }
}

#[derive(Debug)]
struct Window {
    kind: Kind,
    touched: Touched,
    began: Instant,
    /// None while it goes on.
    ended: Option<Instant>,
}

impl Window {
    fn is_met_by(&self, guest: usize, since: Instant, until: Instant) -> bool {
        self.touched.includes(guest)
            && self.began <= until
            && self.ended.is_none_or(|ended| since <= ended)
    }
}

/// Which disturbance a request met, if any.
pub type Account = Option<Kind>;

/// The book of disturbances.
#[derive(Debug, Default)]
pub struct Ledger {
    windows: Mutex<Vec<Window>>,
}

impl Ledger {
    /// Notes that something begins; returns its number.
    ///
    /// # Panics
    /// When a thread panicked with it.
    pub fn begin(&self, kind: Kind, touched: Touched, now: Instant) -> usize {
        let mut windows = self.windows.lock().expect("nobody panics with it");
        windows.push(Window {
            kind,
            touched,
            began: now,
            ended: None,
        });
        windows.len() - 1
    }

    /// Notes that it is over, and everybody whom it touched served again.
    ///
    /// # Panics
    /// When a thread panicked with it.
    pub fn end(&self, number: usize, now: Instant) {
        self.windows.lock().expect("nobody panics with it")[number].ended = Some(now);
    }

    /// How often each was begun.
    ///
    /// # Panics
    /// When a thread panicked with it.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        let mut counts = BTreeMap::new();
        for window in self.windows.lock().expect("nobody panics with it").iter() {
            *counts.entry(window.kind).or_default() += 1;
        }
        counts
    }

    /// Whether what happened to a guest between two moments met a disturbance of this kind.
    ///
    /// # Panics
    /// When a thread panicked with it.
    #[must_use]
    pub fn meets(&self, kind: Kind, guest: usize, since: Instant, until: Instant) -> bool {
        let windows = self.windows.lock().expect("nobody panics with it");
        let mut windows = windows.iter().filter(|window| window.kind == kind);
        windows.any(|window| window.is_met_by(guest, since, until))
    }

    /// On whose account something goes that happened to a guest between two moments: on that of a disturbance which may
    /// cost it something if there was one, else of another one, else of none. Of several it is the last that began.
    ///
    /// # Panics
    /// When a thread panicked with it.
    #[must_use]
    pub fn account(&self, guest: usize, since: Instant, until: Instant) -> Account {
        let windows = self.windows.lock().expect("nobody panics with it");
        let met = windows
            .iter()
            .filter(|window| window.is_met_by(guest, since, until));
        met.max_by_key(|window| (window.kind.may_cost(), window.began))
            .map(|window| window.kind)
    }
}

/// Who a guest is, from which moment on.
#[derive(Debug)]
pub struct Expected(Mutex<Vec<(Instant, Vec<String>)>>);

impl Expected {
    /// One identity, since ever.
    #[must_use]
    pub fn new(id: &str, now: Instant) -> Self {
        Self(Mutex::new(vec![(now, vec![id.to_owned()])]))
    }

    /// From now on it is any of these.
    ///
    /// # Panics
    /// When a thread panicked with it.
    pub fn set(&self, ids: &[&str], now: Instant) {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let mut history = self.0.lock().expect("nobody panics with it");
        history.push((now, ids));
    }

    /// Whether an answer that came between two moments may name this one.
    ///
    /// # Panics
    /// When a thread panicked with it.
    #[must_use]
    pub fn allows(&self, id: &str, since: Instant, until: Instant) -> bool {
        let history = self.0.lock().expect("nobody panics with it");
        // The last that was said before, and whatever was said in between.
        let first = history
            .iter()
            .rposition(|(from, _)| *from <= since)
            .unwrap_or_default();
        let said = history[first..].iter();
        said.take_while(|(from, _)| *from <= until)
            .any(|(_, ids)| ids.iter().any(|allowed| allowed == id))
    }
}

/// The shortest, middle and longest of some times.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
        self.0.sort_unstable();
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> Option<Duration> {
        self.0.get(self.0.len() / 2).copied()
    }

    /// The longest.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.0.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_loss_goes_on_the_account_of_what_it_met() {
        let start = Instant::now();
        let ledger = Ledger::default();
        let restart = ledger.begin(Kind::Restart, Touched::All, at(start, 10));
        ledger.end(restart, at(start, 20));
        let pulled = ledger.begin(Kind::Unplugged, Touched::Some(vec![3, 4]), at(start, 15));
        ledger.end(pulled, at(start, 25));
        ledger.begin(Kind::Greed, Touched::Some(vec![5]), at(start, 30));
        let check = |guest, from, to, expected: Account| {
            let account = ledger.account(guest, at(start, from), at(start, to));
            assert_eq!(account, expected, "guest {guest}, {from} to {to}");
        };
        check(0, 0, 9, None);
        check(0, 0, 10, Some(Kind::Restart));
        check(0, 20, 21, Some(Kind::Restart));
        check(0, 21, 22, None);
        check(3, 12, 13, Some(Kind::Restart));
        check(3, 12, 16, Some(Kind::Unplugged));
        check(3, 26, 99, None);
        check(5, 40, 41, Some(Kind::Greed));
        assert_eq!(ledger.counts()[&Kind::Restart], 1);
    }

    #[test]
    fn an_answer_is_right_if_it_was_at_any_moment_of_the_request() {
        let start = Instant::now();
        let expected = Expected::new("a", start);
        expected.set(&["a", "b"], at(start, 10));
        expected.set(&["b"], at(start, 20));
        let check = |id, from, to, is_right| {
            let allows = expected.allows(id, at(start, from), at(start, to));
            assert_eq!(allows, is_right, "{id}, {from} to {to}");
        };
        check("a", 1, 2, true);
        check("b", 1, 2, false);
        check("b", 9, 11, true);
        check("a", 12, 30, true);
        check("a", 21, 30, false);
        check("b", 21, 30, true);
        check("c", 0, 99, false);
    }

    #[test]
    fn every_kind_is_played_by_somebody() {
        let mut played = [Kind::OF_SERVICE, Kind::OF_CABLES].concat();
        played.sort_unstable();
        let mut all = Kind::ALL.to_vec();
        all.sort_unstable();
        assert_eq!(played, all);
        all.dedup();
        assert_eq!(all.len(), Kind::ALL.len(), "one is there twice");
        assert_eq!(Kind::OF_CABLES.first(), Some(&Kind::Recreated));
    }
}
