//! Messages in fragments (RFC 7383): how big they may be, how a message is cut, and how fragments
//! that arrive become a message again.
//!
//! A message goes whole if it fits, and in fragments if it does not and both sides have said that
//! they can. A fragment is kept only after its integrity check, and of each direction there is at
//! most one message in the making: the one that is due.

use std::{collections::BTreeMap, time::Duration};

use zeroize::Zeroizing;

use crate::{
    config::{ConnectionConfig, DEFAULT_FRAGMENT_SIZE, MIN_FRAGMENT_SIZE},
    path::Path,
    time::Time,
    wire::{ExchangeType, Fragment, Message, Notify, NotifyType, Payload},
};

use super::envelope::{Inside, Keys};

#[cfg(test)]
mod tests;

/// What an IPv4 path carries in the worst case that is worth a thought (RFC 7383 §2.5.1).
const IPV4_FRAGMENT_SIZE: u16 = 576;

/// A message in more fragments than this is neither sent nor received.
pub(crate) const MOST_FRAGMENTS: u16 = 255;

/// A message that its fragments make longer than this ends the IKE_SA (RFC 7383 §5).
const MOST_OCTETS: usize = 64 * 1024;

/// The same while we don't know yet who the peer is: a certificate chain fits, and all half-open
/// IKE_SAs together can't exhaust our memory (RFC 7383 §5).
const MOST_OCTETS_HALF_OPEN: usize = 32 * 1024;

/// How long fragments wait for the others (RFC 7383 §2.6). A sender that retransmits sends all of
/// them again, so the time need not be that of giving up.
const REASSEMBLY_TIME: Duration = Duration::from_secs(60);

/// After so many transmissions in one size the next smaller one is tried (RFC 7383 §2.5.2).
pub(crate) const TRIES_PER_SIZE: u32 = 3;

/// What one IKE_SA knows about fragments.
#[derive(Default)]
pub(crate) struct Fragments {
    negotiated: bool,
    /// the path carries no more than this, in octets of IP packet
    ceiling: Option<u16>,
    /// the size of the IP packets in which the request in progress came
    answer: Option<u16>,
    requests: Reassembly,
    responses: Reassembly,
}

/// IKEV2_FRAGMENTATION_SUPPORTED (RFC 7383 §2.3).
pub(crate) fn supported() -> Payload {
    Payload::Notify(Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, Vec::new()))
}

/// Whether the peer's IKE_SA_INIT says that it can do fragments.
pub(crate) fn is_supported(payloads: &[Payload]) -> bool {
    payloads.iter().any(|payload| {
        matches!(payload, Payload::Notify(n) if n.kind == NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)
    })
}

/// The octets of an IKE message that fit into an IP packet of `size` octets on `path`. Room for the
/// non-ESP marker is always left, for the same octets may go to port 4500 later (RFC 3948 §2.2).
fn message_size(path: Path, size: u16) -> usize {
    usize::from(size.max(MIN_FRAGMENT_SIZE)) - overhead(path)
}

/// Octets of the IP and UDP headers and the non-ESP marker.
fn overhead(path: Path) -> usize {
    let ip = if path.remote.is_ipv6() { 40 } else { 20 };
    ip + 8 + 4
}

impl Fragments {
    /// With what both IKE_SA_INIT messages say (RFC 7383 §2.3).
    pub(crate) fn new(negotiated: bool) -> Self {
        Fragments { negotiated, ..Fragments::default() }
    }

    /// For the successor of a rekeyed IKE_SA: what was negotiated and learnt about the path holds on
    /// (RFC 7383 §2.3).
    pub(crate) fn inherit(old: &Fragments) -> Self {
        Fragments { negotiated: old.negotiated, ceiling: old.ceiling, ..Fragments::default() }
    }

    /// The biggest IP packet to send; `None` for no limit, for then nothing is ever cut.
    fn size(&self, config: Option<&ConnectionConfig>, path: Path) -> Option<u16> {
        let configured = match config {
            Some(config) => config.fragment_size,
            None => Some(DEFAULT_FRAGMENT_SIZE),
        };
        // RFC 9329 §7.5: a stream needs none.
        let size = configured.filter(|_| self.negotiated && !path.is_tcp())?;
        Some(self.ceiling.map_or(size, |ceiling| ceiling.min(size)))
    }

    /// The longest IKE message that goes whole on `path`; `None` for no limit.
    pub(crate) fn limit(&self, config: Option<&ConnectionConfig>, path: Path) -> Option<usize> {
        self.size(config, path).map(|size| message_size(path, size))
    }

    /// As [`Self::limit`] for the response to the request in progress: if that came in fragments, the
    /// response is cut no bigger (RFC 7383 §2.4, §2.5.1).
    pub(crate) fn answer_limit(
        &self,
        config: Option<&ConnectionConfig>,
        path: Path,
    ) -> Option<usize> {
        let size = self.size(config, path)?;
        Some(message_size(path, self.answer.map_or(size, |answer| answer.min(size))))
    }

    /// As [`Self::limit`] for a response that is asked for again by the fragment `message`.
    pub(crate) fn repeat_limit(
        &self,
        config: Option<&ConnectionConfig>,
        path: Path,
        message: &Message<'_>,
    ) -> Option<usize> {
        let size = self.size(config, path)?;
        let seen = size_of_many(path, message, message.header.length)?;
        Some(message_size(path, seen.min(size)))
    }

    /// From now on no IP packet is bigger than `size`.
    pub(crate) fn set_ceiling(&mut self, size: u16) {
        self.ceiling = Some(size.max(MIN_FRAGMENT_SIZE));
    }

    /// The next smaller size to be tried for a request that is not answered and whose longest datagram
    /// has `longest` octets (RFC 7383 §2.5.2): coarse steps, and none below what every path must carry.
    pub(crate) fn smaller(
        &self,
        config: Option<&ConnectionConfig>,
        path: Path,
        longest: usize,
    ) -> Option<u16> {
        let size = self.size(config, path)?;
        let steps = [DEFAULT_FRAGMENT_SIZE, IPV4_FRAGMENT_SIZE];
        let steps = if path.remote.is_ipv6() { &steps[..1] } else { &steps[..] };
        steps.iter().copied().find(|step| *step < size && message_size(path, *step) < longest)
    }

    /// Opens a request, or keeps a fragment of one.
    pub(crate) fn request(
        &mut self,
        now: Time,
        keys: &Keys,
        path: Path,
        message: &Message<'_>,
        authenticated: bool,
    ) -> Received {
        let most = if authenticated { MOST_OCTETS } else { MOST_OCTETS_HALF_OPEN };
        let received = self.requests.receive(now, keys, message, self.negotiated, most);
        if let Received::Whole(_) = received {
            self.answer = size_of_many(path, message, self.requests.largest);
        }
        received
    }

    /// Opens a response, or keeps a fragment of one.
    pub(crate) fn response(&mut self, now: Time, keys: &Keys, message: &Message<'_>) -> Received {
        self.responses.receive(now, keys, message, self.negotiated, MOST_OCTETS)
    }

    /// Whether the integrity check of one message or of one fragment succeeds.
    pub(crate) fn is_genuine(&self, keys: &Keys, message: &Message<'_>) -> bool {
        let fragment = message.encrypted.and_then(|sealed| sealed.fragment);
        (fragment.is_none() || self.negotiated) && keys.open(message).is_ok()
    }

    /// When fragments have waited long enough; the earlier of both directions.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let sets = [&self.requests.set, &self.responses.set];
        sets.into_iter().flatten().map(|set| set.deadline).min()
    }

    /// Drops the fragments that have waited long enough (RFC 7383 §2.6).
    pub(crate) fn expire(&mut self, now: Time) {
        for reassembly in [&mut self.requests, &mut self.responses] {
            if reassembly.set.as_ref().is_some_and(|set| set.deadline <= now) {
                reassembly.clear();
            }
        }
    }

    /// Drops every fragment: no message is due any more.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.responses.clear();
    }
}

/// The octets of the IP packet for `length` octets of IKE message, if `message` is one fragment of
/// several: a single one says nothing about the path.
fn size_of_many(path: Path, message: &Message<'_>, length: u32) -> Option<u16> {
    message.encrypted?.fragment.filter(|fragment| fragment.total > 1)?;
    let octets = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(overhead(path));
    Some(u16::try_from(octets).unwrap_or(u16::MAX))
}

/// What became of a message or a fragment that arrived.
pub(crate) enum Received {
    /// it is complete and genuine
    Whole(Inside),
    /// it was kept, and others are missing
    Part,
    /// it is not genuine, not new or not allowed
    Nothing,
    /// the peer sends more than we keep
    TooMuch,
}

/// One direction's message in the making.
#[derive(Default)]
struct Reassembly {
    set: Option<Set>,
    /// the octets of the longest fragment of the set that has become whole last
    largest: u32,
}

struct Set {
    message_id: u32,
    exchange: ExchangeType,
    total: u16,
    first_inner: u8,
    parts: BTreeMap<u16, Zeroizing<Vec<u8>>>,
    octets: usize,
    largest: u32,
    deadline: Time,
}

impl Reassembly {
    fn clear(&mut self) {
        self.set = None;
    }

    fn receive(
        &mut self,
        now: Time,
        keys: &Keys,
        message: &Message<'_>,
        negotiated: bool,
        most: usize,
    ) -> Received {
        let Some(sealed) = message.encrypted else { return Received::Nothing };
        let Some(fragment) = sealed.fragment else {
            let Ok(inside) = keys.open(message) else { return Received::Nothing };
            // The sender may go from fragments to the whole and back.
            self.clear();
            return Received::Whole(inside);
        };
        // RFC 7383 §2.4: not without a word before.
        if !negotiated || fragment.total > MOST_FRAGMENTS {
            return Received::Nothing;
        }
        if !self.is_new(message, fragment) {
            return Received::Nothing;
        }
        // RFC 7383 §2.6: the integrity check comes before anything is kept or thrown away.
        let Ok(inside) = keys.open(message) else { return Received::Nothing };
        self.keep(now, message, fragment, inside, most)
    }

    /// RFC 7383 §2.6: not fewer than are in the set already, and not one that is there.
    fn is_new(&self, message: &Message<'_>, fragment: Fragment) -> bool {
        let header = &message.header;
        let Some(set) = self.set.as_ref().filter(|set| set.message_id == header.message_id) else {
            return true;
        };
        set.exchange == header.exchange
            && fragment.total >= set.total
            && !(fragment.total == set.total && set.parts.contains_key(&fragment.number))
    }

    fn keep(
        &mut self,
        now: Time,
        message: &Message<'_>,
        fragment: Fragment,
        inside: Inside,
        most: usize,
    ) -> Received {
        let (id, exchange) = (message.header.message_id, message.header.exchange);
        // RFC 7383 §2.6: a larger total begins the set anew. So does another message, for the one
        // before is not due any more (RFC 7296 §2.3).
        let same = self.set.take().filter(|s| s.message_id == id && s.total == fragment.total);
        let mut set = same.unwrap_or_else(|| Set {
            message_id: id,
            exchange,
            total: fragment.total,
            first_inner: 0,
            parts: BTreeMap::new(),
            octets: 0,
            largest: 0,
            deadline: now + REASSEMBLY_TIME,
        });
        if fragment.number == 1 {
            set.first_inner = inside.first;
        }
        set.octets = set.octets.saturating_add(inside.chain.len());
        set.largest = set.largest.max(message.header.length);
        set.parts.insert(fragment.number, inside.chain);
        if set.octets > most {
            return Received::TooMuch;
        }
        if set.parts.len() < usize::from(set.total) {
            self.set = Some(set);
            return Received::Part;
        }
        self.largest = set.largest;
        // Room for all of it at once: a vector that grows would leave plaintext behind.
        let mut chain = Zeroizing::new(Vec::with_capacity(set.octets));
        set.parts.values().for_each(|part| chain.extend_from_slice(part));
        Received::Whole(Inside { first: set.first_inner, chain })
    }
}
