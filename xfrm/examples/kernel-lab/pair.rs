//! A `KernelPlane` at each end, and the CHILD_SA that they share.

use std::net::UdpSocket;

use bewick_ike::{
    Carriage, ChildId, ChildMove, ChildSa, EspKeys, EspSpi, EspSuite, Limits, Path, Secret,
};
use bewick_xfrm::{
    DataPlane,
    kernel::{self, Config, KernelPlane, Method},
};

use super::host::{INNER_A, INNER_B, Result, check, encap_socket, in_host, ip, net, states};

/// Moves as well as this kernel can.
pub const BEST: Method = Method::ALL[0];

pub const CHILD: ChildId = ChildId(1);

/// The two ends.
pub struct Pair {
    pub a: KernelPlane,
    pub b: KernelPlane,
    pub esn: bool,
    pub limits: Limits,
    pub carriage: Carriage,
    /// sockets that take ESP out of UDP
    pub _encap: Vec<UdpSocket>,
}

impl Pair {
    pub fn open(runtime: &tokio::runtime::Runtime, method: Method) -> Result<Self> {
        let plane = |host: &'static str| {
            let handle = runtime.handle().clone();
            in_host(host, move || {
                let _guard = handle.enter();
                let config = Config { method, reason: "lab".into(), ..Config::default() };
                Ok(KernelPlane::new(config)?)
            })
        };
        let (a, b) = (plane("a")?, plane("b")?);
        let known = kernel::methods()?;
        let best = known.iter().find(|known| **known >= method).map(|best| best.as_str());
        let found = [a.describe().move_method, b.describe().move_method].map(Some);
        check(found == [best; 2], "states are moved as well as the kernel can")?;
        let mut sockets = Vec::new();
        for host in ["a", "b"] {
            ip(&["-n", host, "addr", "add", inner(host), "dev", "bewick0"])?;
            let (here, there) = if host == "a" { (INNER_A, INNER_B) } else { (INNER_B, INNER_A) };
            ip(&["-n", host, "route", "add", there, "dev", "bewick0", "src", here])?;
            for port in [4500, 40000] {
                sockets.push(in_host(host, move || encap_socket(port))?);
            }
        }
        let (limits, carriage) = (Limits::default(), Carriage::default());
        Ok(Pair { a, b, esn: false, limits, carriage, _encap: sockets })
    }

    pub fn install(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        suite: EspSuite,
        place: (Path, bool),
    ) -> Result<()> {
        // What waits at a goes as soon as a can send it, and b has to take it.
        for (plane, host) in [(&mut self.b, Host::B), (&mut self.a, Host::A)] {
            let (esn, limits, carriage) = (self.esn, self.limits, self.carriage);
            let sa = ChildSa { esn, limits, carriage, ..child(suite, place, host) };
            runtime.block_on(plane.install(&sa))?;
        }
        Ok(())
    }

    /// Moves a and then b, as an initiator and its responder would.
    pub fn go(
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

    /// Packets that either end has refused.
    pub fn rejected(&mut self, runtime: &tokio::runtime::Runtime) -> Result<u64> {
        let (a, b) = (count(runtime, &mut self.a)?, count(runtime, &mut self.b)?);
        Ok(a.rejected + b.rejected)
    }

    /// Shuts both ends down and checks that nothing is left.
    pub fn close(mut self, runtime: &tokio::runtime::Runtime) -> Result<()> {
        runtime.block_on(self.a.shutdown())?;
        runtime.block_on(self.b.shutdown())?;
        for host in ["a", "b"] {
            check(states(host)? == 0, "no state is left")?;
            let states = ip(&["-n", host, "xfrm", "state", "list", "nokeys"])?;
            check(!states.contains("0xbe1c0003"), "nor the one that never comes")?;
            let policies = ip(&["-n", host, "xfrm", "policy", "list", "nosock"])?;
            check(policies.is_empty(), "no policy is left")?;
            let links = ip(&["-n", host, "-o", "link"])?;
            check(!links.contains("bewick0"), "no device is left")?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Host {
    A,
    B,
}

/// The CHILD_SA as one end knows it; `place` is a's.
pub fn child(suite: EspSuite, (path, encap): (Path, bool), host: Host) -> ChildSa {
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
        mode: Default::default(),
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
        carriage: Default::default(),
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

pub fn octets(seed: u8, length: usize) -> Secret {
    Secret::new((0..length).map(|i| seed.wrapping_mul(7).wrapping_add(i as u8)).collect())
}

pub fn inner(host: &str) -> &'static str {
    if host == "a" { "10.0.1.1/32" } else { "10.0.2.1/32" }
}

pub fn count(
    runtime: &tokio::runtime::Runtime,
    plane: &mut KernelPlane,
) -> Result<bewick_xfrm::Counters> {
    Ok(runtime.block_on(plane.counters(CHILD))?)
}
