//! Packets that no CHILD_SA carries yet: none leaves in the clear, and the first is told.

use std::{
    thread,
    time::{Duration, Instant},
};

use bewick_ike::{EspSuite, Packet};
use bewick_xfrm::{DataPlane, PlaneEvent, Reconciled, Trap, TrapId, kernel::Method};
use tokio::sync::mpsc::Receiver;

use super::{
    host::{
        A0, A1, B0, B1, B6, INNER_A, INNER_B, Pings, Result, check, ip, net, path, ping, ping_from,
        policies, states,
    },
    pair::{CHILD, Pair},
};

const GCM: EspSuite = EspSuite::AesGcm16 { key_bits: 128 };

/// How long the kernel's word may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sets traps, installs CHILD_SAs in their place and moves these, by one method.
pub fn trap(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
    println!("-- traps, and moves by {}", pair.a.describe().move_method);
    let mut events = pair.a.take_events().ok_or("no events")?;
    // A plane that was killed in the midst of a move may have left it on.
    keep(false)?;
    // Where packets would leave by in the clear, and somebody who counts them.
    ip(&["-n", "a", "route", "replace", INNER_B, "via", B0, "dev", "va0", "src", INNER_A])?;
    let before = echoes()?;
    check(ping(3)? == 3, "nobody answers")?;
    let clear = echoes()?;
    check(clear == before + 3, "without a trap packets leave in the clear")?;

    let same = one(3, "10.0.1.1/32", "10.0.2.1/32");
    runtime.block_on(pair.a.set_trap(&same))?;
    check(policies("a")? == 1, "a trap is one policy")?;
    tells(runtime, &mut events, 3, INNER_B)?;
    check(ping(3)? == 3 && next(runtime, &mut events, 300).is_none(), "it tells once")?;
    runtime.block_on(pair.a.set_trap(&same))?;
    tells(runtime, &mut events, 3, INNER_B)?;
    check(echoes()? == clear, "with a trap none does")?;
    check(asked()? == 1, "the kernel notes what it has asked for")?;

    // What is asked for is in the way of nothing.
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    check(ping(20)? == 0, "the CHILD_SA carries packets")?;
    check(policies("a")? == 3, "its policy has the place of the trap's")?;
    for next in [(path(A1, 4500, B0, 4500), false), (path(A1, 4500, B1, 4500), true)] {
        pair.go(runtime, next)?;
        check(ping(20)? == 0, "and moves")?;
    }
    check(asked()? == 1, "what was asked for was there all the time")?;
    let whole = runtime.block_on(pair.a.reconcile())?;
    check(whole == Reconciled::default(), "nothing is amiss")?;

    runtime.block_on(pair.a.set_trap(&same))?;
    check(asked()? == 0, "what was asked for is forgotten")?;
    runtime.block_on(pair.a.remove(CHILD))?;
    runtime.block_on(pair.b.remove(CHILD))?;
    check(policies("a")? == 1 && states("a")? == 0, "the trap is there again")?;
    tells(runtime, &mut events, 3, INNER_B)?;
    let seen = echoes()?;
    println!("pings that have come: {clear} in the clear, {} by the CHILD_SA", seen - clear);
    check(seen == clear + 60, "nothing has left in the clear")?;
    ip(&["-n", "a", "xfrm", "policy", "flush"])?;
    let restored = runtime.block_on(pair.a.reconcile())?;
    check(restored.restored == 1 && policies("a")? == 1, "a trap that is gone comes back")?;
    runtime.block_on(pair.a.clear_trap(TrapId(3)))?;
    check(policies("a")? == 0 && asked()? == 0, "no trap is left")?;

    // A CHILD_SA with less than the trap leaves the rest to it.
    let wide = one(4, "10.0.0.0/16", "10.0.2.0/24");
    runtime.block_on(pair.a.set_trap(&wide))?;
    ip(&["-n", "a", "route", "replace", "10.0.2.9", "via", B0, "dev", "va0", "src", INNER_A])?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    check(ping(5)? == 0 && policies("a")? == 4, "both are there")?;
    tells(runtime, &mut events, 4, "10.0.2.9")?;
    check(ping(5)? == 0, "and the CHILD_SA goes on")?;

    // A packet that is forwarded is as good as one of this host's.
    runtime.block_on(pair.a.set_trap(&wide))?;
    let before = echoes()?;
    let ping = ["netns", "exec", "c", "ping", "-n", "-c", "1", "-W", "1", INNER_B];
    check(ip(&ping).is_err() && echoes()? == before, "a forwarded packet is caught")?;
    let event = next(runtime, &mut events, PATIENCE.as_millis() as u64);
    let packet = icmp("10.0.1.9", INNER_B)?;
    check(event == Some(PlaneEvent::Acquire { trap: TrapId(4), packet }), "and told")?;
    runtime.block_on(pair.a.remove(CHILD))?;
    runtime.block_on(pair.b.remove(CHILD))?;
    runtime.block_on(pair.a.clear_trap(TrapId(4)))?;

    // What the kernel is told to keep is carried by the CHILD_SA that it asks for.
    keep(true)?;
    runtime.block_on(pair.a.set_trap(&same))?;
    let before = echoes()?;
    let first = Pings::start(1)?;
    let event = next(runtime, &mut events, PATIENCE.as_millis() as u64);
    check(matches!(event, Some(PlaneEvent::Acquire { .. })), "it is told")?;
    check(echoes()? == before, "and waits")?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    // That its sender waits for the answer for no more than a second is another matter.
    let start = Instant::now();
    while echoes()? == before && start.elapsed() < PATIENCE {}
    check(echoes()? == before + 1, "the first packet is kept")?;
    first.lost()?;
    keep(false)?;
    runtime.block_on(pair.a.clear_trap(TrapId(3)))?;

    // The state that never comes is of IPv4, whatever the packets are.
    let (six_a, six_b) = ("2001:db8:1::1", "2001:db8:2::1");
    let address = format!("{six_a}/128");
    ip(&["-n", "a", "addr", "add", &address, "dev", "bewick0", "nodad"])?;
    ip(&["-n", "a", "route", "replace", six_b, "via", B6, "dev", "va0", "src", six_a])?;
    runtime.block_on(pair.a.set_trap(&one(5, &address, "2001:db8:2::/64")))?;
    check(ping_from(six_a, six_b, 1)? == 1, "a packet of IPv6 is caught")?;
    let event = next(runtime, &mut events, PATIENCE.as_millis() as u64);
    let side = |address: &str| format!("{address}[icmpv6]").parse();
    let packet = Packet { local: side(six_a)?, remote: side(six_b)? };
    check(event == Some(PlaneEvent::Acquire { trap: TrapId(5), packet }), "and told")?;
    pair.close(runtime)
}

/// Whether a's kernel keeps packets whose state is to come.
fn keep(on: bool) -> Result<()> {
    let setting = format!("net.core.xfrm_larval_drop={}", u8::from(!on));
    ip(&["netns", "exec", "a", "sysctl", "-q", "-w", &setting]).map(drop)
}

fn one(id: u32, local: &str, remote: &str) -> Trap {
    Trap { id: TrapId(id), ts_local: vec![net(local)], ts_remote: vec![net(remote)], if_id: None }
}

/// A ping is caught, and told as what it is.
fn tells(
    runtime: &tokio::runtime::Runtime,
    events: &mut Receiver<PlaneEvent>,
    trap: u32,
    to: &str,
) -> Result<()> {
    check(ping_from(INNER_A, to, 1)? == 1, "a packet is caught")?;
    let event = next(runtime, events, PATIENCE.as_millis() as u64);
    println!("event: {event:?}");
    let packet = icmp(INNER_A, to)?;
    check(event == Some(PlaneEvent::Acquire { trap: TrapId(trap), packet }), "it is told")
}

fn icmp(from: &str, to: &str) -> Result<Packet> {
    let side = |address: &str| format!("{address}[icmp]").parse();
    Ok(Packet { local: side(from)?, remote: side(to)? })
}

fn next(
    runtime: &tokio::runtime::Runtime,
    events: &mut Receiver<PlaneEvent>,
    ms: u64,
) -> Option<PlaneEvent> {
    let limit = Duration::from_millis(ms);
    // What this test removes by itself is told too, and is another part's matter.
    let other = async {
        loop {
            match events.recv().await {
                Some(PlaneEvent::Disturbed) => {}
                event => return event,
            }
        }
    };
    runtime.block_on(async { tokio::time::timeout(limit, other).await.ok().flatten() })
}

/// States that a's kernel has asked for and not got.
fn asked() -> Result<usize> {
    let text = ip(&["-n", "a", "xfrm", "state", "list", "nokeys"])?;
    Ok(text.matches("proto esp spi 0x00000000").count())
}

/// The pings that have reached b.
fn echoes() -> Result<u64> {
    // It counts when it comes to it.
    thread::sleep(Duration::from_millis(100));
    let text = ip(&["netns", "exec", "b", "cat", "/proc/net/snmp"])?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, counts) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let at = names.split_whitespace().position(|name| name == "InEchos").ok_or("no InEchos")?;
    Ok(counts.split_whitespace().nth(at).ok_or("no count")?.parse()?)
}
