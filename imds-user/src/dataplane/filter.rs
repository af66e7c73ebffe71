//! Filters of traffic control: programs on an interface's way in or out, by rtnetlink.
//!
//! A filter belongs to its interface: it outlives the process that put it there, is replaced in place, and ends with
//! the interface. All of ours have one handle and priority, by which a later daemon finds them. Interfaces are named
//! by number, so that one made anew under an old name is never meant. The socket is synchronous: the kernel answers
//! such requests before the call that sends them returns.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Our filters run before everybody else's of the same queue …
const PRIORITY: u16 = 1;
/// … and have a handle of their own ("IMDS").
const HANDLE: TcHandle = TcHandle {
    major: 0x494d,
    minor: 0x4453,
};
/// Packets of every protocol (linux/if_ether.h).
const ETH_P_ALL: u16 = 3;
/// The queue that has a way in and a way out …
const CLSACT: &str = "clsact";
/// … and its older kin that has a way in alone, in the same place.
const INGRESS: &str = "ingress";

/// Which way packets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From the wire into the host.
    Ingress,
    /// Out of the host.
    Egress,
}

/// One of our filters, as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The interface.
    pub ifindex: u32,
    /// Which way.
    pub direction: Direction,
    /// The program's name.
    pub program: String,
    /// The kernel's number for the program.
    pub program_id: u32,
}

/// A connection to the filters of the namespace that it was made in.
pub struct Filters {
    socket: Socket,
    sequence: u32,
}

impl Filters {
    /// Connects to the namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Puts a program on an interface; a filter of ours that is there is replaced, with no packet in between.
    ///
    /// clsact by netlink, not TCX: a hundredth of what TCX costs a port, and the same on every kernel.
    ///
    /// # Errors
    /// When the interface is gone, the kernel refuses, or another kind of queue is in the way.
    pub fn attach(
        &mut self,
        ifindex: u32,
        direction: Direction,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        self.add_queue(ifindex, direction)?;
        let fd = u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?;
        let options = [
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let mut message = address(ifindex, direction);
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).into()),
        ];
        // Without NLM_F_EXCL the kernel changes what has the handle (`tc_new_tfilter`, net/sched/cls_api.c), and
        // `cls_bpf_change` puts the new program into the old one's place by RCU (net/sched/cls_bpf.c).
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.exchange(message, NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Takes our filter off an interface. One that is gone, with or without its interface, is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&mut self, ifindex: u32, direction: Direction) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelTrafficFilter(address(ifindex, direction));
        match self.exchange(message, NLM_F_ACK) {
            Err(cause) if is_gone(&cause) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Our filters on an interface.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn on(&mut self, ifindex: u32) -> io::Result<Vec<Filter>> {
        let mut found = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut message = TcMessage::with_index(ifindex.cast_signed());
            message.header.parent = direction.parent();
            let message = RouteNetlinkMessage::GetTrafficFilter(message);
            let listed = match self.exchange(message, NLM_F_DUMP) {
                Err(cause) if is_gone(&cause) => continue,
                listed => listed?,
            };
            let ours = listed
                .iter()
                .filter_map(|message| filter(message, direction));
            found.extend(ours);
        }
        Ok(found)
    }

    /// The filters of others that see a packet before one of ours does, in that order.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn before(&mut self, ours: &Filter) -> io::Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(ours.ifindex.cast_signed());
        message.header.parent = ours.direction.parent();
        let message = RouteNetlinkMessage::GetTrafficFilter(message);
        let listed = match self.exchange(message, NLM_F_DUMP) {
            Err(cause) if is_gone(&cause) => return Ok(Vec::new()),
            listed => listed?,
        };
        // They are listed as they run; what has no handle is no filter, but the head of a list of them.
        let before = listed.iter().take_while(|one| one.header.handle != HANDLE);
        let filters = before.filter(|one| one.header.handle != TcHandle::UNSPEC);
        Ok(filters.map(|one| described(one, ours.direction)).collect())
    }

    /// Our filters on every interface of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn all(&mut self) -> io::Result<Vec<Filter>> {
        let mut found = Vec::new();
        for (ifindex, _) in self.queues()? {
            found.extend(self.on(ifindex)?);
        }
        Ok(found)
    }

    /// Removes an interface's queue if no filter of anybody is in it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_empty_queue(&mut self, ifindex: u32) -> io::Result<()> {
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut message = TcMessage::with_index(ifindex.cast_signed());
            message.header.parent = direction.parent();
            let message = RouteNetlinkMessage::GetTrafficFilter(message);
            match self.exchange(message, NLM_F_DUMP) {
                Ok(filters) if filters.is_empty() => {}
                Ok(_) => return Ok(()),
                Err(cause) if is_gone(&cause) => return Ok(()),
                Err(cause) => return Err(cause),
            }
        }
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
        let message = RouteNetlinkMessage::DelQueueDiscipline(message);
        match self.exchange(message, NLM_F_ACK) {
            Err(cause) if is_gone(&cause) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Whether an interface has a queue of the kind that takes filters for the way in alone.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_no_way_out(&mut self, ifindex: u32) -> io::Result<bool> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = TcHandle::CLSACT;
        let message = RouteNetlinkMessage::GetQueueDiscipline(message);
        // Without NLM_F_ECHO the kernel tells everybody but who asked (`rtnetlink_send`, net/core/rtnetlink.c).
        let queues = match self.exchange(message, NLM_F_ACK | NLM_F_ECHO) {
            Err(cause) if is_gone(&cause) => return Ok(false),
            queues => queues?,
        };
        if !queues.is_empty() {
            return Ok(queues.iter().any(|queue| kind(queue) == Some(INGRESS)));
        }
        // A kernel that keeps it to itself all the same has to list them all.
        let is_it = |(at, kind): &(u32, String)| *at == ifindex && kind == INGRESS;
        Ok(self.queues()?.iter().any(is_it))
    }

    fn add_queue(&mut self, ifindex: u32, direction: Direction) -> io::Result<()> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.handle = TcHandle {
            major: u16::MAX,
            minor: 0,
        };
        message.header.parent = TcHandle::CLSACT;
        message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        match self.exchange(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Err(cause) if cause.raw_os_error() == Some(libc::EEXIST) => {}
            added => return added.map(drop),
        }
        // On the older kind of queue the kernel would take a filter for the way out and run it on the way in.
        if direction == Direction::Egress && self.has_no_way_out(ifindex)? {
            return Err(io::Error::other(
                "it has a queue of kind `ingress`, which has no way out: replace it with clsact",
            ));
        }
        Ok(())
    }

    /// The interfaces that have a queue for filters, and its kind.
    fn queues(&mut self) -> io::Result<Vec<(u32, String)>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let listed = self.exchange(message, NLM_F_DUMP)?;
        let kinds = listed.into_iter().filter_map(|message| {
            let kind = kind(&message)?;
            let is_ours = [CLSACT, INGRESS].contains(&kind);
            is_ours.then(|| (message.header.index.cast_unsigned(), kind.to_owned()))
        });
        Ok(kinds.collect())
    }

    /// Sends a request and returns what the kernel lists in answer.
    fn exchange(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<TcMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut listed = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            if self.read(&bytes, &mut listed)? {
                return Ok(listed);
            }
        }
    }

    /// Reads the messages of a datagram; whether the answer ends with it.
    fn read(&self, mut bytes: &[u8], listed: &mut Vec<TcMessage>) -> io::Result<bool> {
        while let Some((message, rest)) = split_message(bytes) {
            bytes = rest;
            // Somebody else's filter, of a kind that cannot be read, is none of ours.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
                continue;
            };
            if message.header.sequence_number != self.sequence {
                // The end of an answer that an earlier error cut short.
                continue;
            }
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewTrafficFilter(message)
                    | RouteNetlinkMessage::NewQueueDiscipline(message),
                ) => listed.push(message),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The first message and the rest of a datagram; `nlmsg_len` comes first, linux/netlink.h.
fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const HEADER_BYTES: usize = 16;
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let message = bytes.get(..length).filter(|_| length >= HEADER_BYTES)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((message, rest))
}

impl Direction {
    const fn parent(self) -> TcHandle {
        TcHandle {
            major: u16::MAX,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

/// The address of our filter on an interface.
fn address(ifindex: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = direction.parent();
    message.header.handle = HANDLE;
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

/// One of ours, if it is.
fn filter(message: &TcMessage, direction: Direction) -> Option<Filter> {
    if message.header.handle != HANDLE || kind(message) != Some(TcFilterBpf::KIND) {
        return None;
    }
    Some(described(message, direction))
}

/// Any filter; one without a program has no name and no number of one.
fn described(message: &TcMessage, direction: Direction) -> Filter {
    let mut filter = Filter {
        ifindex: message.header.index.cast_unsigned(),
        direction,
        program: String::new(),
        program_id: 0,
    };
    let options = message.attributes.iter().find_map(|one| match one {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.into_iter().flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.program.clone_from(name),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program_id = *id,
            _ => {}
        }
    }
    filter
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|one| match one {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// Whether the interface, its queue or the filter is not there (any more).
fn is_gone(cause: &io::Error) -> bool {
    matches!(
        cause.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::for_test::Scratch;

    fn execute(line: &str) {
        let mut words = line.split(' ');
        let program = words.next().unwrap();
        let status = Command::new(program).args(words).status();
        assert!(status.is_ok_and(|status| status.success()), "{line}");
    }

    #[test]
    fn a_queue_without_a_way_out_is_told_from_one_with_it() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let look = || {
            execute("ip link add va type veth peer name vb");
            let ifindex = nix::net::if_::if_nametoindex("va").unwrap();
            let mut filters = Filters::open().unwrap();
            assert!(!filters.has_no_way_out(ifindex).unwrap(), "no queue");
            execute("tc qdisc add dev va ingress");
            assert!(filters.has_no_way_out(ifindex).unwrap(), "ingress");
            execute("tc qdisc delete dev va ingress");
            execute("tc qdisc add dev va clsact");
            assert!(!filters.has_no_way_out(ifindex).unwrap(), "clsact");
            assert_eq!(filters.all().unwrap(), []);
            filters.remove_empty_queue(ifindex).unwrap();
            assert_eq!(filters.queues().unwrap(), []);
            assert!(!filters.has_no_way_out(ifindex).unwrap(), "no queue again");
        };
        scratch.0.run(look).unwrap();
    }
}
