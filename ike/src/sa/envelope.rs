//! Sealing and opening protected messages (RFC 7296 §3.14), cut into fragments where they are too long
//! (RFC 7383 §2.5).

use zeroize::Zeroizing;

use crate::{
    config::Role,
    crypto::{CryptoError, IkeSuite, Opener, Sealer, SkKeys},
    event::CloseReason,
    random::Random,
    wire::{self, Fragment, Header, Message, Payload, WireError},
};

use super::fragment::MOST_FRAGMENTS;

/// The least content of a fragment; where even this is too much for the path, nothing helps.
const MIN_CHUNK: usize = 16;

/// The keys of an IKE_SA and what is made of them.
pub(crate) struct Keys {
    pub(crate) suite: IkeSuite,
    pub(crate) sk: SkKeys,
    role: Role,
    sealer: Sealer,
    opener: Opener,
}

/// The content of an opened message or fragment, not parsed yet.
pub(crate) struct Inside {
    pub(crate) first: u8,
    pub(crate) chain: Zeroizing<Vec<u8>>,
}

impl Inside {
    /// The payloads; only the peer can have sent what fails here.
    pub(crate) fn payloads(&self) -> Result<Vec<Payload>, WireError> {
        wire::parse_chain(self.first, &self.chain)
    }
}

fn too_long(error: wire::TooLong) -> CloseReason {
    CloseReason::Protocol(error.to_string())
}

impl Keys {
    pub(crate) fn new(suite: IkeSuite, sk: SkKeys, role: Role) -> Result<Self, CryptoError> {
        let (ours, theirs) = match role {
            Role::Initiator => ((&sk.ei, &sk.ai), (&sk.er, &sk.ar)),
            Role::Responder => ((&sk.er, &sk.ar), (&sk.ei, &sk.ai)),
        };
        let sealer = Sealer::new(suite.encryption, ours.0, ours.1)?;
        let opener = Opener::new(suite.encryption, theirs.0, theirs.1)?;
        Ok(Keys { suite, sk, role, sealer, opener })
    }

    /// The datagrams of a message: one if there is no `limit` for its octets or it is within that, else
    /// fragments of at most that length.
    pub(crate) fn seal(
        &mut self,
        random: &mut Random,
        header: &Header,
        payloads: &[Payload],
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let (first, chain) = wire::emit_chain(payloads).map_err(too_long)?;
        let inside = Inside { first, chain: Zeroizing::new(chain) };
        let whole = Header::LEN + 4 + self.sealer.sealed_len(inside.chain.len());
        match limit.filter(|limit| whole > *limit) {
            // RFC 7383 §2.4: what fits is not worth a fragment.
            None => Ok(vec![self.seal_one(random, header, inside.first, None, &inside.chain)?]),
            Some(limit) => self.cut(random, header, &inside, self.chunk(limit)),
        }
    }

    /// Seals a message of ours, whole or in fragments, again in smaller ones: no datagram is longer than
    /// `limit`. `None` if none is now, so that the same octets go on (RFC 7383 §2.5.2).
    pub(crate) fn recut(
        &mut self,
        random: &mut Random,
        datagrams: &[Vec<u8>],
        limit: usize,
    ) -> Option<Vec<Vec<u8>>> {
        if datagrams.iter().all(|datagram| datagram.len() <= limit) {
            return None;
        }
        let header = Header::parse(datagrams.first()?).ok()?;
        let inside = self.reopen(datagrams)?;
        // RFC 7383 §2.5.2: the number of fragments really grows, for it tells the sets apart.
        let mut chunk = self.chunk(limit);
        if inside.chain.len().div_ceil(chunk) <= datagrams.len() {
            chunk = inside.chain.len() / datagrams.len().saturating_add(1);
        }
        if chunk == 0 {
            return None;
        }
        let new = self.cut(random, &header, &inside, chunk).ok()?;
        (new.len() > datagrams.len()).then_some(new)
    }

    /// The content of a message of ours.
    fn reopen(&self, datagrams: &[Vec<u8>]) -> Option<Inside> {
        let (sk_e, sk_a) = match self.role {
            Role::Initiator => (&self.sk.ei, &self.sk.ai),
            Role::Responder => (&self.sk.er, &self.sk.ar),
        };
        let opener = Opener::new(self.suite.encryption, sk_e, sk_a).ok()?;
        let octets = datagrams.iter().map(Vec::len).sum();
        let mut inside = Inside { first: 0, chain: Zeroizing::new(Vec::with_capacity(octets)) };
        for (at, datagram) in datagrams.iter().enumerate() {
            let sealed = Message::parse(datagram).ok()?.encrypted?;
            if at == 0 {
                inside.first = sealed.first_inner;
            }
            let part = opener.open(sealed.aad, sealed.body).ok()?;
            inside.chain.extend_from_slice(&part);
        }
        Some(inside)
    }

    /// The most content of a fragment whose message has at most `limit` octets.
    fn chunk(&self, limit: usize) -> usize {
        let room = limit.saturating_sub(Header::LEN + 8);
        // Padding makes the length grow in steps: the last octets are found by trying.
        let most = room.saturating_sub(self.sealer.sealed_len(0)) + 16;
        let fits = |chunk: &usize| self.sealer.sealed_len(*chunk) <= room;
        (MIN_CHUNK..=most).rev().find(fits).unwrap_or(MIN_CHUNK)
    }

    /// RFC 7383 §2.5: the content is cut without regard to what is in it.
    fn cut(
        &mut self,
        random: &mut Random,
        header: &Header,
        inside: &Inside,
        chunk: usize,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let chunk = chunk.max(inside.chain.len().div_ceil(MOST_FRAGMENTS.into())).max(1);
        let total = inside.chain.len().div_ceil(chunk);
        let total = u16::try_from(total)
            .map_err(|_| too_long(wire::TooLong { what: "message", octets: inside.chain.len() }))?;
        (1..=total)
            .zip(inside.chain.chunks(chunk))
            .map(|(number, part)| {
                let fragment = Some(Fragment { number, total });
                self.seal_one(random, header, inside.first, fragment, part)
            })
            .collect()
    }

    pub(crate) fn seal_one(
        &mut self,
        random: &mut Random,
        header: &Header,
        first: u8,
        fragment: Option<Fragment>,
        content: &[u8],
    ) -> Result<Vec<u8>, CloseReason> {
        let len = self.sealer.sealed_len(content.len());
        let mut message = match fragment {
            None => wire::emit_encrypted_prefix(header, first, len),
            Some(fragment) => wire::emit_fragment_prefix(header, first, fragment, len),
        }
        .map_err(too_long)?;
        let body = self
            .sealer
            .seal(random, &message, content)
            .map_err(|error| CloseReason::Protocol(error.to_string()))?;
        message.extend_from_slice(&body);
        Ok(message)
    }

    /// Opens one message or one fragment. Checks integrity first and looks inside only then.
    pub(crate) fn open(&self, message: &Message<'_>) -> Result<Inside, CryptoError> {
        let sealed = message.encrypted.ok_or(CryptoError::MalformedCiphertext)?;
        let chain = self.opener.open(sealed.aad, sealed.body)?;
        Ok(Inside { first: sealed.first_inner, chain })
    }
}
