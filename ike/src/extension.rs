//! Where MOBIKE, or any other extension of RFC 7296, joins an exchange of the IKE machines.

use crate::{
    config::{ConnectionId, Role},
    event::SaId,
    nat::Nat,
    path::Path,
    random::Random,
    time::Time,
    wire::{NotifyType, Payload},
};

/// An IKE_SA as an extension sees it.
#[derive(Clone, Copy, Debug)]
pub struct SaView {
    /// our name for it
    pub id: SaId,
    /// the connection it belongs to
    pub connection: ConnectionId,
    /// our role in it
    pub role: Role,
    /// the initiator's SPI
    pub spi_i: u64,
    /// the responder's SPI
    pub spi_r: u64,
    /// how often it has been rekeyed: Message IDs begin anew with each (RFC 7296 §2.18)
    pub epoch: u32,
    /// its current addresses
    pub path: Path,
}

/// A protected request that arrived for an established IKE_SA.
#[derive(Debug)]
pub struct Request<'a> {
    /// when
    pub now: Time,
    /// the addresses in its IP and UDP headers
    pub path: Path,
    /// its Message ID
    pub message_id: u32,
    /// its payloads
    pub payloads: &'a [Payload],
    /// the crash token for a peer that is there now, if it has none for that address: to be added to the
    /// response if the peer has moved there (RFC 6290 §4.4, §5.2)
    pub token: Option<Payload>,
}

/// Adds to, and learns from, the messages of an IKE_SA. All payloads have passed the integrity check.
pub trait Extension {
    /// Payloads for our IKE_AUTH request.
    fn auth_request(&mut self, sa: &SaView) -> Vec<Payload>;

    /// The error that a proven peer's IKE_AUTH request, which came on `path` through these NATs, is refused
    /// with.
    fn auth_refusal(
        &self,
        connection: ConnectionId,
        (path, nat): (Path, Nat),
        payloads: &[Payload],
    ) -> Option<NotifyType> {
        let _ = (connection, path, nat, payloads);
        None
    }

    /// The peer's IKE_AUTH request with the SA payload; gives payloads for the response.
    fn auth_request_received(&mut self, sa: &SaView, payloads: &[Payload]) -> Vec<Payload>;

    /// The peer's IKE_AUTH response with the SA payload.
    fn auth_response_received(&mut self, sa: &SaView, payloads: &[Payload]);

    /// An INFORMATIONAL request; gives payloads for the response.
    fn informational(
        &mut self,
        sa: &SaView,
        request: &Request<'_>,
        random: &mut Random,
    ) -> Vec<Payload>;

    /// Payloads for a liveness check.
    fn liveness(&mut self, sa: &SaView, random: &mut Random) -> Vec<Payload>;
}

/// RFC 7296 and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Extension for Plain {
    fn auth_request(&mut self, _: &SaView) -> Vec<Payload> {
        Vec::new()
    }
    fn auth_request_received(&mut self, _: &SaView, _: &[Payload]) -> Vec<Payload> {
        Vec::new()
    }
    fn auth_response_received(&mut self, _: &SaView, _: &[Payload]) {}
    fn informational(&mut self, _: &SaView, _: &Request<'_>, _: &mut Random) -> Vec<Payload> {
        Vec::new()
    }
    fn liveness(&mut self, _: &SaView, _: &mut Random) -> Vec<Payload> {
        Vec::new()
    }
}
