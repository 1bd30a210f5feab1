//! How states get to another path, and which way the kernel knows.

use std::net::Ipv4Addr;

use super::{
    message::Request,
    migrate::{self, Step},
    nobody,
    policy::{self, Direction, Tag},
    socket::Socket,
    state::{self, Place, Replay, Side, Spent},
};
use crate::plane::PlaneError;
use netlink_packet_xfrm::constants::XFRM_MSG_NEWSA;

/// How a state gets to another path, the best one first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    /// XFRM_MSG_MIGRATE_STATE (Linux 7.2): one state, known by its SPI, in one step
    MigrateState,
    /// XFRM_MSG_MIGRATE: a policy's template and the states of its reqid
    Migrate,
    /// a state is deleted and another one added, with its sequence numbers
    DeleteAdd,
}

impl Method {
    /// All of them, the best one first.
    pub const ALL: [Method; 3] = [Method::MigrateState, Method::Migrate, Method::DeleteAdd];

    /// As `bewick status` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::MigrateState => "migrate-state",
            Method::Migrate => "migrate",
            Method::DeleteAdd => "delete-add",
        }
    }
}

/// The methods that this kernel knows, the best one first. Needs CAP_NET_ADMIN.
pub fn methods() -> Result<Vec<Method>, PlaneError> {
    let mut xfrm = Socket::open(libc::NETLINK_XFRM)?;
    let mut known = |method| match method {
        Method::MigrateState => knows_states(&mut xfrm),
        Method::Migrate => knows_policies(&mut xfrm),
        Method::DeleteAdd => true,
    };
    Ok(Method::ALL.into_iter().filter(|method| known(*method)).collect())
}

/// The best method from `first` on that this kernel knows, and whether what a state has carried goes along
/// (with MIGRATE since Linux 5.12), so that no move has to ask.
pub(super) fn choose(xfrm: &mut Socket, first: Method, mark: u32) -> (Method, bool) {
    if first <= Method::MigrateState && knows_states(xfrm) {
        // Another daemon may try the same at the same time.
        for _ in 0..3 {
            match try_out(xfrm, Method::MigrateState, mark) {
                Ok(kept) => return (Method::MigrateState, kept),
                Err(error) => tracing::warn!(%error, "MIGRATE_STATE is known, but does not work"),
            }
        }
    }
    if first <= Method::Migrate && knows_policies(xfrm) {
        let kept = try_out(xfrm, Method::Migrate, mark).unwrap_or_else(|error| {
            tracing::debug!(%error, "it is not known whether MIGRATE keeps counts");
            false
        });
        return (Method::Migrate, kept);
    }
    (Method::DeleteAdd, false)
}

/// Whether there is MIGRATE_STATE: a kernel without it finds the message's number or its length wrong
/// (EINVAL), or was built without any migration (ENOPROTOOPT).
fn knows_states(xfrm: &mut Socket) -> bool {
    let (sa, place) = (nobody(), Place::of(&nobody()));
    match xfrm.request("asking for MIGRATE_STATE", migrate::state(&sa, Side::Out, place, place)) {
        Err(error) => error.errno() == Some(libc::ESRCH),
        Ok(()) => true,
    }
}

fn knows_policies(xfrm: &mut Socket) -> bool {
    match xfrm.request("asking for MIGRATE", migrate::probe()) {
        Err(error) => error.errno() != Some(libc::ENOPROTOOPT),
        Ok(()) => true,
    }
}

/// Moves a state that nothing uses and that is said to have carried a packet; whether it still says so.
fn try_out(xfrm: &mut Socket, method: Method, mark: u32) -> Result<bool, PlaneError> {
    let sa = nobody();
    let from = Place::of(&sa);
    let mut to = from;
    to.path.remote.set_ip(Ipv4Addr::new(192, 0, 2, 252).into());
    let mut ask = || -> Result<bool, PlaneError> {
        let limits = state::limits(&sa, Spent::default(), 0);
        let state =
            state::put(XFRM_MSG_NEWSA, &sa, Side::Out, from, &Replay::fresh(&sa), mark, limits)?;
        xfrm.request("adding a state", state::with_packets(state, 1))?;
        let operation = "migrating a state";
        if method == Method::MigrateState {
            xfrm.request(operation, migrate::state(&sa, Side::Out, from, to))?;
        } else {
            let steps = [Step::new(Side::Out, from, to)];
            for flow in policy::flows(&sa)? {
                let tag = Tag::default();
                let policy: Request = policy::put(tag, &flow, Direction::Out, sa.reqid, from);
                xfrm.request("adding a policy", policy)?;
                let moved =
                    xfrm.request(operation, migrate::request(&flow, sa.reqid, &steps, None));
                xfrm.request("deleting a policy", policy::delete(&flow, Direction::Out))?;
                moved?;
            }
        }
        let query = state::query(to.key(&sa, Side::Out));
        let (_, usage) = xfrm.ask("reading a state", query, state::snapshot)?;
        Ok(usage.packets == 1)
    };
    let kept = ask();
    for place in [from, to] {
        let _ = xfrm.request("deleting a state", state::delete(place.key(&sa, Side::Out)));
    }
    kept
}

#[cfg(test)]
mod tests {
    use bewick_ike::Path;

    use super::*;
    use crate::kernel::message::{attribute, sent, u16_at, u32_at};

    #[test]
    fn one_state_moves_by_its_spi_with_all_that_is_said_of_it() {
        const FIXED: usize = 132; // struct xfrm_user_migrate_state
        const ENCAP: u16 = 4;
        const MTIMER_THRESH: u16 = 32;
        let mut sa = nobody();
        sa.reqid = 7;
        let from = Place { encap: true, ..Place::of(&sa) };
        let six = |host: &str, port| format!("[2001:db8::{host}]:{port}").parse().unwrap();
        let to = Place { path: Path::new(six("1", 4500), six("2", 40000)), encap: true };

        let (kind, _, moved) = sent(migrate::state(&sa, Side::In, from, to));
        assert_eq!((kind, u32_at(&moved, 16)), (0x29, Some(sa.spi_in.0.to_be())));
        assert_eq!(
            (&moved[..4], u16_at(&moved, 20), moved[22]),
            (&[192, 0, 2, 253][..], Some(2), 50)
        );
        assert_eq!((moved[24 + 15], moved[40 + 15]), (1, 2), "to us from the peer");
        assert!(moved[56..120].iter().all(|octet| *octet == 0), "neither mark nor selector");
        assert_eq!((u32_at(&moved, 120), u32_at(&moved, 124)), (Some(7), Some(1)));
        assert_eq!((u16_at(&moved, 128), u16_at(&moved, 130)), (Some(10), Some(0)), "IPv6");
        let encap = attribute(&moved, FIXED, ENCAP).unwrap();
        let ports = [40000_u16, 4500].map(u16::to_be_bytes).concat();
        assert_eq!((u16_at(encap, 0), &encap[2..6]), (Some(2), &ports[..]));
        assert_eq!(attribute(&moved, FIXED, MTIMER_THRESH).unwrap(), 1_u32.to_ne_bytes());

        let plain = Place { encap: false, ..to };
        let (_, _, moved) = sent(migrate::state(&sa, Side::Out, from, plain));
        assert_eq!(u32_at(&moved, 16), Some(sa.spi_out.0.to_be()));
        let encap = attribute(&moved, FIXED, ENCAP).unwrap();
        assert_eq!(u16_at(encap, 0), Some(0), "UDP is taken away, not left as it is");
        assert_eq!(attribute(&moved, FIXED, MTIMER_THRESH), None);
    }

    #[test]
    fn the_best_method_comes_first() {
        assert!(Method::ALL.is_sorted());
        assert_eq!(Method::ALL.map(Method::as_str), ["migrate-state", "migrate", "delete-add"]);
    }
}
