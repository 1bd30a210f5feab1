//! The responder's IKE_AUTH (RFC 7296 §1.2, §2.15, §2.19, §2.21.2).

use std::net::IpAddr;

use crate::{
    auth::{HashAlgorithms, LocalAuth},
    child::{ChildSa, Mode},
    config::{ChildView, Childless, ConnectionConfig, ConnectionId, Role},
    event::{Action, CloseReason, Established, Event},
    path::Path,
    selector::TrafficSelector,
    time::Time,
    wire::{
        CfgType, Configuration, ExchangeType, Identification, Identity, Notify, Payload, Proposal,
    },
};

use super::{
    Cx, Sa, State, Timer,
    auth::{InitExchange, complaint},
    auth_initiator::encap,
    child::{self, Agreed, Child},
    configuration, exchange,
    fault::Fault,
    init_responder::candidates,
    live::{self, HeldResponse, Live, Phase},
    mode, negotiate, task, uniqueness,
};

/// The IKE_SA_INIT response is out.
pub(crate) struct ExpectAuthRequest {
    pub(crate) init_request: Vec<u8>,
    pub(crate) init_response: Vec<u8>,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    /// the peer's SIGNATURE_HASH_ALGORITHMS, if that went both ways
    pub(crate) hashes: Option<HashAlgorithms>,
    /// when the IKE_SA_INIT request came
    pub(crate) since: Time,
}

/// The IKE_AUTH request, integrity checked and parsed.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    message_id: u32,
    payloads: &[Payload],
) {
    let state = match std::mem::replace(&mut sa.state, State::Between) {
        State::AuthRequest(state) => state,
        other => {
            sa.state = other;
            return;
        }
    };
    match authenticate(sa, cx, &state, payloads) {
        Ok(proven) => {
            let init_path = sa.path;
            // RFC 4555 §3.3: the addresses start from the header of the first IKE_AUTH request.
            sa.path = path;
            sa.connection = Some(proven.connection);
            cx.shared.timers.clear(sa.id, Timer::HalfOpen);
            accept(sa, cx, (path, init_path), message_id, &state, proven, payloads);
        }
        Err(text) => {
            // The state must be one that `close` reports.
            sa.state = State::AuthRequest(state);
            let notify = refusal(Fault::Unproven);
            // Without a response there is nothing to keep; the reason is reported all the same.
            let _ = sa.respond(cx, path, ExchangeType::IKE_AUTH, message_id, &[notify]);
            sa.path = path;
            sa.close(cx, CloseReason::Authentication(text));
        }
    }
}

/// A peer that proved its identity, and what we say of ourselves to it.
struct Proven {
    connection: ConnectionId,
    peer: Identity,
    /// our identity and the peer's, in their one spelling
    identities: (Identity, Identity),
    id_r: Identification,
    certificates: Vec<Payload>,
    auth: Payload,
}

/// Finds the connection that the peer's identity, the identity it wants of us and its AUTH fit. The
/// log tells the reason; the peer hears AUTHENTICATION_FAILED whatever it is (RFC 7296 §2.21.2).
fn authenticate(
    sa: &Sa,
    cx: &Cx<'_>,
    state: &ExpectAuthRequest,
    payloads: &[Payload],
) -> Result<Proven, String> {
    let (mut id_i, mut id_r) = (None, None);
    for payload in payloads {
        match payload {
            Payload::IdInitiator(id) => id_i = id_i.or(Some(id)),
            Payload::IdResponder(id) => id_r = id_r.or(Some(id)),
            _ => {}
        }
    }
    let id_i = id_i.ok_or("the peer sent no identity")?;
    let peer = Identity::from_wire(id_i).map_err(|e| e.to_string())?;
    if !payloads.iter().any(|p| matches!(p, Payload::Authentication { .. })) {
        return Err(format!("{peer} sent no AUTH: EAP is not supported"));
    }
    let wanted = id_r.map(Identity::from_wire).transpose().map_err(|e| e.to_string())?;
    let keys = sa.channel.keys.as_ref().ok_or("no keys")?;
    let init = InitExchange {
        request: &state.init_request,
        response: &state.init_response,
        nonce_i: &state.nonce_i,
        nonce_r: &state.nonce_r,
        hashes: state.hashes,
    };
    let mut why = format!("no connection expects {peer}");
    let mut candidates = candidates(cx, keys.suite);
    // RFC 7296 §3.7: CERTREQ helps to choose between several, and excludes none.
    candidates.sort_by_key(|id| !is_asked_for(cx.shared.connection(*id), payloads));
    for connection in candidates {
        let Some(config) = cx.shared.connection(connection) else { continue };
        if !config.remote_id.matches(&peer) {
            continue;
        }
        if let Some(wanted) = wanted.as_ref().filter(|wanted| !config.local_id.is(wanted)) {
            why = format!("{peer} asks for {wanted}, which is not our identity");
            continue;
        }
        let (initiator, clock) = ((Role::Initiator, keys), (&*cx.shared, cx.now));
        if let Err(error) = init.verify(initiator, (id_i, &peer), config, payloads, clock) {
            why = complaint(&peer, config, &error);
            continue;
        }
        let identities = (config.local_id.canonical(), peer.canonical());
        if let Some(text) = uniqueness::refusal(cx.shared, connection, &identities, payloads) {
            return Err(text);
        }
        let id_r = config.local_id.to_wire();
        match init.prove(Role::Responder, keys, &id_r, &config.local_auth) {
            Ok(auth) => {
                let certificates = config.local_auth.certificates();
                return Ok(Proven { connection, peer, identities, id_r, certificates, auth });
            }
            Err(error) => why = format!("we can't prove who we are to {peer}: {error}"),
        }
    }
    Err(why)
}

/// Whether no CERTREQ of the peer's speaks against this connection.
fn is_asked_for(config: Option<&ConnectionConfig>, payloads: &[Payload]) -> bool {
    let asks = payloads.iter().any(|p| matches!(p, Payload::CertificateRequest { .. }));
    match config.map(|config| &config.local_auth) {
        Some(LocalAuth::Certificate(credentials)) if asks => credentials.are_asked_for(payloads),
        _ => true,
    }
}

fn accept(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    (path, init_path): (Path, Path),
    message_id: u32,
    state: &ExpectAuthRequest,
    proven: Proven,
    payloads: &[Payload],
) {
    let offer = Offer::read(payloads);
    // RFC 7296 §2.21.2: what is malformed as a whole leaves no IKE_SA, and takes no older one's place.
    if offer.is_none() && !takes_childless(cx, proven.connection, payloads) {
        sa.state =
            State::Live(Box::new(Live::new(proven.connection, String::new(), (path, false))));
        let refusal = [refusal(Fault::Malformed)];
        // Without a response there is nothing to keep; the reason is reported all the same.
        let _ = sa.respond(cx, path, ExchangeType::IKE_AUTH, message_id, &refusal);
        let text = "the request has no SA or no traffic selectors";
        sa.close(cx, CloseReason::Protocol(text.into()));
        return;
    }
    if let Some(kind) = cx.extension.auth_refusal(proven.connection, (path, sa.nat), payloads) {
        sa.state =
            State::Live(Box::new(Live::new(proven.connection, String::new(), (path, false))));
        let refusal = [Payload::Notify(Notify::new(kind, Vec::new()))];
        let _ = sa.respond(cx, path, ExchangeType::IKE_AUTH, message_id, &refusal);
        sa.close(cx, CloseReason::Protocol(format!("refused with {kind}")));
        return;
    }
    let mut first = vec![Payload::IdResponder(proven.id_r)];
    first.extend(proven.certificates);
    first.push(proven.auth);
    // RFC 6290 §4.2: after AUTH, before CP and what is of the CHILD_SA.
    let taker = path.remote.ip();
    if let Some(token) = cx.shared.crash.token(sa.channel.spis(), taker) {
        sa.channel.crash.told = Some(taker);
        first.push(token);
    }
    let extra = match sa.view() {
        Some(view) => cx.extension.auth_request_received(&view, payloads),
        None => Vec::new(),
    };
    let peer = proven.peer.to_string();
    let (connection, identities) = (proven.connection, proven.identities);
    uniqueness::make_room(cx.shared, connection, &identities, (state.since, cx.now), payloads);
    uniqueness::note(sa, cx.shared, connection, identities.clone(), Some(cx.now));
    let home = shown(init_path, path);
    let mut live = Live::new(proven.connection, peer.clone(), (home, sa.nat.any()));
    if let Some(config) = cx.shared.connections.get(proven.connection.0) {
        first.extend(exchange::announce_window(config.window));
        sa.channel.incoming.widen(config.window);
    }
    if let Some(window) = exchange::window_of(payloads) {
        sa.channel.outgoing.widen(window);
    }
    let news = |virtual_ips| Established {
        sa: sa.id,
        connection: proven.connection,
        role: sa.role,
        peer,
        virtual_ips,
        dns: Vec::new(),
        domains: Vec::new(),
        subnets: Vec::new(),
    };
    let (who, request) = ((connection, &identities.1), cfg_request(payloads));
    let agreed = match offer {
        None => without_child(sa, cx, who, request)
            .map(|(encap, assigned, answer)| (Err((encap, assigned)), Vec::from_iter(answer))),
        Some(offer) => agree(sa, cx, (state, home), who, &offer, request)
            .map(|(child, index, answer)| (Ok((child, index)), answer)),
    };
    cx.shared.resume_addresses();
    match agreed {
        Ok((Err((encap, assigned)), answer)) => {
            first.extend(answer);
            first.extend(extra);
            let news = news(assigned.clone());
            (live.home, live.assigned) = ((home, encap), assigned);
            sa.state = State::Live(Box::new(live));
            let sent = sa.respond(cx, path, ExchangeType::IKE_AUTH, message_id, &first);
            if let Err(reason) = sent {
                sa.close(cx, reason);
                return;
            }
            live::on_up(sa, cx, news, 0);
            live::expect_child(sa, cx);
        }
        Ok((Ok((child, index)), mut answer)) => {
            let news = news(child.virtual_ips.clone());
            // They are the peer's, not ours to put on a device.
            let mut child = child;
            if let Some(reqid) = uniqueness::kin(sa, cx.shared, index, &child) {
                // The peer uses it when it has our response, and deletes the old IKE_SA, if one of both goes.
                (child.reqid, child.waits) = (reqid, true);
            }
            uniqueness::note_child(sa, cx.shared, index, &child);
            live.assigned = std::mem::take(&mut child.virtual_ips);
            live.home = (child.path, child.encap);
            let mut without_child = first.clone();
            without_child.push(refusal(Fault::Busy));
            without_child.extend(extra.iter().cloned());
            first.append(&mut answer);
            first.extend(extra);
            live.children.push(Child::of(&child, index));
            let action = cx.shared.action(sa.id, Action::Install(Box::new(child)));
            let payloads = first;
            let response = HeldResponse { path, message_id, payloads, without_child };
            live.phase =
                Phase::Installing { action, response: Some(response), news: Box::new(news) };
            sa.state = State::Live(Box::new(live));
        }
        Err((fault, text)) => {
            // RFC 7296 §2.21.2: the IKE_SA stands, the CHILD_SA does not.
            cx.shared.event(Event::Refused { path, reason: CloseReason::Child(text) });
            first.push(refusal(fault));
            first.extend(extra);
            sa.state = State::Live(Box::new(live));
            let sent = sa.respond(cx, path, ExchangeType::IKE_AUTH, message_id, &first);
            if let Err(reason) = sent {
                sa.close(cx, reason);
                return;
            }
            live::arm_liveness(sa, cx);
            live::await_child(sa, cx);
        }
    }
}

/// What a request for a CHILD_SA must have (RFC 7296 §1.2).
struct Offer<'a> {
    proposals: &'a [Proposal],
    ts_i: &'a [TrafficSelector],
    ts_r: &'a [TrafficSelector],
    /// it asks for transport mode
    transport: bool,
}

impl<'a> Offer<'a> {
    /// `None` if any of it is missing.
    fn read(payloads: &'a [Payload]) -> Option<Self> {
        let (mut proposals, mut ts_i, mut ts_r) = (None, None, None);
        for payload in payloads {
            match payload {
                Payload::SecurityAssociation(p) => proposals = proposals.or(Some(p)),
                Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
                Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
                _ => {}
            }
        }
        let transport = mode::is_asked(payloads);
        Some(Offer { proposals: proposals?, ts_i: ts_i?, ts_r: ts_r?, transport })
    }
}

fn cfg_request(payloads: &[Payload]) -> Option<&Configuration> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Configuration(c) if c.kind == CfgType::REQUEST => Some(c),
        _ => None,
    })
}

/// RFC 6023 §3: an IKE_AUTH without SA and traffic selectors asks for no CHILD_SA.
fn takes_childless(cx: &Cx<'_>, connection: ConnectionId, payloads: &[Payload]) -> bool {
    let allowed = cx.shared.connection(connection).is_some_and(|c| c.childless != Childless::Never);
    let asks = payloads.iter().any(|payload| {
        matches!(
            payload,
            Payload::SecurityAssociation(_) | Payload::TsInitiator(_) | Payload::TsResponder(_)
        )
    });
    allowed && !asks
}

type Without = (bool, Vec<IpAddr>, Option<Payload>);

/// Assigns what is asked for; gives whether CHILD_SAs to come travel in UDP, the addresses and the
/// CFG_REPLY.
fn without_child(
    sa: &Sa,
    cx: &mut Cx<'_>,
    (connection, who): (ConnectionId, &Identity),
    request: Option<&Configuration>,
) -> Result<Without, (Fault, String)> {
    let assigned = configuration::assign(cx.shared, (sa.id, who), connection, request)?;
    let Some(config) = cx.shared.connection(connection) else {
        return Err((Fault::Busy, "no such connection".into()));
    };
    let encap = encap(sa, config, cx.shared.responder_forces_encap());
    let reply = configuration::reply(config, request, &assigned);
    Ok((encap, assigned, reply))
}

/// The path for the CHILD_SA: to where the peer has shown that it receives, by knowing what our
/// IKE_SA_INIT response said; the header of IKE_AUTH anyone on the way can change (RFC 4555 §5.3).
fn shown(init: Path, auth: Path) -> Path {
    // A TCP connection shows it too (RFC 9329 §7.1).
    if init.remote.ip() == auth.remote.ip() || auth.is_tcp() {
        return auth;
    }
    let mut path = init;
    path.local.set_port(auth.local.port());
    path.remote.set_port(auth.remote.port());
    path
}

fn refusal(fault: Fault) -> Payload {
    Payload::Notify(Notify::new(fault.notify(), Vec::new()))
}

/// Settles the CHILD_SA; gives it, which of the configuration it is, and the payloads CP, SA, TSi, TSr of the answer.
fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    (state, path): (&ExpectAuthRequest, Path),
    (connection, who): (ConnectionId, &Identity),
    offer: &Offer<'_>,
    request: Option<&Configuration>,
) -> Result<(ChildSa, usize, Vec<Payload>), (Fault, String)> {
    let Offer { proposals: offered, ts_i, ts_r, transport } = *offer;
    let Some(config) = cx.shared.connection(connection).cloned() else {
        return Err((Fault::Busy, "no such connection".into()));
    };
    if config.childless == Childless::Force {
        let text = "the first CHILD_SA is to come by CREATE_CHILD_SA (childless = \"force\")";
        return Err((Fault::NoProposal, text.into()));
    }
    let select =
        |of_child: ChildView<'_>| negotiate::select_esp(of_child.esp_proposals, offered, None);
    if config.children().all(|of_child| select(of_child).is_none()) {
        let text = "no common proposal: the peer offers none of esp_proposals".to_owned();
        return Err((Fault::NoProposal, text));
    }
    let encap = encap(sa, &config, cx.shared.responder_forces_encap());
    let obstacle = mode::obstacle(sa, cx.shared, encap);
    let candidates = mode::candidates(&config, transport && obstacle.is_none());
    let why_not = mode::why_not(&config, transport, obstacle);
    if let (true, Some(why)) = (candidates.is_empty(), why_not) {
        return Err((Fault::NoProposal, why.into()));
    }
    let assigned = configuration::assign(cx.shared, (sa.id, who), connection, request)?;
    let ours = |of_child: ChildView<'_>| child::resolve(of_child.ts_local, &[], sa.path.local.ip());
    let theirs = |of_child: ChildView<'_>| {
        child::resolve(of_child.ts_remote, &assigned, sa.path.remote.ip())
    };
    // Any of ours may come first: whoever waits for packets asks for the one that a packet is for.
    let fitting = candidates.into_iter().find_map(|(index, of_child)| {
        let (ours, theirs) = match of_child.mode {
            Mode::Tunnel => (ours(of_child), theirs(of_child)),
            Mode::Transport => mode::sides(of_child, path),
        };
        let (ts_local, ts_remote) =
            child::matched(&child::narrow(&ours, ts_r), &child::narrow(&theirs, ts_i));
        let fits = !ts_local.is_empty() && !ts_remote.is_empty();
        Some((index, of_child.mode, select(of_child)?, ts_local, ts_remote)).filter(|_| fits)
    });
    let Some((index, mode, (proposal, mut answer, spi_out), ts_local, ts_remote)) = fitting else {
        let first = config.children().next();
        let also = why_not.map(|why| format!("; {why}")).unwrap_or_default();
        let text = format!(
            "the peer's selectors {ts_i:?} to {ts_r:?} have nothing in common with ours, \
             {:?} to {:?}{also}",
            first.map(theirs).unwrap_or_default(),
            first.map(ours).unwrap_or_default()
        );
        return Err((Fault::Selectors, text));
    };
    let (id, spi_in) = (cx.shared.fresh_id(), cx.shared.draw_esp_spi());
    let (limits, carriage) = task::terms(cx.shared, connection);
    answer.spi = spi_in.to_be_bytes().to_vec();
    let mut response = Vec::new();
    response.extend(configuration::reply(&config, request, &assigned));
    response.extend(mode::notify(mode));
    response.push(Payload::SecurityAssociation(vec![answer]));
    response.push(Payload::TsInitiator(ts_remote.clone()));
    response.push(Payload::TsResponder(ts_local.clone()));
    let agreed = Agreed {
        mode,
        proposal,
        spi_in,
        spi_out,
        ts_local,
        ts_remote,
        virtual_ips: assigned,
        limits,
        carriage,
    };
    let internal = |text: String| (Fault::Busy, text);
    let keys = sa.channel.keys.as_ref().ok_or_else(|| internal("no keys".into()))?;
    let nonces = (state.nonce_i.as_slice(), state.nonce_r.as_slice());
    let child = child::build(agreed, (id, sa.role), keys, None, nonces, (path, encap))
        .map_err(|e| internal(e.to_string()))?;
    Ok((child, index, response))
}
