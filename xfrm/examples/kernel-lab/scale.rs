//! A thousand CHILD_SAs at one end, and one move of all of them.

use std::time::{Duration, Instant};

use bewick_ike::{ChildId, ChildMove, ChildSa, EspSpi, EspSuite};
use bewick_xfrm::{DataPlane, PlaneEvent, kernel::Method};

use super::{
    host::{A0, A1, B0, Result, check, ip, net, path, policies, states},
    pair::{Host, Pair, child},
};

const CHILDREN: u32 = 1000;

/// One round by one method.
pub fn thousand(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
    let place = (path(A0, 4500, B0, 4500), true);
    let suite = EspSuite::AesGcm16 { key_bits: 128 };
    let began = Instant::now();
    for number in 0..CHILDREN {
        let sa = ChildSa {
            id: ChildId(u64::from(number) + 1),
            reqid: number + 1,
            spi_in: EspSpi(0x1000_0000 + number),
            spi_out: EspSpi(0x2000_0000 + number),
            ts_remote: vec![net(&format!("10.64.{}.{}/32", number / 250, number % 250 + 1))],
            ..child(suite, place, Host::A)
        };
        runtime.block_on(pair.a.install(&sa))?;
    }
    let installed = began.elapsed();
    let count = CHILDREN as usize;
    check(states("a")? == 2 * count && policies("a")? == 3 * count, "all are there")?;

    let mut events = pair.a.take_events().ok_or("no events")?;
    let to = path(A1, 4500, B0, 4500);
    let moves: Vec<ChildMove> = (1..=u64::from(CHILDREN))
        .map(|id| ChildMove { id: ChildId(id), path: to, encap: true })
        .collect();
    let report = runtime.block_on(pair.a.move_children(&moves))?;
    println!(
        "{CHILDREN} CHILD_SAs by {}: installed in {installed:?}, moved in {:?} with {} netlink requests \
         ({:.2} each) in {} round trips",
        pair.a.describe().move_method,
        report.took,
        report.requests,
        f64::from(report.requests) / f64::from(CHILDREN),
        report.round_trips
    );
    // What is asked once for the whole move is in it too.
    let limit = if method == Method::DeleteAdd { 7 } else { 5 };
    check(report.requests <= CHILDREN * limit + 5, "a move takes few requests")?;
    check(method == Method::DeleteAdd || report.round_trips <= CHILDREN, "and they go together")?;
    let out = ip(&["-n", "a", "xfrm", "policy", "list", "nosock", "dir", "out"])?;
    let there = out.matches(&format!("tmpl src {A1} dst {B0}")).count();
    check(there == count && out.matches("tmpl").count() == count, "all policies have moved")?;
    let out = ip(&["-n", "a", "xfrm", "state", "list", "nokeys", "src", A1, "dst", B0])?;
    check(out.matches("proto esp").count() == count, "all outbound states have moved")?;
    // All the old inbound states end at once, which is as many events.
    let patience = Instant::now() + Duration::from_secs(30);
    while states("a")? != 2 * count && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(200));
    }
    check(states("a")? == 2 * count, "the old states end")?;
    check(events.try_recv().ok() != Some(PlaneEvent::EventsLost), "no event is lost")?;
    pair.close(runtime)
}
