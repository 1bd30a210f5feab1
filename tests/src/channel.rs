//! The IKE_SA of a peer by hand: what it offers in IKE_SA_INIT, the keys that follow, and messages sealed and
//! opened with them. X25519 and AES-GCM; how messages travel is for the hand to know.

use std::fmt;

use bewick_ike::{
    Random, Role,
    crypto::{KeyExchange, Opener, Sealer, SkKeys, derive_ike, signed_octets},
    wire::{
        ExchangeType, Flags, Header, Identification, Message, Payload, Proposal, Protocol,
        Transform, TransformType, emit_chain, emit_encrypted_prefix, emit_message, parse_chain,
        proposal::{encr, ke, prf},
    },
};

use crate::lab::X25519_GCM;

/// [`X25519_GCM`] in the words of the configuration.
pub const SUITE: &str = "aes256gcm16-prfsha384-x25519";

/// Why there is no message or no IKE_SA.
#[derive(Debug)]
pub struct Broken(String);

impl std::error::Error for Broken {}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn broken(why: impl fmt::Display) -> Broken {
    Broken(why.to_string())
}

/// The header of a message of ours.
pub fn header(
    role: Role,
    spis: (u64, u64),
    exchange: ExchangeType,
    response: bool,
    message_id: u32,
) -> Header {
    let flags = Flags { initiator: role == Role::Initiator, response, version: false };
    Header::new(spis, exchange, flags, message_id)
}

/// An SA payload that offers [`X25519_GCM`].
pub fn proposal() -> Payload {
    let transforms = vec![
        Transform::encryption(encr::AES_GCM_16, Some(256)),
        Transform::new(TransformType::PRF, prf::HMAC_SHA2_384),
        Transform::new(TransformType::KE, ke::CURVE25519),
    ];
    let (protocol, spi) = (Protocol::IKE, Vec::new());
    Payload::SecurityAssociation(vec![Proposal { number: 1, protocol, spi, transforms }])
}

/// Our side of IKE_SA_INIT.
pub struct Ours {
    /// for whatever the peer draws
    pub random: Random,
    exchange: KeyExchange,
    nonce: Vec<u8>,
}

impl Ours {
    /// Draws a key and a nonce.
    pub fn new(mut random: Random) -> Self {
        let exchange = KeyExchange::generate(X25519_GCM.key_exchange, &mut random);
        let nonce = random.array::<32>().to_vec();
        Ours { random, exchange, nonce }
    }

    /// Our message of IKE_SA_INIT, with these payloads besides SA, KE and Nonce.
    ///
    /// # Errors
    /// They are too long for one.
    pub fn message(
        &self,
        role: Role,
        spis: (u64, u64),
        extra: &[Payload],
    ) -> Result<Vec<u8>, Broken> {
        let group = X25519_GCM.key_exchange.id();
        let public = Payload::KeyExchange { group, data: self.exchange.public().to_vec() };
        let mut payloads = vec![proposal(), public, Payload::Nonce(self.nonce.clone())];
        payloads.extend_from_slice(extra);
        let head = header(role, spis, ExchangeType::IKE_SA_INIT, role == Role::Responder, 0);
        emit_message(&head, &payloads).map_err(broken)
    }

    /// The IKE_SA, once both messages of IKE_SA_INIT have been sent, of which the other end's holds `init`.
    ///
    /// # Errors
    /// It has no KE or no Nonce, or its public value is none.
    pub fn finish(
        self,
        role: Role,
        spis: (u64, u64),
        messages: [Vec<u8>; 2],
        init: &[Payload],
    ) -> Result<Channel, Broken> {
        let public = init.iter().find_map(|payload| match payload {
            Payload::KeyExchange { data, .. } => Some(data),
            _ => None,
        });
        let theirs = init.iter().find_map(|payload| match payload {
            Payload::Nonce(nonce) => Some(nonce.clone()),
            _ => None,
        });
        let (Some(public), Some(theirs)) = (public, theirs) else {
            return Err(broken(format!("an IKE_SA_INIT without KE or Nonce: {init:?}")));
        };
        let secret = self.exchange.agree(public).map_err(broken)?;
        let nonces = match role {
            Role::Initiator => [self.nonce, theirs],
            Role::Responder => [theirs, self.nonce],
        };
        let spi = (spis.0.to_be_bytes(), spis.1.to_be_bytes());
        let [ni, nr] = &nonces;
        let keys = derive_ike(X25519_GCM, &secret, ni, nr, &spi.0, &spi.1);
        let keys = keys.map_err(broken)?;
        let ((e, a), (peer_e, peer_a)) = match role {
            Role::Initiator => ((&keys.ei, &keys.ai), (&keys.er, &keys.ar)),
            Role::Responder => ((&keys.er, &keys.ar), (&keys.ei, &keys.ai)),
        };
        let sealer = Sealer::new(X25519_GCM.encryption, e, a).map_err(broken)?;
        let opener = Opener::new(X25519_GCM.encryption, peer_e, peer_a);
        let opener = opener.map_err(broken)?;
        let random = self.random;
        Ok(Channel { role, spis, keys, sealer, opener, random, messages, nonces })
    }
}

/// The IKE_SA, as the peer has it.
pub struct Channel {
    /// which end the peer is
    pub role: Role,
    /// the initiator's and the responder's SPI
    pub spis: (u64, u64),
    keys: SkKeys,
    sealer: Sealer,
    opener: Opener,
    random: Random,
    messages: [Vec<u8>; 2],
    nonces: [Vec<u8>; 2],
}

impl Channel {
    /// The octets that the AUTH of a side covers (RFC 7296 §2.15).
    pub fn signed_by(&self, role: Role, id: &Identification) -> Vec<u8> {
        let [request, response] = &self.messages;
        let [nonce_i, nonce_r] = &self.nonces;
        let body = id.body();
        let prf = X25519_GCM.prf;
        match role {
            Role::Initiator => signed_octets(prf, &self.keys.pi, request, nonce_r, &body),
            Role::Responder => signed_octets(prf, &self.keys.pr, response, nonce_i, &body),
        }
    }

    /// A message with `chain` in it, whose first payload is of kind `first`.
    ///
    /// # Errors
    /// It is too long for one.
    pub fn seal(
        &mut self,
        (exchange, response, message_id): (ExchangeType, bool, u32),
        (first, chain): (u8, &[u8]),
    ) -> Result<Vec<u8>, Broken> {
        let head = header(self.role, self.spis, exchange, response, message_id);
        let len = self.sealer.sealed_len(chain.len());
        let message = emit_encrypted_prefix(&head, first, len).map_err(broken)?;
        let body = self.sealer.seal(&mut self.random, &message, chain);
        Ok([message, body.map_err(broken)?].concat())
    }

    /// The same of payloads.
    ///
    /// # Errors
    /// They are too long for one.
    pub fn seal_payloads(
        &mut self,
        which: (ExchangeType, bool, u32),
        payloads: &[Payload],
    ) -> Result<Vec<u8>, Broken> {
        let (first, chain) = emit_chain(payloads).map_err(broken)?;
        self.seal(which, (first, &chain))
    }

    /// The payloads of a message of the other end's; `Err` of those that are not sealed.
    ///
    /// # Errors
    /// It is not well formed, or not of this IKE_SA.
    pub fn open(&self, datagram: &[u8]) -> Result<Result<Vec<Payload>, Vec<Payload>>, Broken> {
        let message = Message::parse(datagram).map_err(broken)?;
        let Some(sealed) = message.encrypted else { return Ok(Err(message.payloads)) };
        let chain = self.opener.open(sealed.aad, sealed.body).map_err(broken)?;
        parse_chain(sealed.first_inner, &chain).map(Ok).map_err(broken)
    }
}
