//! A CHILD_SA in transport mode: what is in the kernel for it, and what it carries.

use std::{net::IpAddr, time::Duration};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite, Mode};
use bewick_xfrm::{DataPlane, PlaneEvent, Trap, TrapId};

use super::{host::*, pair::*};

/// Between the two ends themselves, as one of them knows it.
fn between(host: Host, (here, there): (&str, &str)) -> Result<ChildSa> {
    let suite = EspSuite::AesGcm16 { key_bits: 128 };
    let place = (path(here, 500, there, 500), false);
    let of = |address: &str| -> Result<_> {
        Ok(vec![bewick_ike::TrafficSelector::from_addr(address.parse::<IpAddr>()?)])
    };
    let (ours, theirs) = match host {
        Host::A => (here, there),
        Host::B => (there, here),
    };
    let (ts_local, ts_remote) = (of(ours)?, of(theirs)?);
    Ok(ChildSa { mode: Mode::Transport, ts_local, ts_remote, ..child(suite, place, host) })
}

/// What the kernel has is of transport mode alone, and in and out policies alone.
fn look(host: &str, states: usize) -> Result<()> {
    let there = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
    let policies = ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?;
    println!("{host}, states:\n{there}{host}, policies:\n{policies}");
    check(there.matches("mode transport").count() == states, "its states are in transport mode")?;
    // What the trap has asked for has no SPI.
    let asked = there.matches("spi 0x00000000").count();
    check(there.matches("mode tunnel").count() == asked, "and none is in tunnel mode")?;
    check(policies.matches("mode transport").count() == 2, "so are its two policies")?;
    check(!policies.contains("mode tunnel"), "and none is in tunnel mode")?;
    check(!policies.contains("dir fwd"), "nothing is forwarded")
}

/// Both families; what is sent is protected, a successor takes over, and no move takes it along.
pub fn transport(runtime: &tokio::runtime::Runtime) -> Result<()> {
    for ends in [(A0, B0), (A6, B6)] {
        println!("-- transport mode, {} and {}", ends.0, ends.1);
        let mut pair = Pair::open(runtime, BEST)?;
        check(ping_from(ends.0, ends.1, 3)? == 0, "the ends reach each other in clear")?;
        let mut events = pair.a.take_events().ok_or("no events")?;
        let own = between(Host::A, ends)?;
        let (id, ts_local, ts_remote) = (TrapId(5), own.ts_local, own.ts_remote);
        let trap = Trap { id, ts_local, ts_remote, if_id: None };
        runtime.block_on(pair.a.set_trap(&trap))?;
        check(ping_from(ends.0, ends.1, 2)? == 2, "with a trap nothing leaves in clear")?;
        let patience = Duration::from_secs(10);
        let event = runtime.block_on(async { tokio::time::timeout(patience, events.recv()).await });
        check(
            matches!(event, Ok(Some(PlaneEvent::Acquire { trap: TrapId(5), .. }))),
            "and the first packet is told of",
        )?;
        for (plane, host) in [(&mut pair.b, Host::B), (&mut pair.a, Host::A)] {
            runtime.block_on(plane.install(&between(host, ends)?))?;
        }
        ["a", "b"].into_iter().try_for_each(|host| look(host, 2))?;
        check(ping_from(ends.0, ends.1, 20)? == 0, "it carries what the ends send each other")?;
        check(sequence("a", ends.1.parse()?)? >= 20, "as ESP")?;
        let (a, b) = (count(runtime, &mut pair.a)?, count(runtime, &mut pair.b)?);
        check(a.packets_out >= 20 && b.packets_in >= 20, "the other end takes it")?;

        let to = ChildMove { id: CHILD, path: path(A1, 4500, B0, 4500), encap: false };
        let moved = runtime.block_on(pair.a.move_children(&[to]));
        println!("a move: {moved:?}");
        check(moved.is_err_and(|e| e.to_string().contains("not moved")), "it is not moved")?;
        ip(&["-n", "a", "xfrm", "policy", "flush"])?;
        let restored = runtime.block_on(pair.a.reconcile())?.restored;
        check(restored <= 2, "its two policies and no more are put back")?;
        look("a", 2)?;

        // The peer uses the successor when it has it; the old one goes after that.
        for (plane, host) in [(&mut pair.b, Host::B), (&mut pair.a, Host::A)] {
            let old = between(host, ends)?;
            let (one, other) = (EspSpi(old.spi_in.0 + 0x10), EspSpi(old.spi_out.0 + 0x10));
            let heir = ChildSa { id: ChildId(2), spi_in: one, spi_out: other, ..old };
            runtime.block_on(plane.install(&heir))?;
        }
        look("a", 4)?;
        check(ping_from(ends.0, ends.1, 10)? == 0, "both are there")?;
        for plane in [&mut pair.a, &mut pair.b] {
            runtime.block_on(plane.remove(CHILD))?;
        }
        ["a", "b"].into_iter().try_for_each(|host| look(host, 2))?;
        check(ping_from(ends.0, ends.1, 20)? == 0, "the successor carries what follows")?;
        for plane in [&mut pair.a, &mut pair.b] {
            runtime.block_on(plane.remove(ChildId(2)))?;
        }
        check(ping_from(ends.0, ends.1, 2)? == 2, "then the trap is there again")?;
        pair.close(runtime)?;
        check(ping_from(ends.0, ends.1, 3)? == 0, "and nothing once that is gone")?;
    }
    Ok(())
}
