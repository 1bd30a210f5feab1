//! Machines on a network: two or more ends, their data planes, and the loop that drives them.
//!
//! The loop is what the daemon's runtime is in the real world: it hands datagrams, timeouts,
//! addresses and the data plane's answers to each machine, and carries out what comes out. It also
//! plays the socket layer: the non-ESP marker of port 4500 (RFC 3948 §2.2) is added and taken off
//! here, and ESP goes to the plane.

use std::{
    fmt::Debug,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, Path, Time};

use crate::{
    clock::Timeline,
    net::{Delivery, HostId, Net, Protocol, UplinkId},
    plane::{Flow, Plane, Received},
};

/// What goes into a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// an IKE message, without the non-ESP marker
    Datagram {
        /// the path as the receiver sees it
        path: Path,
        /// the message
        bytes: Vec<u8>,
    },
    /// a timeout is due
    Timeout,
    /// the addresses that the host has now, with the uplinks that they are on
    Addresses(Vec<(UplinkId, IpAddr)>),
    /// a CHILD_SA has reached its limits
    Expiring(ChildId),
    /// what the data plane has counted
    Counted {
        /// for which question
        id: u64,
        /// packets of all CHILD_SAs
        sent: u64,
        /// packets that came on the path of their CHILD_SA
        received: u64,
    },
    /// genuine ESP in UDP of this CHILD_SA has come from elsewhere than it should
    Mapping {
        /// the CHILD_SA
        child: ChildId,
        /// where it came from
        remote: SocketAddr,
    },
    /// an ICMP error, true or forged
    Unreachable(Path),
    /// the machine has slept
    Resumed,
    /// the data plane's answer
    Answer {
        /// which request
        id: u64,
        /// how it went
        result: Result<(), String>,
    },
}

/// What comes out of a machine.
#[derive(Debug)]
pub enum Output<E> {
    /// an IKE message to be sent, without the non-ESP marker
    Transmit {
        /// along which path
        path: Path,
        /// the message
        bytes: Vec<u8>,
    },
    /// work for the data plane
    Action {
        /// comes back with the answer
        id: u64,
        /// what is to be done
        action: Action,
    },
    /// what the data plane has counted is wanted
    Count {
        /// comes back with the answer
        id: u64,
    },
    /// something has happened
    Event(E),
}

/// Work for the data plane.
#[derive(Clone, Debug)]
pub enum Action {
    /// make a CHILD_SA work
    Install(Box<ChildSa>),
    /// take it away
    Remove(ChildId),
    /// have others send instead of these
    Retire(Vec<ChildId>),
    /// move all or none
    Move(Vec<ChildMove>),
    /// limit what these send, or lift that
    Cap(Vec<ChildId>, bool),
}

/// A machine without IO, as the simulator drives it.
pub trait Machine {
    /// What it reports.
    type Event: Debug;
    /// Takes an input.
    fn handle(&mut self, now: Time, input: Input);
    /// The next output, if any.
    fn poll_output(&mut self) -> Option<Output<Self::Event>>;
    /// When it wants [`Input::Timeout`] next.
    fn next_timeout(&self) -> Option<Time>;
}

/// Names an end of a [`World`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndId(pub usize);

/// Names a stream of numbered packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId(usize);

/// What became of the ESP that reached an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EspTally {
    /// delivered, on the CHILD_SA's path
    pub delivered: u64,
    /// delivered, on another path (RFC 4555 §3.12)
    pub wrong_path: u64,
    /// no CHILD_SA has the SPI
    pub unknown_spi: u64,
    /// the ends' keys differ
    pub bad_keys: u64,
    /// came twice
    pub replayed: u64,
}

/// One end: a machine, its data plane, and what it reported.
#[derive(Debug)]
pub struct End<M: Machine> {
    /// its place on the network
    pub host: HostId,
    /// the machine itself; call [`World::pump`] after putting something in by hand
    pub machine: M,
    /// what its CHILD_SAs are
    pub plane: Plane,
    /// its events with their times
    pub events: Vec<(Time, M::Event)>,
    /// how long the data plane takes to answer when it has done what it was asked
    pub answer_delay: Duration,
    /// how long it takes to do that; the daemon waits for it, and sends nothing meanwhile
    pub work_delay: Duration,
    /// what ESP has reached it
    pub esp: EspTally,
    /// IKE messages sent so far
    pub transmitted: u64,
    answers: Timeline<(u64, Result<(), String>)>,
    /// what the data plane is at work on, and when it is done
    work: Option<(Time, u64, Action)>,
}

impl<M: Machine> End<M> {
    /// The data plane does what it is asked, and answers.
    fn act(&mut self, now: Time, id: u64, action: Action) {
        let result = match action {
            Action::Install(sa) => self.plane.install(now, *sa),
            Action::Move(moves) => self.plane.move_children(now, &moves),
            Action::Cap(children, on) => {
                self.plane.cap(now, &children, on);
                Ok(())
            }
            Action::Retire(children) => {
                self.plane.retire(now, &children);
                Ok(())
            }
            Action::Remove(child) => {
                self.plane.remove(now, child);
                Ok(())
            }
        };
        if self.answer_delay.is_zero() {
            self.machine.handle(now, Input::Answer { id, result });
        } else {
            self.answers.put(now + self.answer_delay, (id, result));
        }
    }
}

#[derive(Debug)]
struct Stream {
    from: EndId,
    to: EndId,
    interval: Duration,
    next: Time,
    until: Time,
    count: u64,
    flow: Flow,
}

/// The port on which IKE and ESP share UDP (RFC 3948).
const NAT_T: u16 = 4500;
const MARKER: [u8; 4] = [0; 4];
const KEEPALIVE: [u8; 1] = [0xff];

/// Timeouts that a machine may ask for at one moment before it counts as stuck.
const MAX_TIMEOUTS: u32 = 1000;

/// A network with machines on it.
#[derive(Debug)]
pub struct World<M: Machine> {
    /// the network; time passes through [`World::run_until`] only
    pub net: Net,
    ends: Vec<End<M>>,
    streams: Vec<Stream>,
}

impl<M: Machine> World<M> {
    /// A world on `net`, without ends.
    pub fn new(net: Net) -> Self {
        World { net, ends: Vec::new(), streams: Vec::new() }
    }

    /// Puts `machine` on `host` and tells it its addresses.
    pub fn add_end(&mut self, host: HostId, machine: M) -> EndId {
        let id = EndId(self.ends.len());
        self.ends.push(End {
            host,
            machine,
            plane: Plane::new(),
            events: Vec::new(),
            answer_delay: Duration::ZERO,
            work_delay: Duration::ZERO,
            esp: EspTally::default(),
            transmitted: 0,
            answers: Timeline::new(),
            work: None,
        });
        self.tell_addresses(id);
        id
    }

    /// An end.
    pub fn end(&self, id: EndId) -> &End<M> {
        &self.ends[id.0]
    }

    /// An end, to be changed.
    pub fn end_mut(&mut self, id: EndId) -> &mut End<M> {
        &mut self.ends[id.0]
    }

    /// The present moment.
    pub fn now(&self) -> Time {
        self.net.now()
    }

    /// Tells the machine of `id` which addresses its host has now, as netlink would.
    pub fn tell_addresses(&mut self, id: EndId) {
        let addresses = self.net.addresses(self.ends[id.0].host);
        self.input(id, Input::Addresses(addresses));
    }

    /// Puts a new machine in the place of the one at `id`, as after a crash: its data plane is empty,
    /// and answers on their way to the old machine are lost.
    pub fn restart(&mut self, id: EndId, machine: M) {
        let end = &mut self.ends[id.0];
        end.machine = machine;
        end.plane = Plane::new();
        end.answers = Timeline::new();
        end.work = None;
        self.tell_addresses(id);
    }

    /// Tells all machines which addresses their hosts have now.
    pub fn tell_all(&mut self) {
        (0..self.ends.len()).map(EndId).for_each(|id| self.tell_addresses(id));
    }

    /// Takes an uplink up or down and tells the machines of its host.
    pub fn set_up(&mut self, uplink: UplinkId, up: bool) {
        self.net.set_up(uplink, up);
        let ends: Vec<EndId> = (0..self.ends.len()).map(EndId).collect();
        for id in ends {
            if self.net.uplinks(self.ends[id.0].host).contains(&uplink) {
                self.tell_addresses(id);
            }
        }
    }

    /// Gives an input to the machine of `id` and carries out what comes out.
    pub fn input(&mut self, id: EndId, input: Input) {
        let now = self.now();
        self.ends[id.0].machine.handle(now, input);
        self.pump(id);
    }

    /// Carries out all that the machine of `id` wants.
    pub fn pump(&mut self, id: EndId) {
        let now = self.now();
        let end = &mut self.ends[id.0];
        if end.work.is_some() {
            return;
        }
        while let Some(output) = end.machine.poll_output() {
            match output {
                Output::Transmit { path, mut bytes } => {
                    if path.is_tcp() || (path.local.port() == NAT_T && bytes != KEEPALIVE) {
                        bytes.splice(0..0, MARKER);
                    }
                    end.transmitted += 1;
                    // A source address that has just gone is an error of the socket; the machine
                    // learns of it by its addresses.
                    let _ = self.net.send(end.host, path, bytes);
                }
                Output::Action { id, action } => {
                    if end.work_delay.is_zero() {
                        end.act(now, id, action);
                    } else {
                        end.work = Some((now + end.work_delay, id, action));
                        return;
                    }
                }
                Output::Count { id } => {
                    let (sent, received) = (end.plane.sent(), end.esp.delivered);
                    end.machine.handle(now, Input::Counted { id, sent, received });
                }
                Output::Event(event) => end.events.push((now, event)),
            }
        }
    }

    /// Sends a numbered packet from `from` to `to` every `interval`, from now until `duration` has
    /// passed, over whatever CHILD_SA is there; without one the packet counts as lost.
    pub fn start_flow(
        &mut self,
        from: EndId,
        to: EndId,
        interval: Duration,
        duration: Duration,
    ) -> FlowId {
        let next = self.now();
        let (until, flow) = (next + duration, Flow::default());
        self.streams.push(Stream { from, to, interval, next, until, count: 0, flow });
        FlowId(self.streams.len() - 1)
    }

    /// What a stream has measured so far.
    pub fn flow(&self, id: FlowId) -> &Flow {
        &self.streams[id.0].flow
    }

    /// Runs for `duration`.
    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now() + duration);
    }

    /// Runs until `until`.
    pub fn run_until(&mut self, until: Time) {
        while let Some(time) = self.next_time().filter(|time| *time <= until) {
            self.step(time);
        }
        self.step(until);
    }

    /// Runs until `done` or until `duration` has passed; tells whether `done` came to be.
    pub fn run_while_not(
        &mut self,
        duration: Duration,
        mut done: impl FnMut(&World<M>) -> bool,
    ) -> bool {
        let until = self.now() + duration;
        while !done(self) {
            let Some(time) = self.next_time().filter(|time| *time <= until) else {
                self.step(until);
                return done(self);
            };
            self.step(time);
        }
        true
    }

    /// When anything happens next.
    fn next_time(&self) -> Option<Time> {
        let net = self.net.next_event();
        let answers = self.ends.iter().filter_map(|end| end.answers.next_time());
        let timeouts = self.ends.iter().filter_map(|end| end.machine.next_timeout());
        let streams = self.streams.iter().filter(|s| s.next < s.until).map(|s| s.next);
        let work = self.ends.iter().filter_map(|end| Some(end.work.as_ref()?.0));
        let next =
            net.into_iter().chain(answers).chain(work).chain(timeouts).chain(streams).min()?;
        Some(next.max(self.now()))
    }

    /// All that is due at `time`: datagrams, then the data plane's work and answers, then timeouts, then new packets.
    fn step(&mut self, time: Time) {
        while let Some(delivery) = self.net.poll(time) {
            self.deliver(delivery);
        }
        for id in (0..self.ends.len()).map(EndId) {
            let end = &mut self.ends[id.0];
            if let Some((_, action, work)) = end.work.take_if(|(due, ..)| *due <= time) {
                end.act(time, action, work);
                self.pump(id);
            }
            while let Some((action, result)) = self.ends[id.0].answers.pop(time) {
                self.input(id, Input::Answer { id: action, result });
            }
            let mut timeouts = 0;
            while self.ends[id.0].machine.next_timeout().is_some_and(|due| due <= time) {
                self.input(id, Input::Timeout);
                timeouts += 1;
                assert!(
                    timeouts < MAX_TIMEOUTS,
                    "{id:?} asks for timeouts without end at {time:?}"
                );
            }
        }
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            if stream.next <= time && stream.next < stream.until {
                stream.next = time + stream.interval;
                let number = ((index as u64) << 32) | stream.count;
                stream.count += 1;
                stream.flow.note_sent(time, number);
                let end = &mut self.ends[stream.from.0];
                if let Some(packet) = end.plane.emit(number) {
                    // Without a usable source the packet is lost, which the flow shows.
                    let _ = self.net.send_datagram(end.host, packet);
                }
                let from = stream.from;
                for child in end.plane.take_expiring() {
                    self.input(from, Input::Expiring(child));
                }
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Some(index) = self.ends.iter().position(|end| end.host == delivery.host) else {
            return;
        };
        let path = delivery.path();
        let datagram = delivery.datagram;
        if datagram.protocol != Protocol::Esp {
            let bytes = &datagram.payload;
            let message = match path.local.port() {
                _ if path.is_tcp() => bytes.strip_prefix(&MARKER),
                NAT_T if *bytes == KEEPALIVE => return,
                NAT_T => bytes.strip_prefix(&MARKER),
                500 => Some(&bytes[..]),
                _ => return,
            };
            if let Some(message) = message {
                let bytes = message.to_vec();
                self.input(EndId(index), Input::Datagram { path, bytes });
                return;
            }
        }
        let end = &mut self.ends[index];
        match end.plane.receive(&datagram) {
            Received::Packet { child, number, wrong_path } => {
                end.esp.delivered += u64::from(!wrong_path);
                end.esp.wrong_path += u64::from(wrong_path);
                let stream = usize::try_from(number >> 32).ok();
                if let Some(stream) = stream.and_then(|index| self.streams.get_mut(index))
                    && stream.to == EndId(index)
                {
                    stream.flow.note_received(delivery.time, number);
                }
                if wrong_path && datagram.protocol == Protocol::Udp {
                    let remote = datagram.src;
                    self.input(EndId(index), Input::Mapping { child, remote });
                }
            }
            Received::UnknownSpi | Received::Malformed => end.esp.unknown_spi += 1,
            Received::BadKeys => end.esp.bad_keys += 1,
            Received::Replayed => end.esp.replayed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{link::Chance, net::Realm};

    /// Sends a ping until it is answered; answers pings.
    struct Ping {
        path: Option<Path>,
        due: Option<Time>,
        outputs: Vec<Output<&'static str>>,
    }

    impl Machine for Ping {
        type Event = &'static str;

        fn handle(&mut self, now: Time, input: Input) {
            match input {
                Input::Datagram { path, bytes } if bytes == b"ping" => {
                    self.outputs.push(Output::Transmit { path, bytes: b"pong".to_vec() });
                }
                Input::Datagram { .. } => {
                    self.due = None;
                    self.outputs.push(Output::Event("answered"));
                    let action = Action::Remove(ChildId(1));
                    self.outputs.push(Output::Action { id: 9, action });
                }
                Input::Timeout => {
                    self.due = Some(now + Duration::from_millis(100));
                    let path = self.path.expect("a path");
                    self.outputs.push(Output::Transmit { path, bytes: b"ping".to_vec() });
                }
                Input::Answer { id, .. } => {
                    assert_eq!(id, 9);
                    self.outputs.push(Output::Event("removed"));
                }
                _ => {}
            }
        }

        fn poll_output(&mut self) -> Option<Output<&'static str>> {
            (!self.outputs.is_empty()).then(|| self.outputs.remove(0))
        }

        fn next_timeout(&self) -> Option<Time> {
            self.due
        }
    }

    #[test]
    fn machines_talk_over_a_lossy_link_until_they_are_done() {
        for port in [500, 4500] {
            let mut net = Net::new(3);
            let (left, right) = (net.add_host("left"), net.add_host("right"));
            let ips: [IpAddr; 2] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
            let one = net.add_uplink(left, "eth0", Realm::Internet, &ips[..1]);
            let other = net.add_uplink(right, "eth0", Realm::Internet, &ips[1..]);
            net.link(one, other).loss = Chance::ALWAYS;
            let [from, to] = ips.map(|ip| SocketAddr::new(ip, port));
            let mut world = World::new(net);
            let path = Some(Path::new(from, to));
            let due = Some(Time::ZERO);
            let left = world.add_end(left, Ping { path, due, outputs: Vec::new() });
            let idle = Ping { path: None, due: None, outputs: Vec::new() };
            let right = world.add_end(right, idle);
            world.end_mut(left).answer_delay = Duration::from_millis(7);
            world.run_for(Duration::from_millis(350));
            assert_eq!(world.end(left).transmitted, 4);
            assert!(world.end(left).events.is_empty());
            world.net.link(one, other).loss = Chance::NEVER;
            let done = |world: &World<Ping>| world.end(left).events.len() == 2;
            assert!(world.run_while_not(Duration::from_secs(1), done));
            let ms = |n: u64| Time::from_micros(n * 1000);
            let expected = [(ms(420), "answered"), (ms(427), "removed")];
            assert_eq!(world.end(left).events, expected);
            assert_eq!(world.end(right).transmitted, 1);
            let flow = world.start_flow(left, right, ms(1).since(ms(0)), ms(10).since(ms(0)));
            world.run_for(Duration::from_secs(1));
            assert_eq!(world.flow(flow).lost().len(), 10, "there is no CHILD_SA");
        }
    }
}
