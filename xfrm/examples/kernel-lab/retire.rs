//! A CHILD_SA that is about to go while another one of its reqid stands beside it.

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite};
use bewick_xfrm::{DataPlane, kernel::Method};

use super::{
    host::{A0, A1, B0, Result, check, path, ping, states},
    pair::{CHILD, Host, Pair, child},
};

const OTHER: ChildId = ChildId(2);

const GCM: EspSuite = EspSuite::AesGcm16 { key_bits: 128 };

/// Whichever of two goes, the newer or the older, one that waits for it or not: nothing more is sent on it once a has
/// retired it, and what the peer sends on it is taken (RFC 7296 §1.4.1, §2.8.3).
pub fn retire(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    println!("-- retire");
    for (goes, stays, waits) in
        [(CHILD, OTHER, true), (CHILD, OTHER, false), (OTHER, CHILD, false), (OTHER, CHILD, true)]
    {
        let mut pair = Pair::open(runtime, method)?;
        let place = (path(A0, 4500, B0, 4500), false);
        pair.install(runtime, GCM, place)?;
        let other = |host| {
            let first = child(GCM, place, host);
            let spi = |spi: EspSpi| EspSpi(spi.0 + 0x10);
            let (spi_in, spi_out) = (spi(first.spi_in), spi(first.spi_out));
            ChildSa { id: OTHER, spi_in, spi_out, ..first }
        };
        runtime.block_on(pair.b.install(&other(Host::B)))?;
        runtime.block_on(pair.a.install(&ChildSa { waits, ..other(Host::A) }))?;
        check(ping(5)? == 0, "pings beside each other")?;
        let sent = |pair: &mut Pair, id| -> Result<u64> {
            Ok(runtime.block_on(pair.a.counters(id))?.packets_out)
        };
        runtime.block_on(pair.a.retire(&[goes, ChildId(9)]))?;
        runtime.block_on(pair.a.retire(&[goes]))?;
        let before = (sent(&mut pair, goes)?, sent(&mut pair, stays)?);
        check(ping(5)? == 0, "pings when one is retired, whichever b sends on")?;
        let after = (sent(&mut pair, goes)?, sent(&mut pair, stays)?);
        check(after == (before.0, before.1 + 5), "the other one sends")?;
        check(states("a")? == 3, "what goes still receives")?;
        // b has heard of it.
        runtime.block_on(pair.b.remove(goes))?;
        check(ping(5)? == 0, "pings when it is gone at the other end")?;
        let moves = |path| [goes, stays].map(|id| ChildMove { id, path, encap: false });
        runtime.block_on(pair.a.move_children(&moves(path(A1, 4500, B0, 4500))))?;
        let there = [ChildMove { id: stays, path: path(B0, 4500, A1, 4500), encap: false }];
        runtime.block_on(pair.b.move_children(&there))?;
        check(ping(5)? == 0, "pings after a move")?;
        runtime.block_on(pair.a.remove(goes))?;
        check(ping(5)? == 0, "pings when it is gone at both")?;
        pair.close(runtime)?;
    }
    println!("nothing is sent on what is retired");
    Ok(())
}
