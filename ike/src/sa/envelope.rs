//! Sealing and opening protected messages (RFC 7296 §3.14).

use zeroize::Zeroizing;

use crate::{
    config::Role,
    crypto::{CryptoError, IkeSuite, Opener, Sealer, SkKeys},
    event::CloseReason,
    random::Random,
    wire::{self, Header, Message, Payload, WireError},
};

/// The keys of an IKE_SA and what is made of them.
pub(crate) struct Keys {
    pub(crate) suite: IkeSuite,
    pub(crate) sk: SkKeys,
    sealer: Sealer,
    opener: Opener,
}

/// The content of an opened message, not parsed yet.
pub(crate) struct Inside {
    first: u8,
    chain: Zeroizing<Vec<u8>>,
}

impl Inside {
    /// The payloads; only the peer can have sent what fails here.
    pub(crate) fn payloads(&self) -> Result<Vec<Payload>, WireError> {
        wire::parse_chain(self.first, &self.chain)
    }
}

impl Keys {
    pub(crate) fn new(suite: IkeSuite, sk: SkKeys, role: Role) -> Result<Self, CryptoError> {
        let (ours, theirs) = match role {
            Role::Initiator => ((&sk.ei, &sk.ai), (&sk.er, &sk.ar)),
            Role::Responder => ((&sk.er, &sk.ar), (&sk.ei, &sk.ai)),
        };
        let sealer = Sealer::new(suite.encryption, ours.0, ours.1)?;
        let opener = Opener::new(suite.encryption, theirs.0, theirs.1)?;
        Ok(Keys { suite, sk, sealer, opener })
    }

    pub(crate) fn seal(
        &mut self,
        random: &mut Random,
        header: &Header,
        payloads: &[Payload],
    ) -> Result<Vec<u8>, CloseReason> {
        let too_long = |error: wire::TooLong| CloseReason::Protocol(error.to_string());
        let (first, chain) = wire::emit_chain(payloads).map_err(too_long)?;
        let chain = Zeroizing::new(chain);
        let len = self.sealer.sealed_len(chain.len());
        let mut message = wire::emit_encrypted_prefix(header, first, len).map_err(too_long)?;
        let body = self
            .sealer
            .seal(random, &message, &chain)
            .map_err(|error| CloseReason::Protocol(error.to_string()))?;
        message.extend_from_slice(&body);
        Ok(message)
    }

    /// Checks integrity first and looks inside only then. Fragments were not negotiated, so they are
    /// not looked at (RFC 7383 §2.3).
    pub(crate) fn open(&self, message: &Message<'_>) -> Result<Inside, CryptoError> {
        let sealed = message
            .encrypted
            .filter(|sealed| sealed.fragment.is_none())
            .ok_or(CryptoError::MalformedCiphertext)?;
        let chain = self.opener.open(sealed.aad, sealed.body)?;
        Ok(Inside { first: sealed.first_inner, chain })
    }
}
