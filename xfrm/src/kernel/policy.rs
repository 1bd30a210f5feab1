//! Policies: which inner packets a CHILD_SA carries (RFC 4301 §4.4.1, struct
//! xfrm_userpolicy_info), and who shares them.
//!
//! The templates of the in and forward policies name our reqid and no address, so a move leaves
//! them alone; the out policy's template holds the outer path.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
};

use bewick_ike::{ChildId, ChildSa, Mode, TrafficSelector};
use ipnet::IpNet;
use netlink_packet_xfrm::{
    Address, Id, Selector, UserPolicyId, UserPolicyInfo, UserTemplate, XfrmAttrs,
    constants::*,
    policy::{DelGetMessage, ModifyMessage},
};

use super::{
    message::{NLM_F_DUMP, Request, attribute, interface},
    state::{Place, Side, family},
    trap,
};
use crate::plane::PlaneError;

/// More policies than this for one CHILD_SA point to a mistake, not to a network.
const MOST_FLOWS: usize = 256;

/// Added to every priority, so that an operator can put policies of his own before ours.
const PRIORITY: u32 = 0x1_0000;

/// The most that is added to [`PRIORITY`]: two IPv6 addresses, two ports and the protocol.
const OPEN_BITS: u32 = 128 + 128 + 16 + 16 + 8;

/// Octets of struct xfrm_selector, xfrm_userpolicy_info and xfrm_user_tmpl.
const SELECTOR: usize = 56;
pub(super) const POLICY_INFO: usize = 168;
const TEMPLATE: usize = 64;

const ICMP: [u8; 2] = [IPPROTO_ICMP, IPPROTO_ICMPV6];

/// A port and the bits of it that count.
type Ports = (u16, u16);

/// What one policy selects, as the kernel can say it, in the direction out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Flow {
    local: IpNet,
    remote: IpNet,
    protocol: u8,
    local_ports: Ports,
    remote_ports: Ports,
    /// the XFRM interface whose packets alone are selected
    if_id: Option<NonZeroU32>,
}

/// The direction of a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Direction {
    In,
    Out,
    Forward,
}

/// All directions, in the order in which they are set up: nothing is sent before we can receive.
pub(super) const DIRECTIONS: [Direction; 3] = [Direction::In, Direction::Forward, Direction::Out];

/// Those of them that a CHILD_SA of this mode has policies in: what is forwarded is neither from nor to
/// the two ends themselves (RFC 4301 §4.1).
pub(super) fn directions(mode: Mode) -> &'static [Direction] {
    match mode {
        Mode::Tunnel => &DIRECTIONS,
        Mode::Transport => &[Direction::In, Direction::Out],
    }
}

impl Direction {
    fn number(self) -> u8 {
        match self {
            Direction::In => XFRM_POLICY_IN,
            Direction::Out => XFRM_POLICY_OUT,
            Direction::Forward => XFRM_POLICY_FWD,
        }
    }
}

impl Flow {
    /// The XFRM interface by which its packets come.
    pub(super) fn if_id(&self) -> Option<NonZeroU32> {
        self.if_id
    }

    /// The selector of the policy in `direction`.
    pub(super) fn selector(&self, direction: Direction) -> Selector {
        let ours = (self.local, self.local_ports);
        let theirs = (self.remote, self.remote_ports);
        let ((source, sports), (destination, dports)) = match direction {
            Direction::Out => (ours, theirs),
            Direction::In | Direction::Forward => (theirs, ours),
        };
        Selector {
            daddr: Address::from_ip(&destination.addr()),
            saddr: Address::from_ip(&source.addr()),
            dport: dports.0,
            dport_mask: dports.1,
            sport: sports.0,
            sport_mask: sports.1,
            family: family(destination.addr()),
            prefixlen_d: destination.prefix_len(),
            prefixlen_s: source.prefix_len(),
            proto: self.protocol,
            ifindex: 0,
            user: 0,
        }
    }

    /// The kernel takes the policy with the lowest number. Each bit that a flow leaves open counts
    /// one, so a flow inside another one always comes first.
    fn priority(&self) -> u32 {
        let net = |net: IpNet| u32::from(net.max_prefix_len() - net.prefix_len());
        PRIORITY
            + net(self.local)
            + net(self.remote)
            + self.local_ports.1.count_zeros()
            + self.remote_ports.1.count_zeros()
            + if self.protocol == 0 { 8 } else { 0 }
    }
}

/// The flows between the selectors of both sides of `sa`.
pub(super) fn flows(sa: &ChildSa) -> Result<Vec<Flow>, PlaneError> {
    flows_between(&sa.ts_local, &sa.ts_remote, sa.carriage.if_id)
}

/// The flows between selectors of ours and the peer's.
pub(super) fn flows_between(
    ts_local: &[TrafficSelector],
    ts_remote: &[TrafficSelector],
    if_id: Option<NonZeroU32>,
) -> Result<Vec<Flow>, PlaneError> {
    let mut flows = Vec::new();
    for local in ts_local {
        for remote in ts_remote {
            let protocol = match (local.protocol(), remote.protocol()) {
                (0, protocol) | (protocol, 0) => protocol,
                (a, b) if a == b => a,
                _ => continue,
            };
            if local.is_ipv4() != remote.is_ipv4() {
                continue;
            }
            let (local_ports, remote_ports) = (ports(local, protocol)?, ports(remote, protocol)?);
            for &local in &local.nets() {
                for &remote in &remote.nets() {
                    for &local_ports in &local_ports {
                        for &remote_ports in &remote_ports {
                            flows.push(Flow {
                                local,
                                remote,
                                protocol,
                                local_ports,
                                remote_ports,
                                if_id,
                            });
                        }
                    }
                }
            }
            if flows.len() > MOST_FLOWS {
                return Err(PlaneError::Unsupported(format!(
                    "the traffic selectors need more than {MOST_FLOWS} kernel policies"
                )));
            }
        }
    }
    flows.sort_unstable();
    flows.dedup();
    if flows.is_empty() {
        return Err(PlaneError::Unsupported("the traffic selectors select nothing".into()));
    }
    Ok(flows)
}

/// The blocks of ports with a common prefix that cover exactly the selector's range.
fn ports(selector: &TrafficSelector, protocol: u8) -> Result<Vec<Ports>, PlaneError> {
    let (first, last) = selector.ports();
    if (first, last) == (0, u16::MAX) {
        return Ok(vec![(0, 0)]);
    }
    // Type and code of ICMP share the field of one port (RFC 7296 §3.13.1), but not in the kernel.
    if protocol == 0 || first > last || ICMP.contains(&protocol) {
        return Err(PlaneError::Unsupported(format!("the kernel can't select {selector}")));
    }
    let (mut at, last) = (u32::from(first), u32::from(last));
    let mut blocks = Vec::new();
    while at <= last {
        let mut size = 1;
        while at % (size * 2) == 0 && at + size * 2 - 1 <= last {
            size *= 2;
        }
        blocks.push((at as u16, !((size - 1) as u16)));
        at += size;
    }
    Ok(blocks)
}

/// How policies of one plane are known, also after it was killed: the kernel gives a new one the index
/// that it is asked for, if that is free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tag(u32);

impl Tag {
    /// The tag of the plane whose states bear this mark; without a mark there is none.
    pub(super) fn of(mark: u32) -> Self {
        Tag((mark & 0xfff) << 19)
    }

    /// The index for a policy: the tag, 16 bits that differ, and the direction, as the kernel has it.
    /// Of two that differ in nothing here, one gets another index; its reqid has to do.
    fn index(self, flow: &Flow, direction: Direction) -> u32 {
        let mut hasher = std::hash::DefaultHasher::new();
        flow.hash(&mut hasher);
        let some = (hasher.finish() & 0xffff) as u32;
        if self.0 == 0 { 0 } else { self.0 | some << 3 | u32::from(direction.number()) }
    }

    /// The 12 bits of it.
    pub(super) fn bits(self) -> u32 {
        self.0 >> 19
    }

    /// Whether a policy of this index is of this plane.
    pub(super) fn has(self, index: u32) -> bool {
        self.0 != 0 && index & !0x7_ffff == self.0
    }
}

/// UPDPOLICY: makes or replaces the policy for `flow` of `sa`, where that is now.
pub(super) fn of_child(tag: Tag, flow: &Flow, direction: Direction, sa: &ChildSa) -> Request {
    put_as(sa.mode, tag, flow, direction, sa.reqid, Place::of(sa))
}

/// UPDPOLICY: makes or replaces the policy for `flow` in `direction`, of a tunnel.
pub(super) fn put(
    tag: Tag,
    flow: &Flow,
    direction: Direction,
    reqid: u32,
    place: Place,
) -> Request {
    put_as(Mode::Tunnel, tag, flow, direction, reqid, place)
}

fn put_as(
    mode: Mode,
    tag: Tag,
    flow: &Flow,
    direction: Direction,
    reqid: u32,
    place: Place,
) -> Request {
    let path = place.path;
    let (source, destination) = match direction {
        Direction::Out => place.addresses(Side::Out),
        // No address, but a family: the one of the selector would do as well.
        _ if path.local.is_ipv4() => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()),
        _ => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let mut template = template((source, destination), reqid);
    template.mode = xfrm_mode(mode);
    with_templates(tag, flow, direction, vec![template])
}

/// UPDPOLICY: keeps the out policy for `flow` as it is, and has it need a second state from and to
/// `besides`, of reqid 0. Its packets wait as long as that is not there but to come.
pub(super) fn hold(
    tag: Tag,
    flow: &Flow,
    reqid: u32,
    place: Place,
    besides: (IpAddr, IpAddr),
) -> Request {
    let templates = vec![template(place.addresses(Side::Out), reqid), template(besides, 0)];
    with_templates(tag, flow, Direction::Out, templates)
}

/// UPDPOLICY: the out policy for `flow` needs a state of `reqid` from and to `nowhere`.
pub(super) fn trap(tag: Tag, flow: &Flow, reqid: u32, nowhere: (IpAddr, IpAddr)) -> Request {
    with_templates(tag, flow, Direction::Out, vec![template(nowhere, reqid)])
}

/// The kernel's number for a mode.
pub(super) fn xfrm_mode(mode: Mode) -> u8 {
    match mode {
        Mode::Tunnel => XFRM_MODE_TUNNEL,
        Mode::Transport => XFRM_MODE_TRANSPORT,
    }
}

fn template((source, destination): (IpAddr, IpAddr), reqid: u32) -> UserTemplate {
    UserTemplate {
        id: Id { daddr: Address::from_ip(&destination), spi: 0, proto: IPPROTO_ESP },
        family: family(destination),
        saddr: Address::from_ip(&source),
        reqid,
        mode: XFRM_MODE_TUNNEL,
        ..UserTemplate::default()
    }
}

fn with_templates(
    tag: Tag,
    flow: &Flow,
    direction: Direction,
    templates: Vec<UserTemplate>,
) -> Request {
    let info = UserPolicyInfo {
        index: tag.index(flow, direction),
        selector: flow.selector(direction),
        priority: flow.priority(),
        direction: direction.number(),
        action: XFRM_POLICY_ALLOW,
        ..UserPolicyInfo::default()
    };
    let nlas = vec![XfrmAttrs::Template(templates)];
    Request::new(XFRM_MSG_UPDPOLICY, 0, &ModifyMessage { user_policy_info: info, nlas })
        .interface(flow.if_id)
}

/// DELPOLICY.
pub(super) fn delete(flow: &Flow, direction: Direction) -> Request {
    Request::new(
        XFRM_MSG_DELPOLICY,
        0,
        &DelGetMessage { user_policy_id: policy_id(flow, direction), nlas: Vec::new() },
    )
    .interface(flow.if_id)
}

/// The fixed part of a message that is about the policy for `flow` in `direction`; what is for an
/// XFRM interface needs [`Request::interface`] besides.
pub(super) fn policy_id(flow: &Flow, direction: Direction) -> UserPolicyId {
    UserPolicyId { selector: flow.selector(direction), index: 0, direction: direction.number() }
}

/// A policy that some program has made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Found {
    index: u32,
    direction: u8,
    priority: u32,
    reqid: u32,
    /// a trap's, with the tag of its plane
    trap: Option<Tag>,
    if_id: Option<NonZeroU32>,
    /// struct xfrm_selector
    selector: Vec<u8>,
    /// what counts of its templates: SPI, protocol and addresses, reqid and mode
    templates: Vec<Vec<u8>>,
}

impl Found {
    /// Whether we have made it: by its tag, or else it is such as we make for a trap or one of `reqids`.
    pub(super) fn is_ours(&self, tag: Tag, reqids: &BTreeSet<u32>) -> bool {
        let ours = PRIORITY..=PRIORITY + OPEN_BITS;
        let known = reqids.contains(&self.reqid) || tag.0 != 0 && self.trap == Some(tag);
        tag.has(self.index) || ours.contains(&self.priority) && known
    }

    /// Whether packets that it is for are held back.
    pub(super) fn holds(&self) -> bool {
        self.templates.len() > 1
    }

    /// Which one it is, whatever its templates: the kernel has one of these at most.
    pub(super) fn place(&self) -> (u8, Option<NonZeroU32>, &[u8]) {
        (self.direction, self.if_id, &self.selector)
    }

    /// Whether it does what `other` does.
    pub(super) fn does(&self, other: &Found) -> bool {
        self.place() == other.place()
            && self.priority == other.priority
            && self.templates == other.templates
    }

    /// DELPOLICY for exactly this one.
    pub(super) fn delete(&self) -> Request {
        let user_policy_id = UserPolicyId {
            index: self.index,
            direction: self.direction,
            ..UserPolicyId::default()
        };
        Request::new(XFRM_MSG_DELPOLICY, 0, &DelGetMessage { user_policy_id, nlas: Vec::new() })
            .interface(self.if_id)
    }
}

/// GETPOLICY for all policies; each part of the answer is read by [`found`].
pub(super) fn dump() -> Request {
    Request::with_body(XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[])
}

/// Reads one part of the answer to [`dump`], or a request; `None` for what has no template.
pub(super) fn found(kind: u16, body: &[u8]) -> Option<Found> {
    let info = body.get(..POLICY_INFO).filter(|_| is_policy(kind))?;
    let info = UserPolicyInfo::parse(info).ok()?;
    let all = attribute(body, POLICY_INFO, XFRMA_TMPL)?;
    let first = UserTemplate::parse(all.get(..TEMPLATE)?).ok()?;
    let counts = |template: &[u8]| -> Vec<u8> {
        // struct xfrm_user_tmpl: id and family, the source, reqid and mode
        let parts = [template.get(..26), template.get(28..49)];
        parts.into_iter().flatten().flatten().copied().collect()
    };
    Some(Found {
        index: info.index,
        direction: info.direction,
        priority: info.priority,
        reqid: first.reqid,
        trap: trap::tag_of(&first),
        if_id: interface(body, POLICY_INFO),
        selector: body.get(..SELECTOR)?.to_vec(),
        templates: all.chunks_exact(TEMPLATE).map(counts).collect(),
    })
}

fn is_policy(kind: u16) -> bool {
    kind == XFRM_MSG_NEWPOLICY || kind == XFRM_MSG_UPDPOLICY
}

/// Which CHILD_SAs want which flow. Two share one while the first is replaced by the second.
#[derive(Default)]
pub(super) struct Owners(BTreeMap<Flow, Vec<ChildId>>);

impl Owners {
    /// Notes that `id` wants `flow` too; the latest decides about the policy.
    pub(super) fn add(&mut self, flow: Flow, id: ChildId) {
        let owners = self.0.entry(flow).or_default();
        owners.retain(|owner| *owner != id);
        owners.push(id);
    }

    /// Notes that `id` wants `flow` no longer.
    pub(super) fn remove(&mut self, flow: &Flow, id: ChildId) {
        if let Some(owners) = self.0.get_mut(flow) {
            owners.retain(|owner| *owner != id);
            if owners.is_empty() {
                self.0.remove(flow);
            }
        }
    }

    /// Each flow, and whose path and reqid its policies are to have.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Flow, ChildId)> {
        self.0.iter().filter_map(|(flow, owners)| Some((flow, *owners.last()?)))
    }

    /// All that want `flow`.
    pub(super) fn of(&self, flow: &Flow) -> &[ChildId] {
        self.0.get(flow).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whose path and reqid the policy for `flow` is to have.
    pub(super) fn current(&self, flow: &Flow) -> Option<ChildId> {
        self.0.get(flow).and_then(|owners| owners.last()).copied()
    }
}
