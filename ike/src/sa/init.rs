//! The initiator's IKE_SA_INIT (RFC 7296 §1.2, §2.6, §2.23).

use std::time::Duration;

use crate::{
    asked::Asked,
    config::{ConnectionConfig, ConnectionId, Role},
    crypto::{KeyExchange, KeyExchangeMethod, derive_ike},
    event::{CloseReason, Event, SaId},
    nat::{self, Nat},
    path::Path,
    wire::{self, ExchangeType, Message, Notify, NotifyType, Payload},
};

use super::{
    Cx, On, Sa, State, auth, auth_initiator,
    channel::Channel,
    envelope::Keys,
    fragment::{self, Fragments},
    negotiate,
};

/// COOKIE and INVALID_KE_PAYLOAD answers that are followed before the peer is given up; together they
/// need two in the worst honest case (RFC 7296 §2.6.1).
const MOST_RESTARTS: u32 = 4;

/// An error that anyone could have sent is believed after this time without a better answer
/// (RFC 7296 §2.21.1).
const DOUBT: Duration = Duration::from_secs(2);

/// The IKE_SA_INIT request is out.
pub(crate) struct ExpectInitResponse {
    connection: ConnectionId,
    exchange: KeyExchange,
    nonce: Vec<u8>,
    request: Vec<u8>,
    cookie: Option<Vec<u8>>,
    restarts: u32,
    hint: Option<CloseReason>,
}

impl ExpectInitResponse {
    /// What an unprotected error said, for when nothing better comes.
    pub(crate) fn hint(&self) -> Option<CloseReason> {
        self.hint.clone()
    }
}

/// Starts an IKE_SA of `connection` on `path`, for the CHILD_SAs that are `asked` for; for all of the
/// configuration if none is.
pub(crate) fn start(
    cx: &mut Cx<'_>,
    id: SaId,
    connection: ConnectionId,
    path: Path,
    asked: Vec<Asked>,
) -> Result<Sa, CloseReason> {
    let config = cx
        .shared
        .connection(connection)
        .ok_or_else(|| CloseReason::Protocol("no such connection".into()))?;
    let method = config
        .ike_proposals
        .first()
        .map(|suite| suite.key_exchange)
        .ok_or_else(|| CloseReason::NoProposal(": none is configured".into()))?;
    let asked = match asked.is_empty() {
        true => (0..config.children().count()).map(Asked::anyhow).collect(),
        false => asked,
    };
    let exchange = KeyExchange::generate(method, &mut cx.shared.random);
    let spi_i = cx.shared.draw_ike_spi();
    let state = ExpectInitResponse {
        connection,
        exchange,
        nonce: cx.shared.random.array::<32>().to_vec(),
        request: Vec::new(),
        cookie: None,
        restarts: 0,
        hint: None,
    };
    let mut sa = Sa {
        id,
        role: Role::Initiator,
        connection: Some(connection),
        path,
        nat: Nat::default(),
        channel: Channel::new(Role::Initiator, spi_i, 0, None),
        former: Vec::new(),
        last_heard: cx.now,
        unreadable: 0,
        half_open: None,
        patience: None,
        liveness: None,
        asked,
        state: State::Lingering,
    };
    send(&mut sa, cx, Box::new(state))?;
    Ok(sa)
}

/// Builds and sends the request that `state` describes.
fn send(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    mut state: Box<ExpectInitResponse>,
) -> Result<(), CloseReason> {
    let Some(config) = cx.shared.connections.get(state.connection.0) else {
        return Err(CloseReason::Protocol("no such connection".into()));
    };
    let force = cx.shared.force_encap || config.force_encap;
    let mut payloads = Vec::new();
    // RFC 7296 §2.6: the cookie is the first payload, all others stay as they were.
    if let Some(cookie) = &state.cookie {
        payloads.push(Payload::Notify(Notify::new(NotifyType::COOKIE, cookie.clone())));
    }
    payloads.push(Payload::SecurityAssociation(negotiate::offer_ike(&config.ike_proposals, &[])));
    payloads.push(Payload::KeyExchange {
        group: state.exchange.method().id(),
        data: state.exchange.public().to_vec(),
    });
    payloads.push(Payload::Nonce(state.nonce.clone()));
    if config.nat_traversal {
        let spis = (sa.channel.spi_i, 0);
        payloads.extend(nat::payloads(spis, sa.path, force, &mut cx.shared.random));
    }
    if config.fragment_size.is_some() {
        payloads.push(fragment::supported());
    }
    if config.uses_signatures() {
        payloads.push(auth::hashes());
    }
    let header = sa.channel.header(ExchangeType::IKE_SA_INIT, false, 0);
    let bytes = wire::emit_message(&header, &payloads)
        .map_err(|error| CloseReason::Protocol(error.to_string()))?;
    state.request = bytes.clone();
    sa.channel.outgoing.restart();
    sa.state = State::InitResponse(state);
    sa.start_request(cx, On::Current, ExchangeType::IKE_SA_INIT, vec![bytes], None);
    Ok(())
}

/// A response to our IKE_SA_INIT. It is not protected: what does not fit is dropped and the request
/// goes on (RFC 7296 §2.21.1).
pub(crate) fn on_response(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    datagram: &[u8],
    message: &Message<'_>,
) {
    // RFC 7296 §2.5: a response with a critical payload that we don't know is as good as none.
    let critical = super::live::unknown_critical(&message.payloads).is_some();
    if message.header.message_id != 0 || message.encrypted.is_some() || critical {
        return;
    }
    let state = match std::mem::replace(&mut sa.state, State::Between) {
        State::InitResponse(state) => state,
        other => {
            sa.state = other;
            return;
        }
    };
    let result = match first_error(&message.payloads) {
        Some(notify) => on_notify(sa, cx, state, notify),
        None => on_answer(sa, cx, state, path, datagram, message),
    };
    if let Err(reason) = result {
        sa.over(cx, reason);
        sa.forget(cx);
    }
}

/// COOKIE, or the first error, of a response that has no SA payload.
fn first_error(payloads: &[Payload]) -> Option<&Notify> {
    if payloads.iter().any(|p| matches!(p, Payload::SecurityAssociation(_))) {
        return None;
    }
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::COOKIE || n.kind.is_error() => Some(n),
        _ => None,
    })
}

fn on_notify(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    mut state: Box<ExpectInitResponse>,
    notify: &Notify,
) -> Result<(), CloseReason> {
    cx.shared.event(Event::Reached { sa: sa.id });
    let config = cx.shared.connection(state.connection);
    match notify.kind {
        // Our own retransmissions bring the same answer more than once.
        NotifyType::COOKIE if state.cookie.as_ref() == Some(&notify.data) => {
            sa.state = State::InitResponse(state);
            return Ok(());
        }
        NotifyType::INVALID_KE_PAYLOAD
            if state.restarts > 0 && notify.data == state.exchange.method().id().to_be_bytes() =>
        {
            sa.state = State::InitResponse(state);
            return Ok(());
        }
        // Whoever sends these may be a stranger: the true answer may still come (RFC 7296 §2.21.1).
        NotifyType::COOKIE | NotifyType::INVALID_KE_PAYLOAD if state.restarts >= MOST_RESTARTS => {
            let text = format!("the peer answered {} again and again", notify.kind);
            state.hint.get_or_insert(CloseReason::Protocol(text));
            sa.state = State::InitResponse(state);
            return Ok(());
        }
        NotifyType::COOKIE if (1..=64).contains(&notify.data.len()) => {
            state.restarts += 1;
            state.cookie = Some(notify.data.clone());
            return send(sa, cx, state);
        }
        NotifyType::INVALID_KE_PAYLOAD => {
            let method = <[u8; 2]>::try_from(notify.data.as_slice())
                .ok()
                .and_then(|id| KeyExchangeMethod::from_id(u16::from_be_bytes(id)))
                .filter(|method| *method != state.exchange.method())
                .filter(|method| {
                    config.is_some_and(|c| {
                        c.ike_proposals.iter().any(|suite| suite.key_exchange == *method)
                    })
                });
            if let Some(method) = method {
                // RFC 7296 §1.2: the proposals stay whole; §2.6.1: the cookie is sent along.
                state.restarts += 1;
                state.exchange = KeyExchange::generate(method, &mut cx.shared.random);
                return send(sa, cx, state);
            }
            state.hint.get_or_insert(CloseReason::NoProposal(
                ": the peer asks for a key exchange that was not offered".into(),
            ));
        }
        NotifyType::NO_PROPOSAL_CHOSEN => {
            state.hint.get_or_insert(CloseReason::NoProposal(
                ": the peer accepts none of ike_proposals".into(),
            ));
        }
        kind => {
            state.hint.get_or_insert(CloseReason::Protocol(format!("the peer answered {kind}")));
        }
    }
    // RFC 9329 §6.4: nothing better comes on a TCP connection.
    if let Some(reason) = state.hint().filter(|_| sa.path.is_tcp()) {
        return Err(reason);
    }
    sa.channel.outgoing.limit(cx.now + DOUBT);
    sa.state = State::InitResponse(state);
    Ok(())
}

fn on_answer(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    state: Box<ExpectInitResponse>,
    path: Path,
    datagram: &[u8],
    message: &Message<'_>,
) -> Result<(), CloseReason> {
    let (mut proposals, mut ke, mut nonce) = (None, None, None);
    for payload in &message.payloads {
        match payload {
            Payload::SecurityAssociation(p) => proposals = proposals.or(Some(p)),
            Payload::KeyExchange { group, data } => ke = ke.or(Some((*group, data))),
            Payload::Nonce(data) => nonce = nonce.or(Some(data)),
            _ => {}
        }
    }
    let spi_r = message.header.spi_r;
    let (Some(proposals), Some((group, public)), Some(nonce_r)) = (proposals, ke, nonce) else {
        sa.state = State::InitResponse(state);
        return Ok(());
    };
    let Some(config) = cx.shared.connection(state.connection) else {
        return Err(CloseReason::Protocol("no such connection".into()));
    };
    let suite = negotiate::accept_ike(&config.ike_proposals, proposals)
        .filter(|suite| suite.key_exchange == state.exchange.method())
        .filter(|suite| suite.key_exchange.id() == group);
    // RFC 7296 §2.10: a nonce has at least half the octets of the prf's key.
    let suite = suite.filter(|suite| nonce_r.len() * 2 >= suite.prf.key_len());
    let shared_secret = suite.and_then(|_| state.exchange.agree(public).ok());
    // RFC 7296 §2.7, RFC 6989 §2.5: an answer that breaks the rules is as good as none.
    let (Some(suite), Some(secret), true) = (suite, shared_secret, spi_r != 0) else {
        let reason = "the peer's IKE_SA_INIT does not fit what was offered";
        let mut state = state;
        state.hint.get_or_insert(CloseReason::Protocol(reason.into()));
        sa.channel.outgoing.limit(cx.now + DOUBT);
        sa.state = State::InitResponse(state);
        return Ok(());
    };
    let Ok(hashes) = auth::read_hashes(&message.payloads) else {
        let mut state = state;
        let reason = "SIGNATURE_HASH_ALGORITHMS is no list";
        state.hint.get_or_insert(CloseReason::Protocol(reason.into()));
        sa.channel.outgoing.limit(cx.now + DOUBT);
        sa.state = State::InitResponse(state);
        return Ok(());
    };
    let hashes = hashes.filter(|_| config.uses_signatures());
    let force = needs_encap(config, cx.shared.force_encap);
    let (mobike, config_nat_t) = (config.mobike, config.nat_traversal);
    let fragments = config.fragment_size.is_some() && fragment::is_supported(&message.payloads);
    let spis = (sa.channel.spi_i.to_be_bytes(), spi_r.to_be_bytes());
    let internal = |e: crate::crypto::CryptoError| CloseReason::Protocol(e.to_string());
    let sk =
        derive_ike(suite, &secret, &state.nonce, nonce_r, &spis.0, &spis.1).map_err(internal)?;
    sa.channel.spi_r = spi_r;
    let keys = Keys::new(suite, sk, sa.role).map_err(internal)?;
    cx.shared.reveal(sa.channel.spis(), &keys);
    sa.channel.keys = Some(keys);
    sa.channel.fragments = Fragments::new(fragments);
    sa.channel.outgoing.take(0, ExchangeType::IKE_SA_INIT);
    sa.last_heard = cx.now;
    let nat = nat::detect((sa.channel.spi_i, spi_r), path, &message.payloads);
    let nat = nat.filter(|_| config_nat_t);
    sa.nat = nat.unwrap_or_default();
    // RFC 4555 §3.3, RFC 7296 §2.23: both on port 4500 from here on, if the peer can do it at all.
    // A TCP connection has the ports that it has (RFC 9329 §6.5).
    if !sa.path.is_tcp() && nat.is_some() && (mobike || force || sa.nat.any()) {
        sa.path.local.set_port(4500);
        if sa.path.remote.port() == 500 {
            sa.path.remote.set_port(4500);
        }
    }
    let childless = message.payloads.iter().any(|payload| {
        matches!(payload, Payload::Notify(n) if n.kind == NotifyType::CHILDLESS_IKEV2_SUPPORTED)
    });
    let exchange = auth_initiator::InitDone {
        connection: state.connection,
        childless,
        advised: state.cookie.is_some(),
        request: state.request,
        response: datagram.to_vec(),
        nonce_i: state.nonce,
        nonce_r: nonce_r.clone(),
        hashes,
    };
    auth_initiator::start(sa, cx, exchange)
}

/// Whether ESP has to travel in UDP even where no NAT is found.
pub(crate) fn needs_encap(config: &ConnectionConfig, plane: bool) -> bool {
    plane || config.force_encap
}
