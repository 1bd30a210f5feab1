//! What a rekey of the IKE_SA makes anew (RFC 7296 §2.18): SPIs, keys, Message IDs, windows. All the
//! rest of an IKE_SA, its CHILD_SAs among it, is inherited and stays where it is.

use crate::{
    config::{ConnectionConfig, Role},
    crash::Tokens,
    event::CloseReason,
    path::Path,
    random::Random,
    wire::{ExchangeType, Flags, Header, Payload},
};

use super::{
    envelope::Keys,
    exchange::{Incoming, Outgoing},
    fragment::Fragments,
};

/// The SPIs, keys and windows of an IKE_SA between two rekeys.
pub(crate) struct Channel {
    /// our role in the exchange that made it, which the Initiator flag tells (RFC 7296 §3.1)
    pub(crate) role: Role,
    pub(crate) spi_i: u64,
    pub(crate) spi_r: u64,
    pub(crate) keys: Option<Keys>,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) fragments: Fragments,
    /// counts the rekeys of the IKE_SA, for Message IDs begin anew with each
    pub(crate) epoch: u32,
    /// what tells that the peer has lost it (RFC 6290)
    pub(crate) crash: Tokens,
}

impl Channel {
    /// A channel on which nothing has been sent yet.
    pub(crate) fn new(role: Role, spi_i: u64, spi_r: u64, keys: Option<Keys>) -> Self {
        Channel {
            role,
            spi_i,
            spi_r,
            keys,
            outgoing: Outgoing::default(),
            incoming: Incoming::default(),
            fragments: Fragments::default(),
            epoch: 0,
            crash: Tokens::default(),
        }
    }

    /// The SPI that we chose.
    pub(crate) fn own_spi(&self) -> u64 {
        match self.role {
            Role::Initiator => self.spi_i,
            Role::Responder => self.spi_r,
        }
    }

    pub(crate) fn spis(&self) -> (u64, u64) {
        (self.spi_i, self.spi_r)
    }

    /// Whether a message with this header was sent by the peer of this channel.
    pub(crate) fn is_for(&self, header: &Header) -> bool {
        header.flags.initiator == (self.role == Role::Responder)
            && (header.spi_i, header.spi_r) == self.spis()
    }

    pub(crate) fn header(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
        let initiator = self.role == Role::Initiator;
        let flags = Flags { initiator, response, version: false };
        Header::new(self.spis(), exchange, flags, message_id)
    }

    /// Seals our next request.
    pub(crate) fn seal_request(
        &mut self,
        random: &mut Random,
        exchange: ExchangeType,
        payloads: &[Payload],
        config: Option<&ConnectionConfig>,
        path: Path,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let header = self.header(exchange, false, self.outgoing.next_id());
        let limit = self.fragments.limit(config, path);
        self.seal(random, &header, payloads, limit)
    }

    /// Seals a response, and keeps it for retransmissions.
    pub(crate) fn seal_response(
        &mut self,
        random: &mut Random,
        (exchange, message_id): (ExchangeType, u32),
        payloads: &[Payload],
        config: Option<&ConnectionConfig>,
        path: Path,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let header = self.header(exchange, true, message_id);
        let limit = self.fragments.answer_limit(config, path);
        let datagrams = self.seal(random, &header, payloads, limit)?;
        self.incoming.finish(message_id, datagrams.clone());
        Ok(datagrams)
    }

    fn seal(
        &mut self,
        random: &mut Random,
        header: &Header,
        payloads: &[Payload],
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, CloseReason> {
        let keys = self.keys.as_mut().ok_or_else(|| CloseReason::Protocol("no keys yet".into()))?;
        keys.seal(random, header, payloads, limit)
    }
}
