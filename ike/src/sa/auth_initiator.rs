//! The initiator's IKE_AUTH (RFC 7296 §1.2, §2.15, §2.19, §2.21.2).

use crate::{
    asked::Asked,
    auth::HashAlgorithms,
    child::{ChildSa, Mode},
    config::{Childless, ConnectionConfig, ConnectionId, Role},
    event::{Action, CloseReason, Established, Event},
    path::Path,
    selector::TrafficSelector,
    wire::{ExchangeType, Identity, IdentityPattern, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State,
    auth::{InitExchange, complaint},
    child::{self, Agreed, Child},
    configuration::{self, Told},
    exchange,
    init::needs_encap,
    live::{self, Live, Phase},
    mode, negotiate, task, uniqueness,
};

/// The IKE_SA_INIT that is done.
pub(crate) struct InitDone {
    pub(crate) connection: ConnectionId,
    /// the peer says that IKE_AUTH may be without a CHILD_SA (RFC 6023 §3)
    pub(crate) childless: bool,
    /// the request has a COOKIE in it, which anyone may have sent: what was answered may be the one without
    pub(crate) advised: bool,
    pub(crate) request: Vec<u8>,
    pub(crate) response: Vec<u8>,
    pub(crate) nonce_i: Vec<u8>,
    pub(crate) nonce_r: Vec<u8>,
    /// the peer's SIGNATURE_HASH_ALGORITHMS, if that went both ways
    pub(crate) hashes: Option<HashAlgorithms>,
}

impl InitDone {
    fn exchange(&self) -> InitExchange<'_> {
        InitExchange {
            request: &self.request,
            response: &self.response,
            nonce_i: &self.nonce_i,
            nonce_r: &self.nonce_r,
            hashes: self.hashes,
        }
    }
}

/// The IKE_AUTH request is out.
pub(crate) struct ExpectAuthResponse {
    init: InitDone,
    childless: bool,
    spi_in: u32,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
}

impl ExpectAuthResponse {
    pub(crate) fn spi_in(&self) -> u32 {
        self.spi_in
    }
}

/// Sends IKE_AUTH.
pub(crate) fn start(sa: &mut Sa, cx: &mut Cx<'_>, init: InitDone) -> Result<(), CloseReason> {
    let spi_in = cx.shared.draw_esp_spi();
    let Some(config) = cx.shared.connections.get(init.connection.0) else {
        return Err(CloseReason::Protocol("no such connection".into()));
    };
    let Some(keys) = &sa.channel.keys else {
        return Err(CloseReason::Protocol("no keys yet".into()));
    };
    let childless = match config.childless {
        Childless::Never | Childless::Allow => false,
        Childless::Prefer => init.childless,
        Childless::Force if init.childless => true,
        Childless::Force => {
            cx.shared.esp_spis.remove(&spi_in);
            let text = "the peer does not take an IKE_AUTH without a CHILD_SA, and childless is \
                        \"force\"";
            return Err(CloseReason::Protocol(text.into()));
        }
    };
    let id = config.local_id.to_wire();
    let auth = match init.exchange().prove(Role::Initiator, keys, &id, &config.local_auth) {
        Ok(auth) => auth,
        Err(error) => {
            cx.shared.esp_spis.remove(&spi_in);
            return Err(CloseReason::Authentication(error.to_string()));
        }
    };
    let asked = first(sa);
    let Some(of_child) = config.child(asked.config) else {
        cx.shared.esp_spis.remove(&spi_in);
        return Err(CloseReason::Protocol("no such CHILD_SA is configured".into()));
    };
    let sides = match of_child.mode {
        Mode::Tunnel => Ok((
            child::offer(of_child.ts_local, config, sa.path.local.ip()),
            child::offer(of_child.ts_remote, config, sa.path.remote.ip()),
        )),
        // One that is to come later is looked at then.
        Mode::Transport if childless => Ok(mode::sides(of_child, sa.path)),
        Mode::Transport => {
            match mode::obstacle(sa, cx.shared, needs_encap(config, cx.shared.force_encap)) {
                Some(text) => Err(text.to_owned()),
                None => mode::offer(of_child, sa.path),
            }
        }
    };
    let (ts_local, ts_remote) = match sides {
        Ok((ts_local, ts_remote)) => asked.offer(ts_local, ts_remote),
        Err(text) => {
            cx.shared.esp_spis.remove(&spi_in);
            return Err(CloseReason::Child(text));
        }
    };
    let mut payloads = vec![Payload::IdInitiator(id)];
    payloads.extend(config.local_auth.certificates());
    payloads.extend(config.remote_auth.request());
    // RFC 7296 §2.4: only if it is the only one between the two identities.
    if uniqueness::is_first(cx.shared, init.connection, sa.id) {
        payloads.push(Payload::Notify(Notify::new(NotifyType::INITIAL_CONTACT, Vec::new())));
    }
    // RFC 7296 §1.2: IDr says which of the responder's identities we want to talk to.
    if let IdentityPattern::Exactly(identity) = &config.remote_id {
        payloads.push(Payload::IdResponder(identity.to_wire()));
    }
    payloads.push(auth);
    payloads.extend(configuration::request(config));
    if !childless {
        payloads.extend(mode::notify(of_child.mode));
        payloads.push(Payload::SecurityAssociation(negotiate::offer_esp(
            of_child.esp_proposals,
            spi_in,
            false,
        )));
        payloads.push(Payload::TsInitiator(ts_local.clone()));
        payloads.push(Payload::TsResponder(ts_remote.clone()));
    }
    payloads.extend(exchange::announce_window(config.window));
    if let Some(view) = sa.view() {
        payloads.extend(cx.extension.auth_request(&view));
    }
    sa.channel.incoming.widen(config.window);
    uniqueness::note_attempt(sa, cx.shared, init.connection);
    let expect = ExpectAuthResponse { init, childless, spi_in, ts_local, ts_remote };
    sa.state = State::AuthResponse(Box::new(expect));
    cx.shared.event(Event::Answering { sa: sa.id });
    sa.request(cx, ExchangeType::IKE_AUTH, &payloads, None)
}

/// The CHILD_SA that IKE_AUTH makes.
fn first(sa: &Sa) -> Asked {
    sa.asked.first().copied().unwrap_or(Asked::anyhow(0))
}

/// The IKE_AUTH response, integrity checked and parsed.
pub(crate) fn on_response(sa: &mut Sa, cx: &mut Cx<'_>, path: Path, payloads: &[Payload]) {
    let state = match std::mem::replace(&mut sa.state, State::Between) {
        State::AuthResponse(state) => state,
        other => {
            sa.state = other;
            return;
        }
    };
    let connection = state.init.connection;
    let spi_in = state.spi_in;
    let peer = match authenticate(sa, cx, &state, payloads) {
        Ok(identities) => {
            let peer = identities.1.to_string();
            let (local, remote) = (identities.0.canonical(), identities.1.canonical());
            uniqueness::note(sa, cx.shared, connection, (local, remote), Some(cx.now));
            peer
        }
        Err(fault) => {
            cx.shared.esp_spis.remove(&spi_in);
            fail(sa, cx, connection, fault);
            return;
        }
    };
    if let Some(view) = sa.view() {
        cx.extension.auth_response_received(&view, payloads);
    }
    sa.channel.crash.note(payloads);
    if let Some(window) = exchange::window_of(payloads) {
        sa.channel.outgoing.widen(window);
    }
    let agreed = match state.childless {
        true => without_child(sa, cx, connection, payloads).map(|(home, told)| (Err(home), told)),
        false => agree(sa, cx, &state, payloads).map(|(child, told)| (Ok(child), told)),
    };
    match agreed {
        Ok((Ok(child), told)) => install(sa, cx, connection, peer, child, told),
        Ok((Err(home), told)) => {
            cx.shared.esp_spis.remove(&spi_in);
            let news = news(sa, connection, &peer, told);
            let mut live = Live::new(connection, peer, home);
            live.virtual_ips.clone_from(&news.virtual_ips);
            sa.state = State::Live(Box::new(live));
            live::on_up(sa, cx, news, 0);
        }
        Err(text) => {
            cx.shared.esp_spis.remove(&spi_in);
            let reason = CloseReason::Child(text);
            // RFC 7296 §2.21.2: then it has no IKE_SA that could be deleted, and would not answer.
            if error_notify(payloads) == Some(NotifyType::INVALID_SYNTAX) {
                return fail(sa, cx, connection, Fault::Refused(reason));
            }
            // The IKE_SA stands, but it is of no use to us (RFC 7296 §2.21.2).
            cx.shared.event(Event::Refused { path, reason: reason.clone() });
            let mut live = Live::new(connection, peer, (sa.path, false));
            live.verdict = Some(reason);
            sa.state = State::Live(Box::new(live));
            live::delete(sa, cx, Vec::new());
        }
    }
}

/// Why the peer is not who it must be, and whether it can be told so.
enum Fault {
    /// it refused us; there is no IKE_SA on its side
    Refused(CloseReason),
    /// it did not prove its identity; it believes in an IKE_SA
    Unproven(String),
}

/// Gives our identity and the one that the peer has proven.
fn authenticate(
    sa: &Sa,
    cx: &Cx<'_>,
    state: &ExpectAuthResponse,
    payloads: &[Payload],
) -> Result<(Identity, Identity), Fault> {
    let unproven = |text: &str| Fault::Unproven(text.to_owned());
    let id = payloads.iter().find_map(|payload| match payload {
        Payload::IdResponder(id) => Some(id),
        _ => None,
    });
    let has_auth = payloads.iter().any(|p| matches!(p, Payload::Authentication { .. }));
    let Some(id) = id.filter(|_| has_auth) else {
        return Err(match error_notify(payloads) {
            // RFC 7296 §2.15: each side signs its own view of IKE_SA_INIT.
            Some(NotifyType::AUTHENTICATION_FAILED) if state.init.advised => {
                Fault::Refused(CloseReason::Misled)
            }
            Some(NotifyType::AUTHENTICATION_FAILED) => Fault::Refused(CloseReason::Authentication(
                "the peer does not accept our identity or key".into(),
            )),
            Some(NotifyType::UNEXPECTED_NAT_DETECTED) => Fault::Refused(CloseReason::NatDetected),
            Some(kind) => {
                Fault::Refused(CloseReason::Protocol(format!("the peer answered {kind}")))
            }
            None => unproven("the peer sent no identity or no AUTH"),
        });
    };
    let Some(config) = cx.shared.connection(state.init.connection) else {
        return Err(unproven("no such connection"));
    };
    let identity = Identity::from_wire(id).map_err(|e| Fault::Unproven(e.to_string()))?;
    let Some(keys) = &sa.channel.keys else { return Err(unproven("no keys")) };
    let (peer, clock) = ((Role::Responder, keys), (&*cx.shared, cx.now));
    state
        .init
        .exchange()
        .verify(peer, (id, &identity), config, payloads, clock)
        .map_err(|error| Fault::Unproven(complaint(&identity, config, &error)))?;
    Ok((config.local_id.clone(), identity))
}

fn fail(sa: &mut Sa, cx: &mut Cx<'_>, connection: ConnectionId, fault: Fault) {
    match fault {
        Fault::Refused(reason) => {
            sa.over(cx, reason);
            sa.forget(cx);
        }
        Fault::Unproven(text) => {
            // RFC 7296 §2.21.2: the peer is told in an exchange of its own, since it has an IKE_SA.
            let reason = CloseReason::Authentication(text);
            let path = sa.path;
            cx.shared.event(Event::Refused { path, reason: reason.clone() });
            let notify = Notify::new(NotifyType::AUTHENTICATION_FAILED, Vec::new());
            let mut live = Live::new(connection, String::new(), (sa.path, false));
            live.verdict = Some(reason);
            sa.state = State::Live(Box::new(live));
            live::delete(sa, cx, vec![Payload::Notify(notify)]);
        }
    }
}

/// Reads the CHILD_SA out of the response.
fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    state: &ExpectAuthResponse,
    payloads: &[Payload],
) -> Result<(ChildSa, Told), String> {
    let (mut answer, mut ts_i, mut ts_r) = (None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => answer = answer.or(Some(p)),
            Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
            Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
            _ => {}
        }
    }
    let (Some(answer), Some(ts_i), Some(ts_r)) = (answer, ts_i, ts_r) else {
        return Err(match error_notify(payloads) {
            // RFC 7296 §2.9: it wants one address on each side, and we have no packet to take them from.
            Some(kind @ NotifyType::SINGLE_PAIR_REQUIRED) => format!(
                "the peer answered {kind}: it takes one address on each side, so local_ts and \
                 remote_ts must have no more"
            ),
            Some(kind) => format!("the peer answered {kind}"),
            None => "the peer's answer has no SA or no traffic selectors".into(),
        });
    };
    let id = cx.shared.fresh_id();
    let (limits, carriage) = task::terms(cx.shared, state.init.connection);
    let Some(config) = cx.shared.connection(state.init.connection) else {
        return Err("no such connection".into());
    };
    let of_child = config.child(first(sa).config).ok_or("no such CHILD_SA is configured")?;
    let (proposal, spi_out) = negotiate::accept_esp(of_child.esp_proposals, answer, false)
        .ok_or("the peer chose a proposal that was not offered")?;
    mode::check(of_child.mode, payloads)?;
    if !child::is_within(ts_i, &state.ts_local) || !child::is_within(ts_r, &state.ts_remote) {
        return Err("the peer's traffic selectors are wider than what was offered".into());
    }
    if child::matched(ts_i, ts_r).0.is_empty() {
        return Err("no packet fits both the peer's traffic selectors for us and for itself".into());
    }
    // RFC 7296 §2.9: what it left out may go into another CHILD_SA.
    if payloads
        .iter()
        .any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::ADDITIONAL_TS_POSSIBLE))
    {
        tracing::info!(?ts_i, ?ts_r, "the peer narrowed the selectors (ADDITIONAL_TS_POSSIBLE)");
    }
    let told = configuration::read_reply(config, payloads)?;
    let agreed = Agreed {
        mode: of_child.mode,
        proposal,
        spi_in: state.spi_in,
        spi_out,
        ts_local: ts_i.clone(),
        ts_remote: ts_r.clone(),
        virtual_ips: told.addresses.clone(),
        limits,
        carriage,
    };
    let keys = sa.channel.keys.as_ref().ok_or("no keys")?;
    let nonces = (state.init.nonce_i.as_slice(), state.init.nonce_r.as_slice());
    let encap = encap(sa, config, cx.shared.force_encap);
    child::build(agreed, (id, sa.role), keys, None, nonces, (sa.path, encap))
        .map(|child| (child, told))
        .map_err(|e| e.to_string())
}

/// Whether ESP goes in UDP: a NAT was found, or the operator or the data plane asks for it
/// (RFC 7296 §2.23).
pub(crate) fn encap(sa: &Sa, config: &ConnectionConfig, plane: bool) -> bool {
    sa.path.local.port() != 500 && (sa.nat.any() || needs_encap(config, plane))
}

/// RFC 6023 §3: an IKE_AUTH without a CHILD_SA; gives where those to come are to be.
fn without_child(
    sa: &Sa,
    cx: &Cx<'_>,
    connection: ConnectionId,
    payloads: &[Payload],
) -> Result<((Path, bool), Told), String> {
    if let Some(kind) = error_notify(payloads) {
        return Err(format!("the peer answered {kind}"));
    }
    let config = cx.shared.connection(connection).ok_or("no such connection")?;
    let told = configuration::read_reply(config, payloads)?;
    Ok(((sa.path, encap(sa, config, cx.shared.force_encap)), told))
}

fn news(sa: &Sa, connection: ConnectionId, peer: &str, told: Told) -> Established {
    Established {
        sa: sa.id,
        connection,
        role: sa.role,
        peer: peer.to_owned(),
        virtual_ips: told.addresses,
        dns: told.dns,
        domains: told.domains,
        subnets: told.subnets,
    }
}

fn install(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    connection: ConnectionId,
    peer: String,
    mut child: ChildSa,
    told: Told,
) {
    let config = first(sa).config;
    if let Some(reqid) = uniqueness::kin(sa, cx.shared, config, &child) {
        child.reqid = reqid;
    }
    uniqueness::note_child(sa, cx.shared, config, &child);
    let news = news(sa, connection, &peer, told);
    let mut live = Live::new(connection, peer, (child.path, child.encap));
    live.virtual_ips.clone_from(&child.virtual_ips);
    live.children.push(Child::of(&child, config));
    let action = cx.shared.action(sa.id, Action::Install(Box::new(child)));
    live.phase = Phase::Installing { action, response: None, news: Box::new(news) };
    sa.state = State::Live(Box::new(live));
}

fn error_notify(payloads: &[Payload]) -> Option<NotifyType> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind.is_error() => Some(n.kind),
        _ => None,
    })
}
