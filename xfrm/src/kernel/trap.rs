//! Traps: policies whose state is never there, so that the first packet makes the kernel ask for one
//! (ACQUIRE) and none leaves in the clear.
//!
//! The state that a trap's policy needs has addresses that are nobody's and a reqid of its own. So the trap
//! is there before any path is known, and the state that the kernel notes as asked for is none of a
//! CHILD_SA's: it is in the way of no installation, no MIGRATE and no reconciling. While it is there (30 s,
//! `net.core.xfrm_acq_expires`) the kernel does not ask again; setting the trap anew removes it.
//!
//! A CHILD_SA with the same selectors takes the place of the trap's policy, and one with narrower ones goes
//! before it; when it goes, the policy is the trap's again, in one step.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
};

use bewick_ike::{Packet, TrafficSelector};
use netlink_packet_xfrm::{Selector, UserTemplate, constants::*};

use super::{
    KernelPlane, gone, hold,
    message::{Request, attribute},
    policy::{self, Direction, Flow, Tag},
    state::{self, Key, ip},
};
use crate::plane::{PlaneError, PlaneEvent, Trap, TrapId};

/// Set in the reqid of a trap, and in no other of ours. Beside it stand the plane's tag and the trap's number.
const REQID: u32 = 0x8000_0000;

/// The SPI by which the state that was asked for is removed; the trap's number is added.
const SPI: u32 = 0xbe1d_0000;

/// Numbers that a trap may have.
const MOST: u32 = 0x1_0000;

/// Octets of struct xfrm_user_acquire and xfrm_user_tmpl, and where in the former the packet's selector is.
const ACQUIRE: usize = 280;
const TEMPLATE: usize = 64;
const SELECTOR: std::ops::Range<usize> = 40..96;

/// The source and destination of the states that never come: nobody's (RFC 5737).
pub(super) fn nowhere() -> (IpAddr, IpAddr) {
    (Ipv4Addr::new(192, 0, 2, 249).into(), Ipv4Addr::new(192, 0, 2, 248).into())
}

/// The reqid of all traps of a plane, but for their numbers.
fn reqid(tag: Tag) -> u32 {
    REQID | tag.bits() << 16
}

/// Of which plane the trap is that has this template; `None` if none has.
pub(super) fn tag_of(template: &UserTemplate) -> Option<Tag> {
    let tag = Tag::of(template.reqid >> 16);
    let is_one = template.reqid & !(MOST - 1) == reqid(tag)
        && ip(&template.id.daddr, template.family) == Some(nowhere().1)
        && ip(&template.saddr, template.family) == Some(nowhere().0);
    is_one.then_some(tag)
}

/// The traps that are set, and what they catch.
#[derive(Default)]
pub(super) struct Traps(BTreeMap<TrapId, Vec<Flow>>);

impl Traps {
    /// Whose the policy for `flow` is where no CHILD_SA has it.
    pub(super) fn on(&self, flow: &Flow) -> Option<TrapId> {
        self.0.iter().find(|(_, flows)| flows.contains(flow)).map(|(id, _)| *id)
    }

    /// Each flow that is caught, and by which trap.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Flow, TrapId)> {
        self.0.iter().flat_map(|(id, flows)| flows.iter().map(|flow| (flow, *id)))
    }

    /// All of them.
    pub(super) fn names(&self) -> Vec<TrapId> {
        self.0.keys().copied().collect()
    }
}

impl KernelPlane {
    pub(super) fn set_trap_now(&mut self, trap: &Trap) -> Result<(), PlaneError> {
        if trap.id.0 >= MOST {
            return Err(PlaneError::Unsupported(format!("more than {MOST} traps")));
        }
        // Also at first: a daemon that was killed may have left it so.
        self.forget_asking(trap.id, trap.if_id);
        if self.traps.0.contains_key(&trap.id) {
            return Ok(());
        }
        let flows = policy::flows_between(&trap.ts_local, &trap.ts_remote, trap.if_id)?;
        self.traps.0.insert(trap.id, flows.clone());
        let free = flows.iter().filter(|flow| self.owners.current(flow).is_none());
        let requests = free.map(|flow| self.trap_policy(flow, trap.id)).collect();
        self.xfrm.requests("setting a trap", requests).inspect_err(|_| {
            let _ = self.clear_trap_now(trap.id);
        })
    }

    pub(super) fn clear_trap_now(&mut self, id: TrapId) -> Result<(), PlaneError> {
        let Some(flows) = self.traps.0.remove(&id) else { return Ok(()) };
        let mut result = Ok(());
        for flow in &flows {
            if self.owners.current(flow).is_none() {
                result = result.and(self.vacate(flow));
            }
        }
        self.forget_asking(id, flows.first().and_then(Flow::if_id));
        result
    }

    /// Has the out policy for a flow that no CHILD_SA has any more be a trap's, or none.
    pub(super) fn vacate(&mut self, flow: &Flow) -> Result<(), PlaneError> {
        match self.traps.on(flow) {
            Some(trap) => self.xfrm.request("setting a trap", self.trap_policy(flow, trap)),
            None => {
                let request = policy::delete(flow, Direction::Out);
                gone(self.xfrm.request("deleting a policy", request), libc::ENOENT)
            }
        }
    }

    /// UPDPOLICY for a flow that a trap catches.
    pub(super) fn trap_policy(&self, flow: &Flow, trap: TrapId) -> Request {
        policy::trap(self.tag, flow, reqid(self.tag) | trap.0, nowhere())
    }

    /// Has the kernel ask anew for the state of this trap: the one that it notes as asked for gets an SPI, by
    /// which it is then removed.
    fn forget_asking(&mut self, trap: TrapId, if_id: Option<NonZeroU32>) {
        let (spi, destination) = (SPI | trap.0, nowhere().1);
        let requests = vec![
            hold::larval(nowhere(), reqid(self.tag) | trap.0, spi, if_id),
            state::delete(Key { destination, spi }),
        ];
        for result in self.xfrm.batch("asking anew for a state", requests, |_, _, _| {}) {
            if let Err(error) = result {
                tracing::debug!(%error, "the kernel asks again within half a minute");
            }
        }
    }
}

/// Reads ACQUIRE: the packet that a trap of ours has caught.
pub(super) fn acquired(body: &[u8], tag: Tag) -> Option<PlaneEvent> {
    let template = attribute(body, ACQUIRE, XFRMA_TMPL)?.get(..TEMPLATE)?;
    let template = UserTemplate::parse(template).ok()?;
    // Of other policies a packet may miss the state for a moment, as a move takes it away; nobody has to
    // act on that.
    let ours = tag_of(&template) == Some(tag);
    let trap = TrapId(template.reqid & (MOST - 1));
    let selector = Selector::parse(body.get(SELECTOR)?).ok().filter(|_| ours)?;
    let side = |address, (port, mask): (u16, u16)| {
        let has_port = TrafficSelector::has_ports(selector.proto) && mask == u16::MAX;
        let ports = if has_port { (port, port) } else { (0, u16::MAX) };
        let address = ip(address, selector.family)?;
        TrafficSelector::new(selector.proto, ports, address, address)
    };
    let local = side(&selector.saddr, (selector.sport, selector.sport_mask))?;
    let remote = side(&selector.daddr, (selector.dport, selector.dport_mask))?;
    Some(PlaneEvent::Acquire { trap, packet: Packet { local, remote } })
}
