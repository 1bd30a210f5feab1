//! Netlink messages as octets: building requests and reading what the kernel sends (netlink(7),
//! linux/netlink.h).
//!
//! The fixed structures and most attributes come from `netlink-packet-xfrm`. Key attributes are
//! written here, into a buffer that is zeroed: that crate's types keep keys in plain vectors and
//! print them in `Debug`. Everything that comes from the kernel is length-checked here before that
//! crate sees it, as it slices without looking.

use std::num::NonZeroU32;

use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{XfrmAttrs, constants::XFRMA_IF_ID};
use zeroize::Zeroizing;

/// Octets of a netlink message header.
const HEADER: usize = 16;

/// Larger than any request that we make, so that a buffer with keys is never reallocated.
pub(super) const CAPACITY: usize = 4096;

const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const NLM_F_ACK: u16 = libc::NLM_F_ACK as u16;
pub(super) const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
pub(super) const NLM_F_REPLACE: u16 = libc::NLM_F_REPLACE as u16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The bits of an attribute's type that name it (without NLA_F_NESTED and NLA_F_NET_BYTEORDER).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A request under construction. It may hold keys: no `Debug`, zeroed on drop.
pub(super) struct Request(Zeroizing<Vec<u8>>);

impl Request {
    /// A request of message type `kind` with more `flags` than REQUEST and ACK, and its fixed body.
    pub(super) fn new(kind: u16, flags: u16, body: &impl Emitable) -> Self {
        let mut fixed = vec![0; body.buffer_len()];
        body.emit(&mut fixed);
        Request::with_body(kind, flags, &fixed)
    }

    /// As [`Request::new`], with the body as octets.
    pub(super) fn with_body(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut octets = Zeroizing::new(Vec::with_capacity(CAPACITY));
        octets.extend_from_slice(&[0; 4]); // length, set by `finish`
        octets.extend_from_slice(&kind.to_ne_bytes());
        octets.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        octets.extend_from_slice(&[0; 8]); // sequence and port, set by `finish`
        octets.extend_from_slice(body);
        let mut request = Request(octets);
        request.pad();
        request
    }

    /// Adds an attribute whose value is the concatenation of `parts`.
    pub(super) fn attribute(mut self, kind: u16, parts: &[&[u8]]) -> Self {
        let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
        // No value of ours comes near 64 KiB.
        self.0.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
        self.pad();
        self
    }

    /// Adds an attribute that holds no key, as the codec writes it.
    pub(super) fn xfrm(mut self, attribute: &XfrmAttrs) -> Self {
        let at = self.0.len();
        self.0.resize(at + attribute.buffer_len(), 0);
        if let Some(room) = self.0.get_mut(at..) {
            attribute.emit(room);
        }
        self.pad();
        self
    }

    /// Says that it is about an XFRM interface's packets (XFRMA_IF_ID): the kernel looks for a policy by
    /// that too, also where it is named by its index.
    pub(super) fn interface(self, if_id: Option<NonZeroU32>) -> Self {
        match if_id {
            Some(if_id) => self.attribute(XFRMA_IF_ID, &[&if_id.get().to_ne_bytes()]),
            None => self,
        }
    }

    /// Sets length, sequence number and the sender's port, by which the kernel says who has changed
    /// something; the octets are then ready to be sent.
    pub(super) fn finish(&mut self, sequence: u32, port: u32) -> &[u8] {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(field) = self.0.get_mut(0..4) {
            field.copy_from_slice(&length.to_ne_bytes());
        }
        if let Some(field) = self.0.get_mut(8..12) {
            field.copy_from_slice(&sequence.to_ne_bytes());
        }
        if let Some(field) = self.0.get_mut(12..16) {
            field.copy_from_slice(&port.to_ne_bytes());
        }
        &self.0
    }

    /// Octets of the whole message.
    pub(super) fn length(&self) -> usize {
        self.0.len()
    }

    /// Message type and body, as far as they are there.
    pub(super) fn parts(&self) -> Option<(u16, &[u8])> {
        Some((u16_at(&self.0, 4)?, self.0.get(HEADER..)?))
    }

    fn pad(&mut self) {
        let length = self.0.len().next_multiple_of(4);
        self.0.resize(length, 0);
    }
}

/// One message of a received datagram.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

/// The messages of a datagram; ends early at one whose length is wrong.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let message = Message {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            body: datagram.get(HEADER..length)?,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `octets`: type and value; ends early at one whose length is wrong.
pub(super) fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(octets, 0)?);
        let kind = u16_at(octets, 2)? & NLA_TYPE_MASK;
        let value = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind` behind the first `fixed` octets of `body`.
pub(super) fn attribute(body: &[u8], fixed: usize, kind: u16) -> Option<&[u8]> {
    attributes(body.get(fixed.next_multiple_of(4)..)?).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// The XFRM interface that a state or a policy is for, of which the first `fixed` octets of `body` tell
/// the rest.
pub(super) fn interface(body: &[u8], fixed: usize) -> Option<NonZeroU32> {
    NonZeroU32::new(u32_at(attribute(body, fixed, XFRMA_IF_ID)?, 0)?)
}

/// What the kernel answered to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// positive, 0 for an acknowledgement
    pub(super) errno: i32,
    /// the kernel's own words, if it had any
    pub(super) text: Option<String>,
}

/// Reads an NLMSG_ERROR body, which is the acknowledgement too; `None` if it is too short.
pub(super) fn refusal(message: &Message<'_>) -> Option<Refusal> {
    let errno = (u32_at(message.body, 0)? as i32).saturating_neg();
    // The request's header follows, and unless the answer is capped the request's body as well.
    let echoed = if message.flags & NLM_F_CAPPED != 0 || errno == 0 {
        HEADER
    } else {
        usize::try_from(u32_at(message.body, 4)?).ok()?.next_multiple_of(4)
    };
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| attribute(message.body, echoed.saturating_add(4), NLMSGERR_ATTR_MSG))
        .flatten()
        .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some(Refusal { errno, text })
}

/// The 16-bit number in native order at `at`.
pub(super) fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(octets.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The 32-bit number in native order at `at`.
pub(super) fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(octets.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The 64-bit number in native order at `at`.
pub(super) fn u64_at(octets: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(octets.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Message type, flags and body of a request that is complete.
#[cfg(test)]
pub(super) fn sent(mut request: Request) -> (u16, u16, Vec<u8>) {
    let octets = request.finish(9, 3).to_vec();
    let all: Vec<_> = messages(&octets).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(u32_at(&octets, 0), Some(octets.len() as u32), "the length is the whole");
    assert_eq!(all[0].sequence, 9);
    (all[0].kind, all[0].flags, all[0].body.to_vec())
}
