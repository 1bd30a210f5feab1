//! What the configuration says of how a CHILD_SA is carried reaches the kernel, and stays over moves.

use bewick_ike::{Carriage, EspSuite, REPLAY_WINDOWS};
use bewick_xfrm::{DataPlane as _, kernel::Method};

use super::{
    host::*,
    pair::{BEST, Pair},
};

/// The smallest and the largest replay window, with and without extended sequence numbers.
pub fn windows(runtime: &tokio::runtime::Runtime, method: Method) -> Result<()> {
    let mut pair = Pair::open(runtime, method)?;
    println!("-- replay windows over moves by {}", pair.a.describe().move_method);
    for (window, esn) in
        [(*REPLAY_WINDOWS.start(), false), (96, true), (*REPLAY_WINDOWS.end(), true)]
    {
        pair.esn = esn;
        pair.carriage = Carriage { replay_window: window, ..Carriage::default() };
        let start = (path(A0, 4500, B0, 4500), false);
        pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, start)?;
        for next in [
            start,
            (path(A1, 4500, B0, 4500), false),
            (path(A1, 4500, B1, 4500), true),
            (path(A0, 4500, B0, 4500), true),
        ] {
            pair.go(runtime, next)?;
            check(ping(20)? == 0, "pings go on")?;
            for host in ["a", "b"] {
                let all = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
                let named = format!("replay_window {window}, bitmap-length {}", window / 32);
                let with_it = all.matches(&named).count();
                println!("{host}: {with_it} states with a window of {window}");
                check(with_it >= 2 && with_it == states(host)?, "every state has the window")?;
            }
        }
        runtime.block_on(pair.a.remove(super::pair::CHILD))?;
        runtime.block_on(pair.b.remove(super::pair::CHILD))?;
    }
    pair.close(runtime)
}

/// Where no device does ESP, asking for it changes nothing: packets go, and moves lose none of the
/// CHILD_SA's states.
pub fn offload(runtime: &tokio::runtime::Runtime) -> Result<()> {
    println!("-- offload where no device can");
    let mut pair = Pair::open(runtime, BEST)?;
    pair.carriage = Carriage { offload: true, ..Carriage::default() };
    let start = (path(A0, 4500, B0, 4500), false);
    pair.install(runtime, EspSuite::AesGcm16 { key_bits: 128 }, start)?;
    for next in [
        start,
        (path(A1, 4500, B0, 4500), false),
        (path(A1, 4500, B1, 4500), true),
        (path(A0, 4500, B0, 4500), false),
    ] {
        let report = pair.go(runtime, next)?;
        println!("{} requests, {} packets refused", report.0.requests, pair.rejected(runtime)?);
        check(ping(20)? == 0, "pings go on")?;
    }
    pair.close(runtime)
}
