//! Our CREATE_CHILD_SA requests for CHILD_SAs: another one, or the successor of one
//! (RFC 7296 §1.3.1, §1.3.3, §2.8, §2.17).

use crate::{
    asked::Asked,
    child::{ChildId, ChildSa, EspSpi, Mode},
    config::Role,
    crypto::{KeyExchange, KeyExchangeMethod},
    event::{Action, CloseReason, Event, Tag},
    selector::TrafficSelector,
    wire::{ExchangeType, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State,
    child::{self, Agreed, Child},
    create_responder::{Pending, Then},
    former::Nonces,
    live, mode, negotiate,
    task::{self, Running, Task},
};

/// INVALID_KE_PAYLOAD answers that are followed in a row (RFC 7296 §1.3.1).
const MOST_TRIES: u32 = 3;

/// What a CREATE_CHILD_SA exchange about CHILD_SAs is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// one that the connection's configuration has
    New(Asked),
    /// the successor of this one
    Rekey(ChildId),
}

/// Our request that is out.
pub(crate) struct CreateChild {
    pub(crate) purpose: Purpose,
    mode: Mode,
    spi_in: u32,
    nonce: Vec<u8>,
    /// with perfect forward secrecy
    exchange: Option<KeyExchange>,
    tries: u32,
    config: usize,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
    /// the peer's request to rekey the same one, if the two have crossed (RFC 7296 §2.8.1)
    pub(crate) crossed: Option<Nonces>,
}

impl CreateChild {
    /// The SPI that is reserved for it.
    pub(crate) fn spi_in(&self) -> u32 {
        self.spi_in
    }

    /// Whether our SA is the redundant one of two (RFC 7296 §2.8.1): the lowest of the four nonces is
    /// ours.
    fn loses(&self, nonce_r: &[u8]) -> bool {
        let ours = self.nonce.as_slice().min(nonce_r);
        self.crossed.as_ref().is_some_and(|theirs| ours < theirs.lowest())
    }
}

/// Asks for the CHILD_SAs that the IKE_SA is to begin with, from that one on (RFC 7296 §1.3.1).
pub(crate) fn make_others(sa: &mut Sa, cx: &mut Cx<'_>, first: usize) {
    for asked in sa.asked.iter().skip(first).copied().collect::<Vec<_>>() {
        if let State::Live(live) = &mut sa.state {
            live.tasks.push(Task::Child(Purpose::New(asked), None, 0));
        }
    }
    task::proceed(sa, cx);
}

/// Asks for one more.
pub(crate) fn make(sa: &mut Sa, cx: &mut Cx<'_>, asked: Asked) {
    if let State::Live(live) = &mut sa.state {
        live.tasks.push(Task::Child(Purpose::New(asked), None, 0));
    }
    task::proceed(sa, cx);
}

/// Sends the request.
pub(crate) fn start(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    purpose: Purpose,
    method: Option<KeyExchangeMethod>,
    tries: u32,
) -> Result<(), CloseReason> {
    let path = sa.path;
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    let connection = live.connection;
    let old = match purpose {
        Purpose::New(_) => None,
        Purpose::Rekey(id) => {
            // It may have been rekeyed meanwhile, by the peer or by an earlier request of ours, and the
            // data plane be still at work on the successor.
            let succeeded = live.pending.iter().any(|pending| pending.then.old() == Some(id));
            let old = live.children.iter().find(|c| c.id == id && c.is_current() && !succeeded);
            let Some(old) = old.cloned() else { return Ok(()) };
            Some(old)
        }
    };
    let config = match (&old, purpose) {
        (Some(old), _) => old.config,
        (None, Purpose::New(asked)) => asked.config,
        (None, Purpose::Rekey(_)) => return Ok(()),
    };
    let virtual_ips = live.virtual_ips.clone();
    if old.is_none() && !can_make(sa, cx, config) {
        return Ok(());
    }
    let spi_in = cx.shared.draw_esp_spi();
    let nonce = cx.shared.random.array::<32>().to_vec();
    let Some(settings) = cx.shared.connections.get(connection.0) else { return Ok(()) };
    let Some(of_child) = settings.child(config) else { return Ok(()) };
    let mode = old.as_ref().map_or(of_child.mode, |old| old.mode);
    let (ts_local, ts_remote) = match (&old, purpose) {
        (Some(old), _) => (old.ts_local.clone(), old.ts_remote.clone()),
        (None, Purpose::New(asked)) if mode == Mode::Transport => {
            let (ts_local, ts_remote) = mode::sides(of_child, path);
            asked.offer(ts_local, ts_remote)
        }
        (None, Purpose::New(asked)) => asked.offer(
            child::resolve(of_child.ts_local, &virtual_ips, path.local.ip()),
            child::resolve(of_child.ts_remote, &[], path.remote.ip()),
        ),
        (None, Purpose::Rekey(_)) => return Ok(()),
    };
    let methods = of_child.esp_proposals.iter().filter_map(|proposal| proposal.key_exchange);
    let method = method.or(methods.into_iter().next());
    let sa_payload = negotiate::offer_esp(of_child.esp_proposals, spi_in, true);
    let exchange = method.map(|method| KeyExchange::generate(method, &mut cx.shared.random));
    let mut payloads = Vec::new();
    if let Some(old) = &old {
        payloads.push(Payload::Notify(Notify::about_child(NotifyType::REKEY_SA, old.spi_in)));
    }
    payloads.extend(mode::notify(mode));
    payloads.push(Payload::SecurityAssociation(sa_payload));
    payloads.push(Payload::Nonce(nonce.clone()));
    if let Some(exchange) = &exchange {
        let group = exchange.method().id();
        payloads.push(Payload::KeyExchange { group, data: exchange.public().to_vec() });
    }
    payloads.push(Payload::TsInitiator(ts_local.clone()));
    payloads.push(Payload::TsResponder(ts_remote.clone()));
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    live.tasks.running = Some(Running::Child(Box::new(CreateChild {
        purpose,
        mode,
        spi_in,
        nonce,
        exchange,
        tries,
        config,
        ts_local,
        ts_remote,
        crossed: None,
    })));
    sa.request(cx, ExchangeType::CREATE_CHILD_SA, &payloads, Some(Tag::Child))
}

/// Whether a CHILD_SA of this place of the configuration can be asked for now. What stands in the way of
/// one in transport mode is told, and the next change of the path looks at it again.
fn can_make(sa: &mut Sa, cx: &mut Cx<'_>, config: usize) -> bool {
    let path = sa.path;
    let State::Live(live) = &sa.state else { return false };
    let of_child = sa.config(cx.shared).and_then(|settings| settings.child(config));
    let Some(of_child) = of_child.filter(|of_child| of_child.mode == Mode::Transport) else {
        return true;
    };
    let text = match (mode::obstacle_now(sa, cx.shared), mode::offer(of_child, path)) {
        (Some(text), _) => text.to_owned(),
        (None, Err(text)) => text,
        // Its traffic is where the peer has shown that it is, and the selectors have to be of there.
        (None, Ok(_)) if !mode::same_hosts(live.place().0, path) => {
            task::retry_new(sa, cx, config, Some(NotifyType::TEMPORARY_FAILURE));
            return false;
        }
        (None, Ok(_)) => return true,
    };
    cx.shared.event(Event::Refused { path, reason: CloseReason::Child(text) });
    false
}

/// The response to our request.
pub(crate) fn on_response(sa: &mut Sa, cx: &mut Cx<'_>, create: CreateChild, payloads: &[Payload]) {
    let spi_in = EspSpi(create.spi_in);
    let refusal = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind.is_error() => Some(n),
        _ => None,
    });
    if let Some(notify) = refusal {
        cx.shared.esp_spis.remove(&spi_in.0);
        on_refused(sa, cx, &create, notify);
        return;
    }
    match agree(sa, cx, &create, payloads) {
        // The peer has made an SA that we can't use: it is to go, and another try follows.
        Err(text) => {
            tracing::warn!(%text, "a CREATE_CHILD_SA exchange failed");
            cx.shared.esp_spis.remove(&spi_in.0);
            let path = sa.path;
            cx.shared.event(Event::Refused { path, reason: CloseReason::Child(text.into()) });
            let State::Live(live) = &mut sa.state else { return };
            live.tasks.push(Task::Delete(vec![spi_in]));
            try_again(sa, cx, create.purpose, None);
        }
        Ok((new, nonce_r)) => {
            let State::Live(live) = &mut sa.state else { return };
            if create.loses(&nonce_r) {
                // RFC 7296 §2.8.1: the SA of the exchange with the lowest nonce is closed by whoever
                // made it. It was never installed here.
                tracing::info!(spi = %spi_in, "a rekey crossed the peer's and gives way");
                cx.shared.esp_spis.remove(&spi_in.0);
                live.tasks.push(Task::Delete(vec![spi_in]));
                return;
            }
            let info = Child::of(&new, create.config);
            let id = new.id;
            let action = cx.shared.action(sa.id, Action::Install(Box::new(new)));
            if live.capped {
                cx.shared.action(sa.id, Action::Cap { children: vec![id], on: true });
            }
            let then = match create.purpose {
                Purpose::Rekey(old) => Then::Retire(old),
                Purpose::New(asked) => Then::Use(asked),
            };
            live.pending.push(Pending { action, child: info, then });
        }
    }
}

pub(crate) fn try_again(sa: &mut Sa, cx: &mut Cx<'_>, purpose: Purpose, kind: Option<NotifyType>) {
    match purpose {
        Purpose::Rekey(old) => task::retry(sa, cx, old, kind),
        Purpose::New(Asked { config, packet: None }) => task::retry_new(sa, cx, config, kind),
        // The next packet asks again.
        Purpose::New(_) => {}
    }
}

fn on_refused(sa: &mut Sa, cx: &mut Cx<'_>, create: &CreateChild, notify: &Notify) {
    let kind = notify.kind;
    tracing::info!(%kind, purpose = ?create.purpose, "the peer refuses a CHILD_SA");
    match (kind, create.purpose) {
        // RFC 7296 §2.25: the peer does not have it, so that it is of no use here either. But a peer that
        // asked for it may not have heard our answer yet: only the second time counts.
        (NotifyType::CHILD_SA_NOT_FOUND, Purpose::Rekey(old)) => {
            let State::Live(live) = &mut sa.state else { return };
            let child = live.children.iter_mut().find(|child| child.id == old);
            if let Some(child) = child.filter(|child| !child.doubted) {
                child.doubted = true;
                task::retry(sa, cx, old, Some(kind));
                return;
            }
            live.remove_child(&mut *cx.shared, sa.id, |child| child.id == old);
            if live.children.is_empty() && live.pending.is_empty() {
                let text = "the peer no longer has the CHILD_SA";
                live::end(sa, cx, CloseReason::Child(text.into()));
            }
        }
        // RFC 7296 §1.3.1: the group that was guessed is not the one that the peer wants.
        (NotifyType::INVALID_KE_PAYLOAD, _) if create.tries < MOST_TRIES => {
            let method = <[u8; 2]>::try_from(notify.data.as_slice())
                .ok()
                .and_then(|id| KeyExchangeMethod::from_id(u16::from_be_bytes(id)))
                .filter(|method| offers(sa, cx, create.config, *method))
                .filter(|m| create.exchange.as_ref().is_none_or(|sent| sent.method() != *m));
            match (method, &mut sa.state) {
                (Some(method), State::Live(live)) => {
                    let task = Task::Child(create.purpose, Some(method), create.tries + 1);
                    live.tasks.push_front(task);
                }
                _ => try_again(sa, cx, create.purpose, Some(kind)),
            }
        }
        (_, Purpose::New(_)) => {
            let text = format!("the peer answered {kind} to another CHILD_SA");
            let path = sa.path;
            cx.shared.event(Event::Refused { path, reason: CloseReason::Child(text) });
            try_again(sa, cx, create.purpose, Some(kind));
        }
        _ => try_again(sa, cx, create.purpose, Some(kind)),
    }
}

fn offers(sa: &Sa, cx: &Cx<'_>, config: usize, method: KeyExchangeMethod) -> bool {
    sa.config(cx.shared).and_then(|settings| settings.child(config)).is_some_and(|of_child| {
        of_child.esp_proposals.iter().any(|proposal| proposal.key_exchange == Some(method))
    })
}

fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    create: &CreateChild,
    payloads: &[Payload],
) -> Result<(ChildSa, Vec<u8>), &'static str> {
    let (mut answer, mut nonce, mut ke, mut ts_i, mut ts_r) = (None, None, None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => answer = answer.or(Some(p)),
            Payload::Nonce(n) => nonce = nonce.or(Some(n)),
            Payload::KeyExchange { group, data } => ke = ke.or(Some((*group, data.as_slice()))),
            Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
            Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
            _ => {}
        }
    }
    let (Some(answer), Some(nonce_r), Some(ts_i), Some(ts_r)) = (answer, nonce, ts_i, ts_r) else {
        return Err("the peer's answer to CREATE_CHILD_SA is incomplete");
    };
    // RFC 7296 §2.10
    let least = sa.channel.keys.as_ref().map_or(0, |keys| keys.suite.prf.key_len());
    if nonce_r.len() * 2 < least {
        return Err("the peer's nonce is too short for the prf");
    }
    let State::Live(live) = &sa.state else { return Err("the IKE_SA is gone") };
    let old = match create.purpose {
        Purpose::New(_) => None,
        Purpose::Rekey(old) => {
            Some(live.children.iter().find(|c| c.id == old).ok_or("the CHILD_SA is gone")?)
        }
    };
    let id = cx.shared.fresh_id();
    let (limits, carriage) = task::terms(cx.shared, live.connection);
    let settings = cx.shared.connection(live.connection).ok_or("no such connection")?;
    let of_child = settings.child(create.config).ok_or("no such CHILD_SA is configured")?;
    let (proposal, spi_out) = negotiate::accept_esp(of_child.esp_proposals, answer, true)
        .ok_or("the peer chose a proposal that was not offered")?;
    if !child::is_within(ts_i, &create.ts_local) || !child::is_within(ts_r, &create.ts_remote) {
        return Err("the peer's traffic selectors are wider than what was offered");
    }
    if child::matched(ts_i, ts_r).0.is_empty() {
        return Err("no packet fits both the peer's traffic selectors for us and for itself");
    }
    mode::check(create.mode, payloads)?;
    // RFC 7296 §2.9.2: a successor is not narrower than what is in use.
    let covers = |new: &[_], old: &[_]| child::is_within(old, new);
    if old.is_some_and(|old| !covers(ts_i, &old.ts_local) || !covers(ts_r, &old.ts_remote)) {
        return Err("the peer's traffic selectors are narrower than what is in use");
    }
    // RFC 7296 §2.17: with a key exchange, its secret goes into the keys.
    let secret = match (proposal.key_exchange, &create.exchange, ke) {
        (None, _, _) => None,
        (Some(method), Some(exchange), Some((group, public)))
            if exchange.method() == method && group == method.id() =>
        {
            Some(exchange.agree(public).map_err(|_| "the peer's KE payload is no good")?)
        }
        _ => return Err("the peer's KE payload does not fit its proposal"),
    };
    let agreed = Agreed {
        mode: create.mode,
        proposal,
        spi_in: create.spi_in,
        spi_out,
        ts_local: ts_i.clone(),
        ts_remote: ts_r.clone(),
        virtual_ips: live.virtual_ips.clone(),
        limits,
        carriage,
    };
    let keys = sa.channel.keys.as_ref().ok_or("no keys")?;
    let nonces = (create.nonce.as_slice(), nonce_r.as_slice());
    // RFC 4555 §3.3: the addresses are those in use.
    let (path, encap) = live.place();
    if create.mode == Mode::Transport {
        let hosts = |all: &[TrafficSelector], host| all.iter().all(|ts| ts.first() == host);
        let at_home = hosts(ts_i, path.local.ip()) && hosts(ts_r, path.remote.ip());
        if encap || !at_home {
            return Err("the addresses have changed meanwhile, and transport mode is not moved");
        }
    }
    // Whoever starts the exchange is its initiator, whatever its role in the IKE_SA.
    let role = Role::Initiator;
    let mut new = child::build(agreed, (id, role), keys, secret.as_ref(), nonces, (path, encap))
        .map_err(|_| "the keys can't be derived")?;
    if let Some(old) = old {
        new.reqid = old.reqid;
    }
    Ok((new, nonce_r.clone()))
}
