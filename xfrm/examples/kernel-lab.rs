//! Two hosts in network namespaces, a `KernelPlane` in each, and a CHILD_SA that moves while pings
//! run through it. Needs root and a kernel with ESP: `interop/lab/kernel-plane` runs it in the guest.
//!
//! Ends with status 0 only if every check held; prints what each move cost.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use bewick_ike::{
    ChildId, ChildMove, ChildSa, EspKeys, EspSpi, EspSuite, HmacSha2, Limits, Path, Secret,
    TrafficSelector,
};
use bewick_xfrm::{
    DataPlane, PlaneError, PlaneEvent,
    auto::{self, Wanted},
    kernel::{self, Config, KernelPlane},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Addresses of the two hosts on each of their two links, inside, and in IPv6.
const A0: &str = "192.0.2.1";
const B0: &str = "192.0.2.2";
const A1: &str = "198.51.100.1";
const B1: &str = "198.51.100.2";
const A6: &str = "2001:db8::1";
const B6: &str = "2001:db8::2";
const INNER_A: &str = "10.0.1.1";
const INNER_B: &str = "10.0.2.1";

const CHILD: ChildId = ChildId(1);

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let decision = auto::choose(Wanted::Auto);
    println!("plane: {} ({})", decision.kind.as_str(), decision.reason);
    KernelPlane::probe()?;
    set_up()?;
    for avoid_migrate in [false, true] {
        moving(&runtime, avoid_migrate)?;
        limits(&runtime, avoid_migrate)?;
    }
    rollback(&runtime)?;
    leftovers(&runtime)?;
    suites(&runtime)?;
    bypass(&runtime)?;
    println!("kernel-lab: ok");
    Ok(())
}

/// One round of moves with MIGRATE or without it.
fn moving(runtime: &tokio::runtime::Runtime, avoid_migrate: bool) -> Result<()> {
    let mut pair = Pair::open(runtime, avoid_migrate)?;
    println!("-- moves by {}", pair.a.describe().move_method);
    let suite = EspSuite::AesGcm16 { key_bits: 256 };
    let mut place = (path(A0, 4500, B0, 4500), false);
    pair.install(runtime, suite, place)?;
    check(ping(20)? == 0, "pings before any move")?;

    // What changes from a's side; b sees the mirror image. Some pings may be lost: the two ends move
    // one after the other, and deleting and adding has a moment without a state. On a busy machine
    // that takes long, so this is no benchmark.
    let moves = [
        ("own address changes", (path(A1, 4500, B0, 4500), false)),
        ("back at once", (path(A0, 4500, B0, 4500), false)),
        ("peer's address changes", (path(A0, 4500, B1, 4500), false)),
        ("both addresses change", (path(A1, 4500, B0, 4500), false)),
        ("UDP encapsulation begins", (path(A1, 4500, B0, 4500), true)),
        ("port changes", (path(A1, 40000, B0, 4500), true)),
        ("address and port change", (path(A0, 4500, B0, 4500), true)),
        ("peer's address changes, in UDP", (path(A0, 40000, B1, 4500), true)),
        ("UDP encapsulation ends", (path(A0, 4500, B1, 4500), false)),
        ("to IPv6", (path(A6, 4500, B6, 4500), false)),
        ("in UDP over IPv6", (path(A6, 4500, B6, 4500), true)),
        ("back to IPv4", (path(A0, 4500, B0, 4500), true)),
    ];
    for (what, next) in moves {
        let before = sequence("a", place.0.remote.ip())?;
        let pings = Pings::start(300)?;
        thread::sleep(Duration::from_millis(250));
        let (a, b) = pair.go(runtime, next)?;
        let lost = pings.lost()?;
        let after = sequence("a", next.0.remote.ip())?;
        println!(
            "{what}: {} + {} requests, {:?} + {:?}, {lost} of 300 pings lost, sequence {before} -> \
             {after}",
            a.requests, b.requests, a.took, b.took
        );
        // Six where an earlier move's inbound state is in the way and does not fit. MIGRATE can't take
        // UDP away.
        let encap_ends = place.1 && !next.1;
        if !avoid_migrate && !encap_ends {
            check(a.requests.max(b.requests) <= 6, "a move takes few requests")?;
        }
        check(after >= before + 250, "sequence numbers go on")?;
        check(lost <= 40, "pings go on over the move")?;
        place = next;
    }

    let (a, b) = (count(runtime, &mut pair.a)?, count(runtime, &mut pair.b)?);
    println!("counters: {a:?}, {b:?}");
    // What is sent between reading a counter and the switch is not counted.
    check(a.packets_out >= 3500 && b.packets_in >= 3500, "counters survive the moves")?;
    check(a.packets_out.abs_diff(b.packets_in) < 100, "both ends counted the same")?;
    thread::sleep(Duration::from_secs(7));
    for host in ["a", "b"] {
        check(states(host)? == 2, "old states are gone after a while")?;
    }
    let later = count(runtime, &mut pair.a)?;
    check(later.packets_in.abs_diff(a.packets_in) < 100, "counters survive the old states")?;
    pair.close(runtime)
}

/// A successor is due after as many packets as was said, however often the CHILD_SA moves meanwhile.
fn limits(runtime: &tokio::runtime::Runtime, avoid_migrate: bool) -> Result<()> {
    let mut pair = Pair::open(runtime, avoid_migrate)?;
    println!("-- limits over moves by {}", pair.a.describe().move_method);
    pair.limits = Limits { octets: None, packets: Some(200) };
    let start = (path(A0, 4500, B0, 4500), false);
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, start)?;
    let mut events = pair.a.take_events().ok_or("no events")?;
    for (round, next) in (1..).zip([
        (path(A1, 4500, B0, 4500), false),
        (path(A1, 4500, B1, 4500), false),
        (path(A1, 4500, B1, 4500), true),
        (path(A1, 40000, B1, 4500), true),
        (path(A0, 4500, B0, 40000), true),
        (path(A0, 4500, B0, 4500), false),
    ]) {
        check(ping(20)? == 0, "pings between moves")?;
        pair.go(runtime, next)?;
        for side in [Host::A, Host::B] {
            let left = left(side, next.0)?;
            println!("after {} packets and a move: {left} left", round * 20);
            check(left == 200 - round * 20, "a move keeps what is left of a limit")?;
        }
    }
    check(ping(80)? == 0 && events.try_recv().is_err(), "200 packets are within the limit")?;
    check(ping(1)? == 0, "a soft limit stops nothing")?;
    let patience = Duration::from_secs(10);
    let event = runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await });
    println!("event: {event:?}");
    let expected = PlaneEvent::Expire { id: CHILD, hard: false };
    check(event == Ok(Some(expected)), "one more asks for a successor")?;
    pair.close(runtime)
}

/// The second of two CHILD_SAs can't move, so neither does.
fn rollback(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- all or nothing");
    let mut pair = Pair::open(runtime, false)?;
    let start = (path(A0, 4500, B0, 4500), false);
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, start)?;
    let mut second = child(EspSuite::AesGcm16 { key_bits: 128 }, start, Host::A);
    second.id = ChildId(2);
    second.reqid = 8;
    (second.spi_in, second.spi_out) = (EspSpi(0x2001), EspSpi(0x2002));
    second.ts_remote = vec![net("10.0.3.0/24")];
    runtime.block_on(pair.a.install(&second))?;
    let taken = ["-n", "a", "xfrm", "state", "add", "src", B0, "dst", A1, "proto", "esp"];
    let rest = ["spi", "0x2001", "mode", "tunnel", "aead", "rfc4106(gcm(aes))"];
    let key = ["0x0102030405060708090a0b0c0d0e0f1011121314", "128"];
    ip(&[&taken[..], &rest, &key].concat())?;

    let to = path(A1, 4500, B0, 4500);
    let moves = [CHILD, ChildId(2)].map(|id| ChildMove { id, path: to, encap: false });
    match runtime.block_on(pair.a.move_children(&moves)) {
        Err(error) => println!("refused: {error}"),
        Ok(_) => return Err("the second move was not refused".into()),
    }
    check(pair.a.path(CHILD) == Some(start.0), "the first CHILD_SA is back")?;
    check(ping(20)? == 0, "pings go on after a refused move")?;
    ip(&["-n", "a", "xfrm", "state", "delete", "dst", A1, "proto", "esp", "spi", "0x2001"])?;
    thread::sleep(Duration::from_secs(7));
    check(states("a")? == 4, "a refused move leaves nothing")?;

    match runtime.block_on(pair.a.move_children(&[ChildMove {
        id: ChildId(9),
        path: to,
        encap: false,
    }])) {
        Err(PlaneError::UnknownChild(ChildId(9))) => {}
        other => return Err(format!("an unknown CHILD_SA: {other:?}").into()),
    }
    match runtime.block_on(pair.a.install(&ChildSa { id: ChildId(3), ..second.clone() })) {
        Err(PlaneError::SpiInUse) => {}
        other => return Err(format!("an SPI twice: {other:?}").into()),
    }

    // A CHILD_SA that replaces another shares its reqid and policies.
    let heir = ChildSa {
        id: ChildId(4),
        spi_in: EspSpi(0x3001),
        spi_out: EspSpi(0x3002),
        ..second.clone()
    };
    runtime.block_on(pair.a.install(&heir))?;
    let moves = [CHILD, ChildId(2), ChildId(4)].map(|id| ChildMove { id, path: to, encap: false });
    let report = runtime.block_on(pair.a.move_children(&moves))?;
    println!("three CHILD_SAs, two of one reqid: {} requests, {:?}", report.requests, report.took);
    runtime.block_on(pair.a.remove(ChildId(2)))?;
    let policies = ip(&["-n", "a", "xfrm", "policy"])?;
    check(policies.matches("10.0.3.0/24").count() == 3, "the heir keeps the policies")?;
    runtime.block_on(pair.a.remove(ChildId(2)))?;
    pair.close(runtime)
}

/// What a killed daemon has left is removed by the next one; what others have made stays.
fn leftovers(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- leftovers");
    let place = (path(A0, 4500, B0, 4500), false);
    let mut pair = Pair::open(runtime, false)?;
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, place)?;
    let Pair { a, b, _encap: sockets, .. } = pair;
    std::mem::forget(a);
    drop((b, sockets));
    check(states("a")? == 2 && states("b")? == 0, "a dropped plane clears up, a killed one not")?;

    let other = "src 203.0.113.1 dst 203.0.113.2 proto esp spi 0x5001 reqid 7 mode tunnel";
    let aead = ["aead", "rfc4106(gcm(aes))", "0x0102030405060708090a0b0c0d0e0f1011121314", "128"];
    let other: Vec<&str> = other.split(' ').collect();
    ip(&[&["-n", "a", "xfrm", "state", "add"], &other[..], &aead].concat())?;
    let mut pair = Pair::open(runtime, false)?;
    check(states("a")? == 1, "old states are removed, others' are not")?;
    check(ip(&["-n", "a", "xfrm", "policy", "list", "nosock"])?.is_empty(), "old policies too")?;
    ip(&["-n", "a", "xfrm", "state", "flush"])?;
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, place)?;
    check(ping(5)? == 0, "the new ones work")?;
    pair.close(runtime)
}

/// Every suite carries packets, with and without extended sequence numbers and in UDP.
fn suites(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- suites");
    let cbc = |key_bits, integrity| EspSuite::AesCbc { key_bits, integrity };
    for suite in [
        EspSuite::AesGcm16 { key_bits: 128 },
        EspSuite::AesGcm16 { key_bits: 192 },
        EspSuite::AesGcm16 { key_bits: 256 },
        EspSuite::ChaCha20Poly1305,
        cbc(128, HmacSha2::Sha256),
        cbc(192, HmacSha2::Sha384),
        cbc(256, HmacSha2::Sha512),
    ] {
        for (esn, encap) in [(false, false), (true, true)] {
            let mut pair = Pair::open(runtime, false)?;
            pair.esn = esn;
            pair.install(runtime, suite, (path(A0, 4500, B0, 4500), encap))?;
            let lost = ping(5)?;
            pair.go(runtime, (path(A1, 4500, B0, 4500), encap))?;
            let after = ping(5)?;
            println!("{suite:?} esn {esn} encap {encap}: {lost} and after a move {after} lost");
            check(lost == 0 && after == 0, "the suite carries packets")?;
            pair.close(runtime)?;
        }
    }

    // Packets from another port than the path's are reported, and still delivered.
    let mut pair = Pair::open(runtime, false)?;
    let start = (path(A0, 40000, B0, 4500), true);
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, start)?;
    let mut events = pair.b.take_events().ok_or("no events")?;
    let moved = ChildMove { id: CHILD, path: path(A0, 4500, B0, 4500), encap: true };
    runtime.block_on(pair.a.move_children(&[moved]))?;
    ping(3)?;
    let expected = PlaneEvent::Mapping { id: CHILD, seen: SocketAddr::new(A0.parse()?, 4500) };
    // The kernel tells of it by a message of its own, which may take its time.
    let patience = std::time::Duration::from_secs(10);
    let seen = runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await });
    println!("event: {seen:?}");
    check(seen == Ok(Some(expected)), "a new port is reported")?;
    pair.close(runtime)
}

/// A policy that covers the hosts themselves spares a socket that asks for it.
fn bypass(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- bypass");
    let mut pair = Pair::open(runtime, false)?;
    let mut sa =
        child(EspSuite::AesGcm16 { key_bits: 128 }, (path(A0, 4500, B0, 4500), false), Host::A);
    (sa.ts_local, sa.ts_remote) = (vec![net("192.0.2.1/32")], vec![net("192.0.2.2/32")]);
    runtime.block_on(pair.a.install(&sa))?;
    let receiver = in_host("b", || Ok(UdpSocket::bind((B0, 5000))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let plain = in_host("a", || Ok(UdpSocket::bind((A0, 5001))?))?;
    let spared = in_host("a", || Ok(UdpSocket::bind((A0, 5002))?))?;
    kernel::bypass(spared.as_fd())?;
    let six = in_host("a", || Ok(UdpSocket::bind("[::]:5003")?))?;
    kernel::bypass(six.as_fd())?;
    plain.send_to(b"plain", (B0, 5000))?;
    spared.send_to(b"spared", (B0, 5000))?;
    let mut buffer = [0; 16];
    let length = receiver.recv(&mut buffer)?;
    check(&buffer[..length] == b"spared", "only the socket with the bypass is in the clear")?;
    receiver.send_to(b"back", (A0, 5002))?;
    spared.set_read_timeout(Some(Duration::from_millis(500)))?;
    check(spared.recv(&mut buffer)? == 4, "and it receives in the clear")?;
    pair.close(runtime)
}

/// The two ends.
struct Pair {
    a: KernelPlane,
    b: KernelPlane,
    esn: bool,
    limits: Limits,
    /// sockets that take ESP out of UDP
    _encap: Vec<UdpSocket>,
}

impl Pair {
    fn open(runtime: &tokio::runtime::Runtime, avoid_migrate: bool) -> Result<Self> {
        let plane = |host: &'static str| {
            let handle = runtime.handle().clone();
            in_host(host, move || {
                let _guard = handle.enter();
                let config = Config { avoid_migrate, reason: "lab".into(), ..Config::default() };
                Ok(KernelPlane::new(config)?)
            })
        };
        let (a, b) = (plane("a")?, plane("b")?);
        let mut sockets = Vec::new();
        for host in ["a", "b"] {
            ip(&["-n", host, "addr", "add", inner(host), "dev", "bewick0"])?;
            let (here, there) = if host == "a" { (INNER_A, INNER_B) } else { (INNER_B, INNER_A) };
            ip(&["-n", host, "route", "add", there, "dev", "bewick0", "src", here])?;
            for port in [4500, 40000] {
                sockets.push(in_host(host, move || encap_socket(port))?);
            }
        }
        Ok(Pair { a, b, esn: false, limits: Limits::default(), _encap: sockets })
    }

    fn install(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        suite: EspSuite,
        place: (Path, bool),
    ) -> Result<()> {
        for (plane, host) in [(&mut self.a, Host::A), (&mut self.b, Host::B)] {
            let (esn, limits) = (self.esn, self.limits);
            let sa = ChildSa { esn, limits, ..child(suite, place, host) };
            runtime.block_on(plane.install(&sa))?;
        }
        Ok(())
    }

    /// Moves a and then b, as an initiator and its responder would.
    fn go(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        (path, encap): (Path, bool),
    ) -> Result<(bewick_xfrm::MoveReport, bewick_xfrm::MoveReport)> {
        let mirrored = Path::new(path.remote, path.local);
        // The peer must take packets on the new path before they come; an UPDATE_SA_ADDRESSES
        // is under way for as long.
        let b = [ChildMove { id: CHILD, path: mirrored, encap }];
        let a = [ChildMove { id: CHILD, path, encap }];
        let to_a = runtime.block_on(self.a.move_children(&a))?;
        let to_b = runtime.block_on(self.b.move_children(&b))?;
        Ok((to_a, to_b))
    }

    /// Shuts both ends down and checks that nothing is left.
    fn close(mut self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        runtime.block_on(self.a.shutdown())?;
        runtime.block_on(self.b.shutdown())?;
        for host in ["a", "b"] {
            check(states(host)? == 0, "no state is left")?;
            let policies = ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?;
            check(policies.is_empty(), "no policy is left")?;
            let links = ip(&["-n", host, "-o", "link"])?;
            check(!links.contains("bewick0"), "no device is left")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Host {
    A,
    B,
}

/// The CHILD_SA as one end knows it; `place` is a's.
fn child(suite: EspSuite, (path, encap): (Path, bool), host: Host) -> ChildSa {
    let keys = |seed: u8| EspKeys {
        encryption: octets(seed, suite.encryption_key_len()),
        integrity: octets(seed + 1, suite.integrity_key_len()),
    };
    let inner = |host| vec![net(inner(host))];
    let a = ChildSa {
        id: CHILD,
        reqid: 7,
        spi_in: EspSpi(0xc000_0001),
        spi_out: EspSpi(0xc000_0002),
        suite,
        esn: false,
        keys_in: keys(1),
        keys_out: keys(101),
        ts_local: inner("a"),
        ts_remote: inner("b"),
        path,
        encap,
        virtual_ips: Vec::new(),
        waits: false,
        limits: Default::default(),
    };
    match host {
        Host::A => a,
        Host::B => ChildSa {
            spi_in: a.spi_out,
            spi_out: a.spi_in,
            keys_in: a.keys_out,
            keys_out: a.keys_in,
            ts_local: a.ts_remote,
            ts_remote: a.ts_local,
            path: Path::new(path.remote, path.local),
            ..a
        },
    }
}

fn octets(seed: u8, length: usize) -> Secret {
    Secret::new((0..length).map(|i| seed.wrapping_mul(7).wrapping_add(i as u8)).collect())
}

fn inner(host: &str) -> &'static str {
    if host == "a" { "10.0.1.1/32" } else { "10.0.2.1/32" }
}

fn net(text: &str) -> TrafficSelector {
    TrafficSelector::from_net(text.parse().expect("a network"))
}

fn path(local: &str, local_port: u16, remote: &str, remote_port: u16) -> Path {
    let socket = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
    Path::new(socket(local, local_port), socket(remote, remote_port))
}

fn count(
    runtime: &tokio::runtime::Runtime,
    plane: &mut KernelPlane,
) -> Result<bewick_xfrm::Counters> {
    Ok(runtime.block_on(plane.counters(CHILD))?)
}

/// Two namespaces with two links between them.
fn set_up() -> Result<()> {
    for host in ["a", "b"] {
        ip(&["netns", "add", host])?;
        ip(&["-n", host, "link", "set", "lo", "up"])?;
    }
    for (link, a, b) in [("0", A0, B0), ("1", A1, B1)] {
        let (va, vb) = (format!("va{link}"), format!("vb{link}"));
        let pair = ["link", "add", &va, "netns", "a", "type", "veth", "peer", "name", &vb];
        ip(&[&pair[..], &["netns", "b"]].concat())?;
        for (host, device, address) in [("a", &va, a), ("b", &vb, b)] {
            ip(&["-n", host, "addr", "add", &format!("{address}/24"), "dev", device])?;
            ip(&["-n", host, "link", "set", device, "up"])?;
        }
    }
    for (host, device, address) in [("a", "va0", A6), ("b", "vb0", B6)] {
        let prefix = format!("{address}/64");
        ip(&["-n", host, "addr", "add", &prefix, "dev", device, "nodad"])?;
    }
    thread::sleep(Duration::from_millis(500));
    Ok(())
}

fn encap_socket(port: u16) -> Result<UdpSocket> {
    // One socket for both families, as [::] takes IPv4 too.
    let socket = UdpSocket::bind(("::", port))?;
    let on: libc::c_int = 2; // UDP_ENCAP_ESPINUDP
    // SAFETY: the descriptor is open, and the value is as long as is said.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_UDP, 100, (&raw const on).cast(), 4)
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}

/// Runs `work` in a thread of its own in the namespace `host`.
fn in_host<T: Send + 'static>(
    host: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let namespace: OwnedFd = std::fs::File::open(format!("/run/netns/{host}"))?.into();
    let thread = thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        work()
    });
    thread.join().map_err(|_| "the thread in the namespace ended badly")?
}

/// Pings that run while something else happens.
struct Pings {
    child: Child,
    count: u32,
}

impl Pings {
    fn start(count: u32) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "a", "ping", "-n", "-q", "-i", "0.002", "-W", "1"]);
        command.args(["-c", &count.to_string(), "-I", INNER_A, INNER_B]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Pings { child, count })
    }

    fn lost(self) -> Result<u32> {
        let output = self.child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let received = text
            .split(", ")
            .find_map(|part| part.strip_suffix(" received"))
            .and_then(|number| number.parse::<u32>().ok())
            .ok_or_else(|| format!("ping said: {text} {:?}", output.stderr))?;
        Ok(self.count - received)
    }
}

fn ping(count: u32) -> Result<u32> {
    Pings::start(count)?.lost()
}

/// The last sequence number that `host` sent to `destination`.
fn sequence(host: &str, destination: IpAddr) -> Result<u64> {
    let spi = if host == "a" { "0xc0000002" } else { "0xc0000001" };
    let to = destination.to_string();
    let text = ip(&["-n", host, "xfrm", "state", "get", "dst", &to, "proto", "esp", "spi", spi])?;
    let after = text.split("oseq 0x").nth(1).ok_or("no oseq")?;
    let digits: String = after.chars().take_while(char::is_ascii_hexdigit).collect();
    Ok(u64::from_str_radix(&digits, 16)?)
}

/// How many packets more a's state for packets out (`Host::A`) or in (`Host::B`) at `place` may
/// carry.
fn left(side: Host, place: Path) -> Result<u64> {
    let (to, spi) = match side {
        Host::A => (place.remote.ip(), "0xc0000002"),
        Host::B => (place.local.ip(), "0xc0000001"),
    };
    let to = to.to_string();
    let get = ["-n", "a", "-s", "xfrm", "state", "get", "dst", &to, "proto", "esp", "spi", spi];
    let text = ip(&get)?;
    let (config, current) = text.split_once("lifetime current").ok_or("no counts")?;
    let number = |text: &str, before: &str, after: &str| -> Option<u64> {
        text.split(after).next()?.rsplit(before).next()?.trim().parse().ok()
    };
    let soft = number(config, "soft ", "(packets), hard").ok_or("no limit of packets")?;
    let used = number(current, ",", "(packets)").ok_or("no count of packets")?;
    Ok(soft.saturating_sub(used))
}

/// How many states `host` has. A packet that finds none leaves one without SPI behind for half a
/// minute, which is the kernel's and does not count.
fn states(host: &str) -> Result<usize> {
    let text = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
    let count = |what: &str| text.matches(what).count();
    Ok(count("proto esp spi 0x") - count("proto esp spi 0x00000000"))
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(arguments).output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("ip {}: {error}", arguments.join(" ")).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(holds: bool, what: &str) -> Result<()> {
    if !holds {
        for host in ["a", "b"] {
            println!("{host}:\n{}", ip(&["-n", host, "-s", "xfrm", "state", "list", "nokeys"])?);
            println!("{host}:\n{}", ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?);
            let stat = Command::new("ip")
                .args(["netns", "exec", host, "cat", "/proc/net/xfrm_stat"])
                .output()?;
            let lines = String::from_utf8_lossy(&stat.stdout).into_owned();
            let nonzero = lines.lines().filter(|line| !line.ends_with("\t0"));
            println!("{}", nonzero.collect::<Vec<_>>().join("\n"));
        }
        return Err(format!("does not hold: {what}").into());
    }
    Ok(())
}
