//! Two hosts in network namespaces, a `KernelPlane` in each, and a CHILD_SA that moves while pings
//! run through it. Needs root and a kernel with ESP: `interop/lab/kernel-plane` runs it in the guest.
//!
//! Ends with status 0 only if every check held; prints what each move cost. With arguments it runs only
//! the parts with these names; `interface`, which not every guest's kernel can do, only then. `by=METHOD`
//! has states moved by one method only, such as `migrate-state`.

mod carriage;
mod host;
mod interface;
mod pair;
mod planned;
mod reconcile;
mod retire;
mod scale;
mod transport;
mod trap;

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite, HmacSha2, Limits};
use bewick_xfrm::{
    DataPlane, PlaneError, PlaneEvent,
    auto::{self, Wanted},
    kernel::{self, KernelPlane, Method},
};

use self::{host::*, pair::*};

/// What an argument begins with that says how states are moved.
const BY: &str = "by=";

/// The part that needs XFRM interfaces.
const INTERFACE: &str = "interface";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if std::env::args().nth(1).as_deref() == Some(reconcile::VICTIM) {
        return reconcile::victim(&runtime);
    }
    let decision = auto::choose(Wanted::Auto);
    println!("plane: {} ({})", decision.kind.as_str(), decision.reason);
    KernelPlane::probe()?;
    set_up()?;
    planned::set_up()?;
    let (by, wanted): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with(BY));
    let mut methods = kernel::methods()?;
    println!("moves: {}", methods.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", "));
    for by in by.iter().filter_map(|by| by.strip_prefix(BY)) {
        methods.retain(|method| method.as_str() == by);
        check(!methods.is_empty(), &format!("this kernel moves states by {by}"))?;
    }
    let each = |part: &dyn Fn(Method) -> Result<()>| methods.iter().copied().try_for_each(part);
    let parts: [(&str, &dyn Fn() -> Result<()>); 21] = [
        ("planned", &|| {
            each(&|method| {
                [false, true]
                    .into_iter()
                    .try_for_each(|encap| planned::planned(&runtime, method, encap, false))
            })
        }),
        ("rekey", &|| each(&|method| planned::planned(&runtime, method, true, true))),
        ("retire", &|| each(&|method| retire::retire(&runtime, method))),
        ("silence", &|| planned::silence(&runtime)),
        ("moving", &|| each(&|method| moving(&runtime, method))),
        ("limits", &|| each(&|method| limits(&runtime, method))),
        ("scale", &|| each(&|method| scale::thousand(&runtime, method))),
        ("rollback", &|| rollback(&runtime)),
        ("killed", &|| reconcile::killed(&runtime)),
        ("reconcile", &|| reconcile::differences(&runtime)),
        ("flushed", &|| reconcile::flushed(&runtime)),
        ("overflow", &reconcile::overflow),
        ("suites", &|| suites(&runtime)),
        ("families", &|| each(&|method| families(&runtime, method))),
        ("windows", &|| each(&|method| carriage::windows(&runtime, method))),
        ("offload", &|| carriage::offload(&runtime)),
        ("bypass", &|| bypass(&runtime)),
        ("transport", &|| transport::transport(&runtime)),
        ("trap", &|| each(&|method| trap::trap(&runtime, method))),
        ("if_id", &|| interface::if_id(&runtime)),
        (INTERFACE, &|| interface::interface(&runtime)),
    ];
    if let Some(unknown) = wanted.iter().find(|name| parts.iter().all(|part| part.0 != *name)) {
        return Err(format!("there is no part {unknown:?}").into());
    }
    for (name, part) in parts {
        if wanted.is_empty() && name != INTERFACE || wanted.iter().any(|wanted| wanted == name) {
            part()?;
        }
    }
    println!("kernel-lab: ok");
    Ok(())
}

/// One round of moves by one method.
fn moving(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
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
        // One to hold packets back, and at most eight for a CHILD_SA, where an earlier move's inbound state
        // is in the way and does not fit. MIGRATE can't take UDP away.
        let encap_ends = place.1 && !next.1;
        if method == Method::MigrateState || method == Method::Migrate && !encap_ends {
            check(a.requests.max(b.requests) <= 9, "a move takes few requests")?;
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
fn limits(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
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
    let mut pair = Pair::open(runtime, BEST)?;
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
            let mut pair = Pair::open(runtime, BEST)?;
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
    let mut pair = Pair::open(runtime, BEST)?;
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

/// One CHILD_SA with several selectors carries both families, over either, and nothing else.
fn families(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    println!("-- families");
    let mut pair = Pair::open(runtime, method)?;
    pair.esn = true;
    let (six_a, six_b) = ("2001:db8:1::1", "2001:db8:2::1");
    for (host, here, there) in [("a", six_a, six_b), ("b", six_b, six_a)] {
        let address = format!("{here}/128");
        ip(&["-n", host, "addr", "add", &address, "dev", "bewick0", "nodad"])?;
        ip(&["-n", host, "route", "add", there, "dev", "bewick0", "src", here])?;
    }
    let start = (path(A0, 4500, B0, 4500), false);
    let selectors = |four: &str, six: &str| vec![net(four), net("10.99.0.0/16"), net(six)];
    for (plane, host) in [(&mut pair.a, Host::A), (&mut pair.b, Host::B)] {
        let a = selectors("10.0.1.1/32", "2001:db8:1::/64");
        let b = selectors("10.0.2.1/32", "2001:db8:2::/64");
        let (ts_local, ts_remote) = if host == Host::A { (a, b) } else { (b, a) };
        let suite = EspSuite::AesGcm16 { key_bits: 256 };
        let sa = ChildSa { esn: true, ts_local, ts_remote, ..child(suite, start, host) };
        runtime.block_on(plane.install(&sa))?;
    }
    // Each pair of selectors of one family, in three directions.
    check(policies("a")? == 3 * (4 + 1), "each pair of selectors has its policies")?;
    for (place, encap) in [
        (start.0, false),
        (path(A6, 4500, B6, 4500), false),
        (path(A6, 4500, B6, 4500), true),
        (path(A1, 4500, B0, 4500), true),
    ] {
        if place != start.0 {
            pair.go(runtime, (place, encap))?;
        }
        let before = sequence("a", place.remote.ip())?;
        let lost = (ping(10)?, ping_from(six_a, six_b, 10)?);
        println!("over {place}, in UDP {encap}: {} of IPv4 and {} of IPv6 lost", lost.0, lost.1);
        check(lost == (0, 0), "both families are carried")?;
        check(sequence("a", place.remote.ip())? == before + 20, "by the CHILD_SA")?;
    }
    pair.close(runtime)
}

/// A policy that covers the hosts themselves spares a socket that asks for it.
fn bypass(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- bypass");
    let mut pair = Pair::open(runtime, BEST)?;
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
