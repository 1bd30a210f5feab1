//! CHILD_SAs of XFRM interfaces: states and policies bear the number of one, whatever becomes of them;
//! and, in a kernel that has such interfaces, packets by one are carried and others are not.

use std::{num::NonZeroU32, thread, time::Duration};

use bewick_ike::{EspSuite, TrafficSelector};
use bewick_xfrm::{DataPlane, PlaneEvent, Reconciled, Trap, TrapId};

use super::{
    host::{
        A0, A1, A6, B0, B1, B6, INNER_A, INNER_B, Pings, Result, check, ip, net, path, ping,
        ping_from,
    },
    pair::{BEST, Pair},
};

/// The number, and as `ip` shows it.
const IF_ID: NonZeroU32 = NonZeroU32::new(42).unwrap();
const SHOWN: &str = "if_id 0x2a";

const GCM: EspSuite = EspSuite::AesGcm16 { key_bits: 128 };

fn pair(runtime: &tokio::runtime::Runtime) -> Result<Pair> {
    let mut pair = Pair::open(runtime, BEST)?;
    pair.carriage.if_id = Some(IF_ID);
    Ok(pair)
}

/// All states and policies that both hosts have are those of the interface.
fn all_bear_it(what: &str) -> Result<()> {
    for host in ["a", "b"] {
        let states = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
        let policies = ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?;
        // Not the one that a packet without a state leaves behind for half a minute.
        let is_ours = |state: &&str| state.contains("spi 0x") && !state.contains("spi 0x00000000");
        let states: Vec<&str> = states.split("\nsrc ").filter(is_ours).collect();
        let bearing = states.iter().filter(|state| state.contains(SHOWN)).count();
        let bound = [bearing, policies.matches(SHOWN).count()];
        let all = [states.len(), policies.matches("dir ").count()];
        check(
            bound == all && all[0] >= 2 && all[1] == 3,
            &format!("{what}: {bound:?} of {all:?}"),
        )?;
    }
    Ok(())
}

/// What can be seen without an interface.
pub fn if_id(runtime: &tokio::runtime::Runtime) -> Result<()> {
    // What one that was killed has left is found, although the kernel wants the number to be named.
    let [selector, ours] =
        [["src", "10.0.1.1/32", "dst", "10.0.2.1/32"], ["index", "0x70e00009", "if_id", "42"]];
    let policy = ["-n", "a", "xfrm", "policy", "add"];
    let template = ["tmpl", "src", A0, "dst", B0, "proto", "esp", "reqid", "7", "mode", "tunnel"];
    ip(&[&policy[..], &selector, &["dir", "out"], &ours, &template].concat())?;

    let mut pair = pair(runtime)?;
    println!("-- if_id");
    let left = ip(&["-n", "a", "xfrm", "policy", "list", "nosock"])?;
    check(left.is_empty(), "what a killed plane has left for an interface goes")?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    all_bear_it("installed")?;
    let moves = [
        ("own address changes", (path(A1, 4500, B0, 4500), false)),
        ("peer's address changes", (path(A1, 4500, B1, 4500), false)),
        ("UDP encapsulation begins", (path(A1, 4500, B1, 4500), true)),
        ("port changes", (path(A1, 40000, B1, 4500), true)),
        ("UDP encapsulation ends", (path(A1, 4500, B1, 4500), false)),
        ("to IPv6", (path(A6, 4500, B6, 4500), false)),
        ("back to IPv4", (path(A0, 4500, B0, 4500), true)),
    ];
    for (what, next) in moves {
        pair.go(runtime, next)?;
        all_bear_it(what)?;
    }
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled::default(), "what is right is left alone")?;
    // The same selectors without an interface are somebody else's.
    let delete = ["-n", "a", "xfrm", "policy", "delete"];
    ip(&[&delete[..], &selector, &["dir", "out", "if_id", "42"]].concat())?;
    ip(&[&policy[..], &selector, &["dir", "out"], &template].concat())?;
    let found = runtime.block_on(pair.a.reconcile())?;
    check(found == Reconciled { restored: 1, ..Reconciled::default() }, "it is put back")?;
    let policies = ip(&["-n", "a", "xfrm", "policy", "list", "nosock"])?;
    check(policies.matches(SHOWN).count() == 3, "with its number")?;
    check(policies.matches("dir ").count() == 4, "and the other one stays")?;
    ip(&[&delete[..], &selector, &["dir", "out"]].concat())?;

    let trap = trap();
    runtime.block_on(pair.a.set_trap(&trap))?;
    let trapped = |count| -> Result<()> {
        let policies = ip(&["-n", "a", "xfrm", "policy", "list", "nosock", "dst", "10.65.0.0/16"])?;
        check(policies.matches(SHOWN).count() == count, "traps are the interface's too")
    };
    trapped(1)?;
    runtime.block_on(pair.a.clear_trap(trap.id))?;
    trapped(0)?;
    pair.close(runtime)
}

fn trap() -> Trap {
    let (ts_local, ts_remote) = (vec![net("10.0.1.1/32")], vec![net("10.65.0.0/16")]);
    Trap { id: TrapId(3), ts_local, ts_remote, if_id: Some(IF_ID) }
}

/// Packets by a real interface, during moves too; and what comes by it makes the kernel ask.
pub fn interface(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let mut pair = pair(runtime)?;
    println!("-- interface");
    let mut events = pair.a.take_events().ok_or("no events")?;
    pair.install(runtime, GCM, (path(A0, 4500, B0, 4500), false))?;
    check(ping(3)? == 3, "what comes by no interface is not carried")?;
    for (host, here, there) in [("a", INNER_A, INNER_B), ("b", INNER_B, INNER_A)] {
        ip(&["-n", host, "link", "add", "x0", "type", "xfrm", "dev", "lo", "if_id", "42"])?;
        ip(&["-n", host, "link", "set", "x0", "up"])?;
        ip(&["-n", host, "route", "replace", there, "dev", "x0", "src", here])?;
    }
    ip(&["-n", "a", "route", "add", "10.65.0.0/16", "dev", "x0", "src", INNER_A])?;
    check(ping(20)? == 0, "what comes by the interface is")?;
    // Of these b needs to know nothing before packets come, and no packet of its own is late.
    let own = [
        ("own address changes", (path(A1, 4500, B0, 4500), false)),
        ("back", (path(A0, 4500, B0, 4500), false)),
        ("once more", (path(A1, 4500, B0, 4500), false)),
        ("and back", (path(A0, 4500, B0, 4500), false)),
    ];
    let both = [
        ("peer's address changes, in UDP", (path(A0, 4500, B1, 4500), true)),
        ("both addresses change", (path(A1, 4500, B0, 4500), true)),
        ("port changes", (path(A1, 40000, B0, 4500), true)),
        ("to IPv6", (path(A6, 4500, B6, 4500), true)),
    ];
    let (mut lost_by_own, mut all) = (0, 0);
    for (what, next) in own.into_iter().chain(both) {
        let pings = Pings::start(200)?;
        thread::sleep(Duration::from_millis(150));
        pair.go(runtime, next)?;
        let lost = pings.lost()?;
        println!("{what}: {lost} of 200 pings by the interface lost");
        all += lost;
        if own.iter().any(|own| own.0 == what) {
            lost_by_own += lost;
        }
        check(ping(5)? == 0, "packets go on")?;
        all_bear_it(what)?;
    }
    // Packets of an interface can't be held back, and there is a moment without a state.
    println!("{lost_by_own} lost by own moves, {all} by all");
    check(
        lost_by_own <= 5 * own.len() as u32,
        "a move loses nothing but what is sent that moment",
    )?;
    check(all <= 80, "packets go on over moves")?;

    let trap = trap();
    runtime.block_on(pair.a.set_trap(&trap))?;
    ping_from(INNER_A, "10.65.0.1", 1)?;
    let asked = async { tokio::time::timeout(Duration::from_secs(10), events.recv()).await };
    let packet = match runtime.block_on(asked)? {
        Some(PlaneEvent::Acquire { trap: TrapId(3), packet }) => packet,
        other => return Err(format!("not asked for, but {other:?}").into()),
    };
    let is = |ts: &TrafficSelector, address: &str| ts.nets() == net(address).nets();
    let right = is(&packet.local, "10.0.1.1/32") && is(&packet.remote, "10.65.0.1/32");
    check(right, "the packet is told")?;
    // The state that was asked for is the interface's, and is found and removed for all that.
    let asked_for = || ip(&["-n", "a", "xfrm", "state", "list", "nokeys"]);
    check(asked_for()?.contains("dst 192.0.2.248"), "the kernel notes what it asks for")?;
    runtime.block_on(pair.a.set_trap(&trap))?;
    check(!asked_for()?.contains("dst 192.0.2.248"), "and is to ask anew")?;
    runtime.block_on(pair.a.clear_trap(trap.id))?;
    for host in ["a", "b"] {
        ip(&["-n", host, "link", "delete", "x0"])?;
    }
    pair.close(runtime)
}
