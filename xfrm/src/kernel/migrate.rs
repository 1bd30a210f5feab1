//! Moving states in one step, which keeps sequence numbers and replay windows.
//!
//! XFRM_MSG_MIGRATE_STATE (linux/xfrm.h, since Linux 7.2) moves one state, known by its SPI; what uses it is
//! told by a change of the policy. Sequence number and window are taken over under the state's lock, and the
//! old one is deleted before that is let go: no number comes twice, whatever is sent meanwhile.
//!
//! XFRM_MSG_MIGRATE moves states and the out policy's template. The kernel clones each state, sequence
//! numbers and replay window included, swaps the template's addresses and then deletes the originals, so
//! that a packet always finds a state. It finds the policy by its selector, and the states by reqid and
//! addresses, not by SPI: one CHILD_SA with a reqid of its own at a time.

use std::net::IpAddr;

use bewick_ike::ChildSa;
use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{Address, EncapTmpl, XfrmAttrs, constants::*};

use super::{
    message::Request,
    policy::{Direction, Flow, policy_id},
    state::{self, Place, Side, family},
};

/// Neither this message nor its flag is known to the codec.
const XFRM_MSG_MIGRATE_STATE: u16 = XFRM_MSG_GETDEFAULT + 1;
const CLEAR_OFFLOAD: u32 = 1;

/// One state's move: source and destination before and after.
pub(super) struct Step {
    from: (IpAddr, IpAddr),
    to: (IpAddr, IpAddr),
}

impl Step {
    /// The state of one direction from one place to another.
    pub(super) fn new(side: Side, from: Place, to: Place) -> Self {
        Step { from: from.addresses(side), to: to.addresses(side) }
    }

    /// struct xfrm_user_migrate; the codec's attribute holds a single one.
    fn octets(&self, reqid: u32) -> Vec<u8> {
        let mut octets = Vec::with_capacity(76);
        for address in [self.from.1, self.from.0, self.to.1, self.to.0] {
            octets.extend_from_slice(&Address::from_ip(&address).addr);
        }
        octets.extend_from_slice(&[IPPROTO_ESP, XFRM_MODE_TUNNEL, 0, 0]);
        octets.extend_from_slice(&reqid.to_ne_bytes());
        octets.extend_from_slice(&family(self.from.0).to_ne_bytes());
        octets.extend_from_slice(&family(self.to.0).to_ne_bytes());
        octets
    }
}

/// Moves the states of `steps` and the template of the out policy for `flow`.
///
/// The encapsulation is always said: without it the kernel keeps the old one up to Linux 7.1, and is
/// to drop it from 7.2 on. Up to 7.1 there is no way to say "none" to a state that has one.
pub(super) fn request(
    flow: &Flow,
    reqid: u32,
    steps: &[Step],
    encapsulation: Option<EncapTmpl>,
) -> Request {
    let mut id = policy_id(flow, Direction::Out);
    id.index = 0;
    let octets: Vec<u8> = steps.iter().flat_map(|step| step.octets(reqid)).collect();
    let request =
        Request::new(XFRM_MSG_MIGRATE, 0, &id).attribute(XFRMA_MIGRATE, &[octets.as_slice()]);
    match encapsulation {
        Some(template) => request.xfrm(&XfrmAttrs::EncapsulationTemplate(template)),
        None => request,
    }
}

/// A request without what it needs: refused with EINVAL by a kernel that can migrate and with
/// ENOPROTOOPT by one that can't.
pub(super) fn probe() -> Request {
    let nothing = netlink_packet_xfrm::UserPolicyId::default();
    Request::with_body(XFRM_MSG_MIGRATE, 0, &vec![0; nothing.buffer_len()])
}

/// MIGRATE_STATE: one state of `sa` from one place to another, UDP encapsulation and all.
pub(super) fn state(sa: &ChildSa, side: Side, from: Place, to: Place) -> Request {
    let (source, destination) = to.addresses(side);
    let mut body = Vec::with_capacity(132);
    let id = state::id(from.key(sa, side));
    body.resize(id.buffer_len(), 0);
    id.emit(&mut body);
    for address in [destination, source] {
        body.extend_from_slice(&Address::from_ip(&address).addr);
    }
    // Our states have neither a mark that they are looked up by nor a selector.
    body.extend_from_slice(&[0; 8 + 56]);
    body.extend_from_slice(&sa.reqid.to_ne_bytes());
    // A network card may count otherwise than we do: what it is to do is deleted and added.
    body.extend_from_slice(&CLEAR_OFFLOAD.to_ne_bytes());
    body.extend_from_slice(&family(destination).to_ne_bytes());
    body.extend_from_slice(&[0; 2]);
    let request = Request::with_body(XFRM_MSG_MIGRATE_STATE, 0, &body);
    // Left out, it stays as it was; type 0 takes it away.
    let none = EncapTmpl { encap_type: 0, ..EncapTmpl::default() };
    let encapsulation = to.encapsulation(side);
    let begins = encapsulation.is_some() && side == Side::In;
    let request = request.xfrm(&XfrmAttrs::EncapsulationTemplate(encapsulation.unwrap_or(none)));
    match begins {
        true => request.xfrm(&XfrmAttrs::MappingTimeThreshold(state::MAPPING_SECONDS)),
        false => request,
    }
}
