//! The responder's IKE_SA_INIT (RFC 7296 §1.2, §2.23): from a request to a half-open IKE_SA.

use crate::{
    config::{ConnectionId, Role},
    crypto::{self, IkeSuite, derive_ike},
    event::{CloseReason, SaId},
    nat,
    path::Path,
    wire::{self, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State, auth,
    auth_responder::ExpectAuthRequest,
    channel::Channel,
    envelope::Keys,
    fault::{Fault, Stage},
    fragment::{self, Fragments},
    negotiate,
};

/// What a usable IKE_SA_INIT request holds.
pub(crate) struct Request<'a> {
    proposals: &'a [wire::Proposal],
    group: u16,
    public: &'a [u8],
    pub(crate) nonce: &'a [u8],
    pub(crate) cookie: Option<&'a [u8]>,
}

/// Why a request got no IKE_SA.
pub(crate) enum Unanswerable {
    /// answer with this notify, unprotected
    Notify(Notify, Box<CloseReason>),
    /// say nothing
    Silence(CloseReason),
}

impl<'a> Request<'a> {
    /// The payloads of a request, each once (RFC 7296 §1.2).
    pub(crate) fn read(message: &'a Message<'_>) -> Result<Self, Unanswerable> {
        let (mut proposals, mut ke, mut nonce, mut cookie) = (None, None, None, None);
        for payload in &message.payloads {
            let twice = match payload {
                Payload::SecurityAssociation(p) => proposals.replace(p.as_slice()).is_some(),
                Payload::KeyExchange { group, data } => {
                    ke.replace((*group, data.as_slice())).is_some()
                }
                Payload::Nonce(data) => nonce.replace(data.as_slice()).is_some(),
                Payload::Notify(n) if n.kind == NotifyType::COOKIE => {
                    cookie.get_or_insert(n.data.as_slice());
                    false
                }
                _ => false,
            };
            if twice {
                return Err(syntax("a payload stands twice in IKE_SA_INIT"));
            }
        }
        if let Some(kind) = super::live::unknown_critical(&message.payloads) {
            let reason = CloseReason::Protocol(format!("unknown critical payload {kind}"));
            return Err(unanswerable(Fault::UnknownCritical, vec![kind], reason));
        }
        match (proposals, ke, nonce, &message.encrypted) {
            (Some(proposals), Some((group, public)), Some(nonce), None) => {
                Ok(Request { proposals, group, public, nonce, cookie })
            }
            _ => Err(syntax("IKE_SA_INIT without SA, KE and Nonce")),
        }
    }
}

fn unanswerable(fault: Fault, data: Vec<u8>, reason: CloseReason) -> Unanswerable {
    match fault.at(Stage::Init).notify {
        Some(kind) => Unanswerable::Notify(Notify::new(kind, data), Box::new(reason)),
        None => Unanswerable::Silence(reason),
    }
}

fn syntax(what: &str) -> Unanswerable {
    unanswerable(Fault::Malformed, Vec::new(), CloseReason::Protocol(what.into()))
}

/// Makes the half-open IKE_SA and answers.
pub(crate) fn accept(
    cx: &mut Cx<'_>,
    id: SaId,
    path: Path,
    datagram: &[u8],
    message: &Message<'_>,
    request: &Request<'_>,
) -> Result<Sa, Unanswerable> {
    let (suite, proposal) = choose(cx, request)?;
    // RFC 7296 §2.10: a nonce has at least half the octets of the prf's key.
    if request.nonce.len() * 2 < suite.prf.key_len() {
        return Err(syntax("a nonce that is too short for the prf"));
    }
    let fault =
        |e: crypto::CryptoError| Unanswerable::Silence(CloseReason::Protocol(e.to_string()));
    let (public, secret) =
        crypto::respond(suite.key_exchange, &mut cx.shared.random, request.public)
            .map_err(fault)?;
    let nonce_r = cx.shared.random.array::<32>().to_vec();
    let spi_i = message.header.spi_i;
    let spi_r = cx.shared.draw_ike_spi();
    let sk = derive_ike(
        suite,
        &secret,
        request.nonce,
        &nonce_r,
        &spi_i.to_be_bytes(),
        &spi_r.to_be_bytes(),
    )
    .map_err(fault)?;
    let keys = Keys::new(suite, sk, Role::Responder).map_err(fault)?;
    cx.shared.reveal((spi_i, spi_r), &keys);
    // The peer's hashes were made with an SPIr of 0; ours have the one we chose.
    let detected = nat::detect((spi_i, 0), path, &message.payloads)
        .filter(|_| cx.shared.responder_traverses_nats());
    let mut payloads = vec![
        Payload::SecurityAssociation(vec![proposal]),
        Payload::KeyExchange { group: suite.key_exchange.id(), data: public },
        Payload::Nonce(nonce_r.clone()),
    ];
    if detected.is_some() {
        let force = cx.shared.responder_forces_encap();
        payloads.extend(nat::payloads((spi_i, spi_r), path, force, &mut cx.shared.random));
    }
    let fragments = cx.shared.responder_fragments() && fragment::is_supported(&message.payloads);
    if fragments {
        payloads.push(fragment::supported());
    }
    let hashes = auth::read_hashes(&message.payloads)
        .map_err(|error| syntax(&error.to_string()))?
        .filter(|_| cx.shared.responder_signs());
    // RFC 7427 §4: it takes both to use it.
    payloads.extend(hashes.map(|_| auth::hashes()));
    payloads.extend(cx.shared.responder_requests());
    if cx.shared.responder_is_childless() {
        let notify = Notify::new(NotifyType::CHILDLESS_IKEV2_SUPPORTED, Vec::new());
        payloads.push(Payload::Notify(notify));
    }
    let flags = Flags { initiator: false, response: true, version: false };
    let header = Header::new((spi_i, spi_r), ExchangeType::IKE_SA_INIT, flags, 0);
    let response = wire::emit_message(&header, &payloads).map_err(|_| syntax("too long"))?;
    let mut channel = Channel::new(Role::Responder, spi_i, spi_r, Some(keys));
    channel.fragments = Fragments::new(fragments);
    channel.incoming.begin(0);
    channel.incoming.finish(0, vec![response.clone()]);
    cx.shared.transmit(path, response.clone());
    Ok(Sa {
        id,
        role: Role::Responder,
        connection: None,
        path,
        nat: detected.unwrap_or_default(),
        channel,
        former: Vec::new(),
        last_heard: cx.now,
        unreadable: 0,
        half_open: Some((spi_i, path.remote)),
        patience: None,
        liveness: None,
        asked: Vec::new(),
        state: State::AuthRequest(Box::new(ExpectAuthRequest {
            init_request: datagram.to_vec(),
            init_response: response,
            nonce_i: request.nonce.to_vec(),
            nonce_r,
            hashes,
            since: cx.now,
        })),
    })
}

/// Every suite that some connection of ours accepts as responder, in the order of the configuration.
fn suites(cx: &Cx<'_>) -> Vec<IkeSuite> {
    let mut suites = Vec::new();
    for config in cx.shared.connections.iter().filter(|c| c.role == Role::Responder) {
        for suite in &config.ike_proposals {
            if !suites.contains(suite) {
                suites.push(*suite);
            }
        }
    }
    suites
}

fn choose(cx: &Cx<'_>, request: &Request<'_>) -> Result<(IkeSuite, wire::Proposal), Unanswerable> {
    let suites = suites(cx);
    let chosen = negotiate::select_ike(&suites, request.proposals, request.group);
    let Some((suite, proposal)) = chosen else {
        let reason = CloseReason::NoProposal(": the peer offers none of ike_proposals".into());
        return Err(unanswerable(Fault::NoProposal, Vec::new(), reason));
    };
    if suite.key_exchange.id() != request.group {
        let wanted = suite.key_exchange.id().to_be_bytes().to_vec();
        let reason = CloseReason::NoProposal(": another key exchange is asked for".into());
        return Err(unanswerable(Fault::AnotherGroup, wanted, reason));
    }
    Ok((suite, proposal))
}

/// The connections that an IKE_SA with this suite may belong to, in the order of the configuration.
pub(crate) fn candidates(cx: &Cx<'_>, suite: IkeSuite) -> Vec<ConnectionId> {
    cx.shared
        .connections
        .iter()
        .enumerate()
        .filter(|(_, c)| c.role == Role::Responder && c.ike_proposals.contains(&suite))
        .map(|(i, _)| ConnectionId(i))
        .collect()
}
