//! States: one direction of a CHILD_SA in the kernel (struct xfrm_usersa_info and its attributes).

use std::{net::IpAddr, num::NonZeroU32};

use bewick_ike::{ChildSa, EspKeys, EspSpi, EspSuite, HmacSha2, Mode, Path};
use netlink_packet_xfrm::{
    Address, AsyncEventId, EncapTmpl, Id, LifetimeConfig, ReplayEsn, UserSaId, UserSaInfo,
    XfrmAttrs, constants::*, state::DelGetMessage,
};

use super::message::{NLM_F_DUMP, NLM_F_REPLACE, Request, attribute, interface, u32_at, u64_at};
use super::policy::xfrm_mode;
use crate::plane::PlaneError;

/// The sequence number without ESN at which a successor is due.
const SOON: u64 = 0xf000_0000;

/// MAPPING events per inbound state: at most one in so many seconds.
pub(super) const MAPPING_SECONDS: u32 = 1;

/// Octets of struct xfrm_usersa_info.
const SA_INFO: usize = 224;
/// Octets of struct xfrm_aevent_id.
const EVENT_ID: usize = 48;
/// Octets of struct xfrm_replay_state_esn without its bitmap.
const REPLAY_ESN: usize = 24;

/// Which of a CHILD_SA's two states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    In,
    Out,
}

/// What names a state in the kernel; the protocol is always ESP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) destination: IpAddr,
    pub(super) spi: u32,
}

/// Where a state stands: the outer path and whether ESP is in UDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) path: Path,
    pub(super) encap: bool,
}

impl Place {
    pub(super) fn of(sa: &ChildSa) -> Self {
        Place { path: sa.path, encap: sa.encap }
    }

    /// The source and destination address of the packets in one direction.
    pub(super) fn addresses(&self, side: Side) -> (IpAddr, IpAddr) {
        let (local, remote) = (self.path.local.ip(), self.path.remote.ip());
        match side {
            Side::In => (remote, local),
            Side::Out => (local, remote),
        }
    }

    /// The key of the state of `sa` in one direction at this place.
    pub(super) fn key(&self, sa: &ChildSa, side: Side) -> Key {
        let EspSpi(spi) = match side {
            Side::In => sa.spi_in,
            Side::Out => sa.spi_out,
        };
        Key { destination: self.addresses(side).1, spi }
    }

    /// The UDP ports of the packets in one direction, if ESP is in UDP (RFC 3948 §2.1).
    pub(super) fn encapsulation(&self, side: Side) -> Option<EncapTmpl> {
        let (local, remote) = (self.path.local.port(), self.path.remote.port());
        let (encap_sport, encap_dport) = match side {
            Side::In => (remote, local),
            Side::Out => (local, remote),
        };
        self.encap.then_some(EncapTmpl {
            encap_type: UDP_ENCAP_ESPINUDP,
            encap_sport,
            encap_dport,
            encap_oa: Address::default(),
        })
    }
}

/// Sequence numbers and replay window of a state, in the kernel's own layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Replay(ReplayEsn);

impl Replay {
    /// A state of `sa` that has neither sent nor received.
    pub(super) fn fresh(sa: &ChildSa) -> Self {
        let window = sa.carriage.replay_window;
        let words = window.div_ceil(32);
        Replay(ReplayEsn {
            bmp_len: words,
            replay_window: window,
            bmp: vec![0; words as usize],
            ..ReplayEsn::default()
        })
    }

    /// Leaves `count` outbound sequence numbers out; they can't be used again by anybody.
    ///
    /// `None` if that would pass the end of the sequence space (RFC 4303 §3.3.3).
    pub(super) fn skip(mut self, count: u32, esn: bool) -> Option<Self> {
        let next = self.last(Side::Out).checked_add(u64::from(count))?;
        let replay = &mut self.0;
        if !esn && next > u64::from(u32::MAX) {
            return None;
        }
        replay.oseq = next as u32;
        replay.oseq_hi = (next >> 32) as u32;
        Some(self)
    }

    /// The last sequence number that was sent, or the highest one that came in.
    pub(super) fn last(&self, side: Side) -> u64 {
        let replay = &self.0;
        let (high, low) = match side {
            Side::In => (replay.seq_hi, replay.seq),
            Side::Out => (replay.oseq_hi, replay.oseq),
        };
        u64::from(high) << 32 | u64::from(low)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        (value.len() >= REPLAY_ESN).then(|| ReplayEsn::parse(value).ok()).flatten().map(Replay)
    }
}

/// How much a state carried, and when it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    pub(super) octets: u64,
    pub(super) packets: u64,
    /// seconds since 1970
    pub(super) added: u64,
    /// packets that were replays or failed the integrity check
    pub(super) rejected: u64,
}

impl Usage {
    /// From struct xfrm_lifetime_cur.
    pub(super) fn parse(octets: &[u8]) -> Option<Self> {
        Some(Usage {
            octets: u64_at(octets, 0)?,
            packets: u64_at(octets, 8)?,
            added: u64_at(octets, 16)?,
            rejected: 0,
        })
    }

    /// From struct xfrm_usersa_info, whose lifetime and statistics follow 64 octets of limits.
    pub(super) fn of_info(info: &[u8]) -> Option<Self> {
        let usage = Usage::parse(info.get(160..)?)?;
        let replays = u64::from(u32_at(info, 196)?);
        let forged = u64::from(u32_at(info, 200)?);
        Some(Usage { rejected: replays + forged, ..usage })
    }
}

/// What a CHILD_SA had used up in one direction before its state there was made: the kernel counts
/// what each state carries from zero, and a move makes new ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Spent {
    pub(super) octets: u64,
    pub(super) packets: u64,
    /// the last sequence number before
    pub(super) sequence: u64,
}

impl Spent {
    /// What is used up when a state that began after this has carried `usage` and is at `replay`.
    pub(super) fn after(self, side: Side, usage: Usage, replay: &Replay) -> Self {
        Spent {
            octets: self.octets.saturating_add(usage.octets),
            packets: self.packets.saturating_add(usage.packets),
            sequence: replay.last(side),
        }
    }

    /// What was used up besides the `usage` of one state.
    pub(super) fn without(self, usage: Usage) -> Self {
        Spent {
            octets: self.octets.saturating_sub(usage.octets),
            packets: self.packets.saturating_sub(usage.packets),
            sequence: self.sequence.saturating_sub(usage.packets),
        }
    }
}

/// NEWSA (or UPDSA) for one direction of `sa` at `place`.
pub(super) fn put(
    message: u16,
    sa: &ChildSa,
    side: Side,
    place: Place,
    replay: &Replay,
    mark: u32,
    limits: LifetimeConfig,
) -> Result<Request, PlaneError> {
    let (source, destination) = place.addresses(side);
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(PlaneError::Unsupported(format!("{} mixes IPv4 and IPv6", place.path)));
    }
    let Key { spi, .. } = place.key(sa, side);
    // The inner packets of a tunnel may be of either family, whatever the outer ones are. In transport mode
    // they are the same ones, and the kernel refuses anything else.
    let either_family = match sa.mode {
        Mode::Tunnel => XFRM_STATE_AF_UNSPEC,
        Mode::Transport => 0,
    };
    let mut info = UserSaInfo {
        id: Id { daddr: Address::from_ip(&destination), spi, proto: IPPROTO_ESP },
        lifetime_cfg: limits,
        reqid: sa.reqid,
        mode: xfrm_mode(sa.mode),
        flags: either_family | if sa.esn { XFRM_STATE_ESN } else { 0 },
        ..Default::default()
    };
    info.source(&source);
    let keys = match side {
        Side::In => &sa.keys_in,
        Side::Out => &sa.keys_out,
    };
    let mut request = algorithms(Request::new(message, 0, &info), sa.suite, keys)?
        .xfrm(&XfrmAttrs::ReplayStateEsn(replay.0.clone()));
    if message == XFRM_MSG_NEWSA && offloads(sa, place) {
        // struct xfrm_user_offload: the kernel finds the device by the addresses.
        let inbound = if side == Side::In { XFRM_OFFLOAD_INBOUND } else { 0 };
        request = request.attribute(XFRMA_OFFLOAD_DEV, &[&0u32.to_ne_bytes(), &[inbound, 0, 0, 0]]);
    }
    if let Some(template) = place.encapsulation(side) {
        request = request.xfrm(&XfrmAttrs::EncapsulationTemplate(template));
        if side == Side::In {
            request = request.xfrm(&XfrmAttrs::MappingTimeThreshold(MAPPING_SECONDS));
        }
    }
    if mark != 0 {
        // The outer packet must not meet the rule that sends inner packets to our device. Inbound,
        // the mark sets no bit of a packet and only says whose state this is.
        let mask = if side == Side::Out { u32::MAX } else { 0 };
        request = request.xfrm(&XfrmAttrs::MarkVal(mark)).xfrm(&XfrmAttrs::MarkMask(mask));
    }
    Ok(request.interface(sa.carriage.if_id))
}

/// Whether the network card is asked to do the ESP of `sa` at `place`: it can't where that is in UDP.
pub(super) fn offloads(sa: &ChildSa, place: Place) -> bool {
    sa.carriage.offload && !place.encap
}

/// Has a state begin as if it had carried so many packets (struct xfrm_lifetime_cur).
pub(super) fn with_packets(request: Request, packets: u64) -> Request {
    request.attribute(XFRMA_LTIME_VAL, &[&[0; 8], &packets.to_ne_bytes(), &[0; 16]])
}

/// When the kernel reports that a successor is due, and when it removes the state. The sequence number
/// of a sender without ESN never wraps: the kernel sends nothing more then, and a sixteenth before that
/// it says so (RFC 4303 §3.3.3). A state has what earlier ones have left.
///
/// `lifetime` is how many seconds after it was made the kernel is to remove the state, 0 for never.
pub(super) fn limits(sa: &ChildSa, spent: Spent, lifetime: u64) -> LifetimeConfig {
    let none = LifetimeConfig::default();
    let octets = sa.limits.octets.map(|limit| limit.saturating_sub(spent.octets));
    let packets = sa.limits.packets.map(|limit| limit.saturating_sub(spent.packets));
    let numbers = (!sa.esn).then(|| SOON.saturating_sub(spent.sequence));
    LifetimeConfig {
        soft_byte_limit: octets.unwrap_or(none.soft_byte_limit),
        soft_packet_limit: packets
            .into_iter()
            .chain(numbers)
            .min()
            .unwrap_or(none.soft_packet_limit),
        hard_add_expires_seconds: lifetime,
        ..none
    }
}

/// DELSA.
pub(super) fn delete(key: Key) -> Request {
    Request::new(XFRM_MSG_DELSA, 0, &DelGetMessage { user_sa_id: id(key), nlas: Vec::new() })
}

/// GETSA; the answer is read by [`Usage::of_answer`] and holds keys.
pub(super) fn get(key: Key) -> Request {
    Request::new(XFRM_MSG_GETSA, 0, &DelGetMessage { user_sa_id: id(key), nlas: Vec::new() })
}

/// A state that some program has made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) reqid: u32,
    /// 0 if there is none
    pub(super) mark: u32,
    pub(super) if_id: Option<NonZeroU32>,
}

/// GETSA for all states; each part of the answer is read by [`found`] and holds keys.
pub(super) fn dump() -> Request {
    Request::with_body(XFRM_MSG_GETSA, NLM_F_DUMP, &[])
}

/// GETSA for all states from one address to another; each part of the answer is read by
/// [`found_window`] and holds keys.
pub(super) fn dump_between((source, destination): (IpAddr, IpAddr)) -> Request {
    let bits = if source.is_ipv4() { 32 } else { 128 };
    // struct xfrm_address_filter
    dump().attribute(
        XFRMA_ADDRESS_FILTER,
        &[
            &Address::from_ip(&source).addr,
            &Address::from_ip(&destination).addr,
            &family(source).to_ne_bytes(),
            &[bits, bits],
        ],
    )
}

/// Reads one part of the answer to [`dump_between`].
pub(super) fn found_window(kind: u16, body: &[u8]) -> Option<(Key, (Replay, Usage))> {
    let Found { key, .. } = found(kind, body)?;
    let replay = Replay::parse(attribute(body, SA_INFO, XFRMA_REPLAY_ESN_VAL)?)?;
    Some((key, (replay, Usage::of_info(body.get(..SA_INFO)?)?)))
}

/// Reads one part of the answer to [`dump`]; `None` for what is not ESP.
pub(super) fn found(kind: u16, body: &[u8]) -> Option<Found> {
    let info = body.get(..SA_INFO).filter(|_| kind == XFRM_MSG_NEWSA)?;
    let info = UserSaInfo::parse(info).ok().filter(|info| info.id.proto == IPPROTO_ESP)?;
    let destination = ip(&info.id.daddr, info.family)?;
    let mark = attribute(body, SA_INFO, XFRMA_SET_MARK).and_then(|value| u32_at(value, 0));
    Some(Found {
        key: Key { destination, spi: info.id.spi },
        reqid: info.reqid,
        mark: mark.unwrap_or(0),
        if_id: interface(body, SA_INFO),
    })
}

/// GETAE: replay state and usage without keys; the answer is read by [`snapshot`].
pub(super) fn query(key: Key) -> Request {
    Request::new(
        XFRM_MSG_GETAE,
        0,
        &AsyncEventId {
            sa_id: id(key),
            flags: XFRM_AE_RVAL | XFRM_AE_LVAL,
            ..AsyncEventId::default()
        },
    )
}

/// NEWAE: gives an inbound state another replay window.
pub(super) fn set_replay(key: Key, replay: &Replay) -> Request {
    let body = AsyncEventId { sa_id: id(key), ..AsyncEventId::default() };
    Request::new(XFRM_MSG_NEWAE, NLM_F_REPLACE, &body)
        .xfrm(&XfrmAttrs::ReplayStateEsn(replay.0.clone()))
}

/// Reads the answer to [`query`].
pub(super) fn snapshot(kind: u16, body: &[u8]) -> Option<(Replay, Usage)> {
    if kind != XFRM_MSG_NEWAE {
        return None;
    }
    let replay = Replay::parse(attribute(body, EVENT_ID, XFRMA_REPLAY_ESN_VAL)?)?;
    let usage = Usage::parse(attribute(body, EVENT_ID, XFRMA_LTIME_VAL)?)?;
    Some((replay, usage))
}

/// Reads the answer to [`get`].
pub(super) fn usage(kind: u16, body: &[u8]) -> Option<Usage> {
    (kind == XFRM_MSG_NEWSA).then(|| Usage::of_info(body.get(..SA_INFO)?)).flatten()
}

pub(super) fn id(key: Key) -> UserSaId {
    UserSaId {
        daddr: Address::from_ip(&key.destination),
        spi: key.spi,
        family: family(key.destination),
        proto: IPPROTO_ESP,
    }
}

/// AF_INET or AF_INET6.
pub(super) fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// An address of struct xfrm_address_t, whose family is elsewhere.
pub(super) fn ip(address: &Address, family: u16) -> Option<IpAddr> {
    match family {
        AF_INET => Some(address.to_ipv4().into()),
        AF_INET6 => Some(address.to_ipv6().into()),
        _ => None,
    }
}

/// Adds the algorithms and keys (struct xfrm_algo_aead, xfrm_algo and xfrm_algo_auth).
fn algorithms(request: Request, suite: EspSuite, keys: &EspKeys) -> Result<Request, PlaneError> {
    if keys.encryption.len() != suite.encryption_key_len()
        || keys.integrity.len() != suite.integrity_key_len()
    {
        return Err(PlaneError::Unsupported(format!("wrong key length for {suite:?}")));
    }
    let key = keys.encryption.expose();
    let bits = |octets: usize| ((octets * 8) as u32).to_ne_bytes();
    Ok(match suite {
        EspSuite::AesGcm16 { .. } => request.attribute(
            XFRMA_ALG_AEAD,
            &[&name("rfc4106(gcm(aes))"), &bits(key.len()), &bits(16), key],
        ),
        EspSuite::ChaCha20Poly1305 => request.attribute(
            XFRMA_ALG_AEAD,
            &[&name("rfc7539esp(chacha20,poly1305)"), &bits(key.len()), &bits(16), key],
        ),
        EspSuite::AesCbc { integrity, .. } => {
            let hash = match integrity {
                HmacSha2::Sha256 => "hmac(sha256)",
                HmacSha2::Sha384 => "hmac(sha384)",
                HmacSha2::Sha512 => "hmac(sha512)",
            };
            let secret = keys.integrity.expose();
            request
                .attribute(
                    XFRMA_ALG_AUTH_TRUNC,
                    &[&name(hash), &bits(secret.len()), &bits(integrity.icv_len()), secret],
                )
                .attribute(XFRMA_ALG_CRYPT, &[&name("cbc(aes)"), &bits(key.len()), key])
        }
    })
}

/// An algorithm's name in the 64 octets that the kernel gives it.
fn name(name: &str) -> [u8; 64] {
    let mut field = [0; 64];
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    field
}
