//! Planned moves under traffic: 20 in a row, of which no packet may be lost (but for what [`is_shared`] says),
//! none may bear a sequence number that another had, and no counter of errors may rise in either kernel.
//!
//! The two ends move in the order in which the daemons do (RFC 4555 §3.5): who gets another address
//! first, since that end takes packets at the new address and at the old one, and then its peer.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite, Path};
use bewick_xfrm::{DataPlane, MoveReport, kernel::Method};

use super::{
    host::{A0, A1, B0, B1, Result, check, errors, in_host, ip, larval_drop, net, path, ping},
    pair::{BEST, CHILD, Host, Pair, child},
};

/// Moves of one round.
const MOVES: usize = 20;

/// Packets that a round may lose where senders and moves share the time: see [`is_shared`].
const MAY_BE_LOST: u64 = 5;

/// Packets that come between one move and the next, and how long that may take.
const BETWEEN: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// The CHILD_SA that takes the place of the first one.
const HEIR: ChildId = ChildId(2);

/// A host behind a, whose packets a forwards, in the middle of whatever else its kernel does.
const INNER_C: &str = "10.0.1.9";
const INNER_A: &str = "10.0.1.1";
const INNER_B: &str = "10.0.2.1";

/// The third host, on a line that delays: its packets come with a timer's interrupt.
pub fn set_up() -> Result<()> {
    ip(&["netns", "add", "c"])?;
    let pair = ["link", "add", "vc", "netns", "c", "type", "veth", "peer", "name", "vac"];
    ip(&[&pair[..], &["netns", "a"]].concat())?;
    for (host, device, address) in [("a", "vac", "10.0.1.254/24"), ("c", "vc", "10.0.1.9/24")] {
        ip(&["-n", host, "addr", "add", address, "dev", device])?;
        ip(&["-n", host, "link", "set", device, "up"])?;
    }
    ip(&["-n", "c", "route", "add", "default", "via", "10.0.1.254"])?;
    in_host("a", || Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
    let netem = "netns exec c tc qdisc add dev vc root netem delay 2ms 1ms";
    ip(&netem.split(' ').collect::<Vec<_>>())?;
    Ok(())
}

/// One round by one method, with ESP in UDP or without, and with one CHILD_SA or one that is about to
/// take another's place.
pub fn planned(
    runtime: &tokio::runtime::Runtime,
    method: Method,
    encap: bool,
    rekey: bool,
) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
    ip(&["-n", "b", "route", "replace", "10.0.1.0/24", "dev", "bewick0"])?;
    let suite = EspSuite::AesGcm16 { key_bits: 128 };
    let start = (path(A0, 4500, B0, 4500), encap);
    for (plane, host) in [(&mut pair.a, Host::A), (&mut pair.b, Host::B)] {
        let mut sa: ChildSa = child(suite, start, host);
        let (a, b) = (vec![net("10.0.1.0/24")], vec![net("10.0.2.0/24")]);
        (sa.ts_local, sa.ts_remote) = if host == Host::A { (a, b) } else { (b, a) };
        runtime.block_on(plane.install(&sa))?;
        if rekey {
            let (low, high) = (EspSpi(0xd000_0001), EspSpi(0xd000_0002));
            (sa.spi_in, sa.spi_out) = if host == Host::A { (low, high) } else { (high, low) };
            // The responder sends with the new one when the old one is gone.
            (sa.id, sa.waits) = (HEIR, host == Host::B);
            runtime.block_on(plane.install(&sa))?;
        }
    }
    let ids = if rekey { vec![CHILD, HEIR] } else { vec![CHILD] };
    let before = (errors("a")?, errors("b")?);
    let wire = Wire::start()?;
    let traffic = Traffic::start()?;
    traffic.go_on()?;

    pair.a.mark(CHILD);
    pair.b.mark(CHILD);
    let mut reports = Vec::new();
    let places = [(A1, B0), (A0, B0), (A0, B1), (A1, B1), (A1, B0), (A0, B0)];
    let mut at = start.0;
    for (local, remote) in places.into_iter().cycle().take(MOVES) {
        let to = path(local, 4500, remote, 4500);
        let mut order = [Host::A, Host::B];
        if to.local == at.local {
            order.reverse();
        }
        for host in order {
            let (plane, path) = match host {
                Host::A => (&mut pair.a, to),
                Host::B => (&mut pair.b, Path::new(to.remote, to.local)),
            };
            let one = |id: &ChildId| ChildMove { id: *id, path, encap };
            let moves: Vec<ChildMove> = ids.iter().map(one).collect();
            reports.push(runtime.block_on(plane.move_children(&moves))?);
            // What a message from one to the other takes.
            thread::sleep(Duration::from_millis(10));
        }
        at = to;
        traffic.go_on()?;
    }
    let flows = traffic.stop()?;
    let costs = [pair.a.since_mark(CHILD), pair.b.since_mark(CHILD)].map(Option::unwrap_or_default);
    let wire = wire.stop()?;
    let after = (errors("a")?, errors("b")?);

    let sent: u64 = flows.iter().map(|flow| flow.sent).sum();
    let lost: u64 = flows.iter().map(|flow| flow.sent - flow.came).sum();
    // Where states are deleted and added on several processors.
    let method_leaves_out = method == Method::DeleteAdd && is_shared()?;
    let refused: u32 = reports.iter().map(|report| report.refused).sum();
    check(refused == 0 || method != Method::MigrateState, "the kernel migrates each state")?;
    let method = pair.a.describe().move_method;
    let form = match (encap, rekey) {
        (_, true) => " in UDP, two CHILD_SAs during a rekey",
        (true, false) => " in UDP",
        (false, false) => "",
    };
    let numbers = reports.iter().map(|report| report.requests);
    let most = numbers.clone().max().unwrap_or_default();
    let mean = f64::from(numbers.sum::<u32>()) / reports.len() as f64;
    let trips = reports.iter().map(|report| report.round_trips).sum::<u32>();
    let trips = f64::from(trips) / reports.len() as f64;
    let took = reports.iter().map(|report: &MoveReport| report.took);
    let (mean_took, worst) = (took.clone().sum::<Duration>() / reports.len() as u32, took.max());
    println!(
        "{MOVES} planned moves by {method}{form}: {lost} of {sent} packets lost, {} sequence numbers \
         twice of {}, {} left out; netlink requests of an end {mean:.1} (most {most}) in {trips:.1} \
         round trips, {mean_took:?} (most {:?}); by their own account {} + {} lost, at most {:?} and \
         {:?} without a packet",
        wire.twice,
        wire.packets,
        wire.left_out,
        worst.unwrap_or_default(),
        costs[0].lost,
        costs[1].lost,
        costs[0].longest_gap,
        costs[1].longest_gap,
    );
    let may_be_lost = if is_shared()? { MAY_BE_LOST } else { 0 };
    if lost > 0 {
        for Flow { from, sent, came } in &flows {
            println!("from {from}: {sent} sent, {came} came");
        }
    }
    for (host, before, after) in [("a", &before.0, &after.0), ("b", &before.1, &after.1)] {
        for (what, count) in after.iter().filter(|(what, count)| before.get(*what) != Some(count)) {
            println!("{host}: {what} {:?} -> {count}", before.get(what));
        }
    }
    check(sent > 1000 && wire.packets > 1000, "there is traffic")?;
    check(lost <= may_be_lost, "planned moves lose nothing")?;
    // With two, which of them carries the packets is up to the kernel.
    let told =
        rekey || lost > 0 || costs.iter().all(|cost| cost.lost == 0 && !cost.longest_gap.is_zero());
    check(told, "the planes say so themselves")?;
    check(wire.twice == 0, "no sequence number is used twice")?;
    check(wire.left_out == 0 || method_leaves_out, "no sequence number is left out")?;
    check(before == after || lost > 0, "no error is counted")?;
    check(pair.rejected(runtime)? == 0, "no replay is counted")?;
    for host in ["a", "b"] {
        let patience = Instant::now() + PATIENCE;
        while larval_drop(host)? != "1" {
            check(Instant::now() < patience, "a setting of the kernel is as it was")?;
            thread::sleep(Duration::from_millis(5));
        }
    }
    pair.close(runtime)
}

/// Whether packets are sent while a move is under way: by another processor, or by a process from which the
/// kernel takes the one that there is in the midst of it. Such a packet may have found its state before packets
/// are held back, and send it when that has gone; or it has found them held back, and comes to the queue when
/// that has gone. The kernel drops it.
fn is_shared() -> Result<bool> {
    let version = std::fs::read_to_string("/proc/version")?;
    Ok(thread::available_parallelism()?.get() > 1 || version.contains("PREEMPT"))
}

/// One flow of numbered packets, at its end.
#[derive(Debug)]
struct Flow {
    from: &'static str,
    sent: u64,
    /// different ones that came
    came: u64,
}

/// Numbered packets from a and b to each other, and from c to b.
struct Traffic {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Result<u64>>>,
    receivers: Vec<JoinHandle<Result<u64>>>,
    stop_receiving: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

/// From, its host, to, its host, and the port of both.
const FLOWS: [(&str, &str, &str, &str, u16); 3] = [
    (INNER_A, "a", INNER_B, "b", 7001),
    (INNER_B, "b", INNER_A, "a", 7002),
    (INNER_C, "c", INNER_B, "b", 7003),
];

impl Traffic {
    fn start() -> Result<Self> {
        let (stop, stop_receiving) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let received = Arc::new(AtomicU64::new(0));
        let mut traffic =
            Traffic { stop, senders: Vec::new(), receivers: Vec::new(), stop_receiving, received };
        for (from, from_host, to, to_host, port) in FLOWS {
            let to = SocketAddr::new(to.parse()?, port);
            let receiver = in_host(to_host, move || Ok(UdpSocket::bind(to)?))?;
            socket2::SockRef::from(&receiver).set_recv_buffer_size(1 << 20)?;
            receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
            let from = SocketAddr::new(from.parse()?, port);
            let sender = in_host(from_host, move || Ok(UdpSocket::bind(from)?))?;
            let (stop, count) = (traffic.stop_receiving.clone(), traffic.received.clone());
            traffic.receivers.push(thread::spawn(move || receive(&receiver, &stop, &count)));
            let stop = traffic.stop.clone();
            traffic.senders.push(thread::spawn(move || send(&sender, to, &stop)));
        }
        Ok(traffic)
    }

    /// Waits until [`BETWEEN`] more packets have come.
    fn go_on(&self) -> Result<()> {
        let (enough, patience) = (self.received.load(Relaxed) + BETWEEN, Instant::now() + PATIENCE);
        while self.received.load(Relaxed) < enough {
            check(Instant::now() < patience, "packets come")?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends it, when what was sent last has come.
    fn stop(self) -> Result<Vec<Flow>> {
        let join = |thread: JoinHandle<Result<u64>>| thread.join().map_err(|_| "a thread ended")?;
        self.stop.store(true, Relaxed);
        let sent = self.senders.into_iter().map(join).collect::<Result<Vec<u64>>>()?;
        // Until nothing comes any more.
        let mut last = u64::MAX;
        while last != self.received.load(Relaxed) {
            last = self.received.load(Relaxed);
            thread::sleep(Duration::from_millis(500));
        }
        self.stop_receiving.store(true, Relaxed);
        let came = self.receivers.into_iter().map(join).collect::<Result<Vec<u64>>>()?;
        let names = FLOWS.iter().map(|flow| flow.0);
        let counts = sent.into_iter().zip(came);
        Ok(names.zip(counts).map(|(from, (sent, came))| Flow { from, sent, came }).collect())
    }
}

fn send(socket: &UdpSocket, to: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    let mut number = 0_u64;
    while !stop.load(Relaxed) {
        match socket.send_to(&number.to_be_bytes(), to) {
            // Its state went while it was between the look-up and the sending: it counts as lost.
            Err(error) if error.kind() == ErrorKind::InvalidInput && is_shared()? => {}
            Err(error) => return Err(format!("packet {number} to {to} is refused: {error}").into()),
            Ok(_) => {}
        }
        number += 1;
        thread::sleep(Duration::from_micros(400));
    }
    Ok(number)
}

fn receive(socket: &UdpSocket, stop: &AtomicBool, count: &AtomicU64) -> Result<u64> {
    let mut came = Vec::<bool>::new();
    let mut buffer = [0; 8];
    loop {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                let number = usize::try_from(u64::from_be_bytes(buffer))?;
                came.resize(came.len().max(number + 1), false);
                if let Some(came) = came.get_mut(number) {
                    *came = true;
                }
                count.fetch_add(1, Relaxed);
            }
            Ok(_) => return Err("a strange packet".into()),
            Err(_) if stop.load(Relaxed) => {
                return Ok(came.iter().filter(|came| **came).count() as u64);
            }
            Err(_) => {}
        }
    }
}

/// What ESP was seen on b's links in both directions.
struct Wire {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    packets: u64,
    /// packets with a number that another of the same SA had
    twice: u64,
    /// numbers between the first and the last that nobody used
    left_out: u64,
}

impl Wire {
    fn start() -> Result<Self> {
        let socket = in_host("b", || {
            let every = i32::from((libc::ETH_P_ALL as u16).to_be());
            // SAFETY: no pointers; the descriptor that comes back is nobody else's.
            let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, every) };
            if socket < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            // SAFETY: as above.
            Ok(unsafe { OwnedFd::from_raw_fd(socket) })
        })?;
        let options = socket2::SockRef::from(&socket);
        let room: libc::c_int = 32 << 20;
        // SAFETY: the descriptor is open, and the value is as long as is said.
        let result = unsafe {
            let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
            libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const room).cast(), 4)
        };
        check(result == 0, "a capture has room")?;
        options.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ends = stop.clone();
        let thread = thread::spawn(move || {
            let mut numbers = BTreeMap::<(u32, u32), u32>::new();
            let mut buffer = [0_u8; 2048];
            loop {
                // SAFETY: the descriptor is open, and the kernel writes no more than there is room.
                let length = unsafe {
                    libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
                };
                match usize::try_from(length) {
                    Ok(length) => {
                        if let Some(key) = esp(buffer.get(..length).unwrap_or_default()) {
                            *numbers.entry(key).or_default() += 1;
                        }
                    }
                    Err(_) if ends.load(Relaxed) => return Ok(sum(&numbers)),
                    Err(_) => {}
                }
            }
        });
        Ok(Wire { stop, thread })
    }

    fn stop(self) -> Result<Seen> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| "the thread that reads the wire ended")?
    }
}

fn sum(numbers: &BTreeMap<(u32, u32), u32>) -> Seen {
    let mut seen = Seen::default();
    let mut last = None;
    for (&(spi, number), &times) in numbers {
        seen.packets += u64::from(times);
        seen.twice += u64::from(times - 1);
        seen.left_out += match last {
            Some((before, last)) if before == spi => u64::from(number - last - 1),
            _ => 0,
        };
        last = Some((spi, number));
    }
    seen
}

/// SPI and sequence number, if this IPv4 packet is ESP, in UDP or not.
fn esp(packet: &[u8]) -> Option<(u32, u32)> {
    let header = usize::from(packet.first().filter(|first| **first >> 4 == 4)? & 15) * 4;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?))
    };
    let start = match packet.get(9)? {
        50 => header,
        17 if word(header)? & 0xffff == 4500 && word(header + 8)? != 0 => header + 8,
        _ => return None,
    };
    Some((word(start)?, word(start + 4)?))
}

/// What the data plane says of a silence in which packets were lost on the way.
pub fn silence(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let mut pair = Pair::open(runtime, BEST)?;
    let suite = EspSuite::AesGcm16 { key_bits: 128 };
    pair.install(runtime, suite, (path(A0, 4500, B0, 4500), false))?;
    check(ping(10)? == 0, "pings before the silence")?;
    runtime.block_on(pair.b.counters(CHILD))?;
    let began = Instant::now();
    let quiet = Duration::from_millis(300);
    thread::sleep(quiet);
    // The mark comes when nothing has come for some time.
    pair.b.mark(CHILD);
    check(pair.a.since_mark(CHILD).is_none(), "nothing is told without a mark")?;
    let netem = |what: &str| -> Result<String> {
        let command = format!("netns exec a tc qdisc {what}");
        ip(&command.split(' ').collect::<Vec<_>>())
    };
    netem("add dev va0 root netem loss 100%")?;
    check(ping(5)? == 5, "pings are lost")?;
    netem("del dev va0 root")?;
    let ended = began.elapsed();
    check(ping(10)? == 0, "pings after the silence")?;
    let cost = pair.b.since_mark(CHILD).ok_or("nothing is told")?;
    println!("a silence of {ended:?} with 5 packets in it: {cost:?}");
    check(cost.lost == 5, "what was lost is told")?;
    check(cost.longest_gap >= ended - ended / 16, "and how long nothing came")?;
    check(cost.longest_gap <= began.elapsed(), "no longer than it was")?;
    check(pair.b.since_mark(CHILD).is_none(), "once")?;
    pair.close(runtime)
}
