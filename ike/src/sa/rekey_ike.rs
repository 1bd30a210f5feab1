//! The successor of an IKE_SA (RFC 7296 §1.3.2, §2.8, §2.18), both sides of the exchange, and what
//! follows when both ends start one at the same time (§2.8.2, §2.25.2).

use crate::{
    config::Role,
    crypto::{self, KeyExchange, KeyExchangeMethod, derive_ike_rekey, suite::IkeSuite},
    event::{CloseReason, Tag},
    path::Path,
    secret::Secret,
    wire::{ExchangeType, Notify, NotifyType, Payload, Proposal},
};

use super::{
    Cx, Sa, State,
    channel::Channel,
    envelope::Keys,
    exchange,
    fault::Fault,
    former::{self, Fate, Nonces},
    fragment::Fragments,
    live, negotiate,
    task::{self, Running, Task},
};

/// INVALID_KE_PAYLOAD answers that are followed in a row (RFC 7296 §1.3.2).
const MOST_TRIES: u32 = 3;

/// Our CREATE_CHILD_SA request that rekeys the IKE_SA.
pub(crate) struct RekeyIke {
    exchange: KeyExchange,
    nonce: Vec<u8>,
    spi: u64,
    tries: u32,
}

impl RekeyIke {
    /// The SPI that is reserved for the successor.
    pub(crate) fn spi(&self) -> u64 {
        self.spi
    }
}

/// What a message of the exchange holds, from either side.
struct Content<'a> {
    proposals: &'a [Proposal],
    nonce: &'a [u8],
    group: u16,
    public: &'a [u8],
}

fn read(payloads: &[Payload]) -> Option<Content<'_>> {
    let (mut proposals, mut nonce, mut ke) = (None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => proposals = proposals.or(Some(p.as_slice())),
            Payload::Nonce(n) => nonce = nonce.or(Some(n.as_slice())),
            Payload::KeyExchange { group, data } => {
                ke = ke.or(Some((*group, data.as_slice())));
            }
            _ => {}
        }
    }
    let (group, public) = ke?;
    Some(Content { proposals: proposals?, nonce: nonce?, group, public })
}

/// Whether a CREATE_CHILD_SA request is about the IKE_SA itself: so its SA payload says.
pub(crate) fn is_meant(payloads: &[Payload]) -> bool {
    payloads.iter().any(|payload| match payload {
        Payload::SecurityAssociation(proposals) => {
            proposals.iter().any(|p| p.protocol == crate::wire::Protocol::IKE)
        }
        _ => false,
    })
}

/// Sends the request.
pub(crate) fn start(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    method: Option<KeyExchangeMethod>,
    tries: u32,
) -> Result<(), CloseReason> {
    let Some(config) = sa.connection.and_then(|id| cx.shared.connections.get(id.0)) else {
        return Ok(());
    };
    let offered = |method: &KeyExchangeMethod| {
        config.ike_proposals.iter().any(|suite| suite.key_exchange == *method)
    };
    let used = sa.channel.keys.as_ref().map(|keys| keys.suite.key_exchange);
    let first = config.ike_proposals.first().map(|suite| suite.key_exchange);
    let method = method.or(used).filter(offered).or(first);
    let Some(method) = method else { return Ok(()) };
    let (suites, window) = (config.ike_proposals.clone(), config.window);
    let spi = cx.shared.draw_ike_spi();
    let exchange = KeyExchange::generate(method, &mut cx.shared.random);
    let nonce = cx.shared.random.array::<32>().to_vec();
    let mut payloads = vec![
        Payload::SecurityAssociation(negotiate::offer_ike(&suites, &spi.to_be_bytes())),
        Payload::Nonce(nonce.clone()),
        Payload::KeyExchange { group: method.id(), data: exchange.public().to_vec() },
    ];
    payloads.extend(exchange::announce_window(window));
    let State::Live(live) = &mut sa.state else { return Ok(()) };
    // Reserved from now on, so that no other IKE_SA draws it.
    cx.shared.by_spi.insert(spi, sa.id);
    let rekey = RekeyIke { exchange, nonce, spi, tries };
    live.tasks.running = Some(Running::Ike(Box::new(rekey)));
    sa.request(cx, ExchangeType::CREATE_CHILD_SA, &payloads, Some(Tag::Child))
}

/// The keys of the successor (RFC 7296 §2.18).
fn derive(
    sa: &Sa,
    (role, suite): (Role, IkeSuite),
    secret: &Secret,
    (nonce_i, nonce_r): (&[u8], &[u8]),
    (spi_i, spi_r): (u64, u64),
) -> Option<Channel> {
    let old = sa.channel.keys.as_ref()?;
    let spis = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
    let (prf, d) = (old.suite.prf, &old.sk.d);
    let sk = derive_ike_rekey(prf, d, suite, secret, nonce_i, nonce_r, &spis.0, &spis.1).ok()?;
    let keys = Keys::new(suite, sk, role).ok()?;
    let mut channel = Channel::new(role, spi_i, spi_r, Some(keys));
    // What both ends can do does not change with the keys (RFC 7383 §2.3).
    channel.fragments = Fragments::inherit(&sa.channel.fragments);
    channel.epoch = sa.channel.epoch.saturating_add(1);
    Some(channel)
}

fn reveal(cx: &mut Cx<'_>, channel: &Channel) {
    if let Some(keys) = &channel.keys {
        cx.shared.reveal(channel.spis(), keys);
    }
}

/// The peer's request; gives the payloads of the response.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    payloads: &[Payload],
) -> Result<Vec<Payload>, live::Refusal> {
    let refuse =
        |fault: Fault, data: &[u8]| Ok(vec![Payload::Notify(Notify::new(fault.notify(), data))]);
    let State::Live(live) = &sa.state else { return refuse(Fault::Busy, &[]) };
    // RFC 7296 §2.25.2: not while the IKE_SA goes, nor while something is made or deleted on it, and a
    // second time only when the first is settled.
    let busy = !live.is_up()
        || live.is_making_children()
        || live.tasks.is_busy_with_children()
        || former::successor(sa).is_some();
    if busy {
        return refuse(Fault::Busy, &[]);
    }
    let Some(content) = read(payloads) else {
        return Err(live::Refusal::Syntax("a rekey of the IKE_SA without SA, Ni and KEi".into()));
    };
    let Some(config) = sa.connection.and_then(|id| cx.shared.connections.get(id.0)) else {
        return refuse(Fault::Busy, &[]);
    };
    let (suites, window) = (&config.ike_proposals, config.window);
    let chosen = negotiate::select_ike_rekey(suites, content.proposals, content.group);
    let Some((suite, mut answer, spi_i)) = chosen else {
        return refuse(Fault::NoProposal, &[]);
    };
    // RFC 7296 §1.3.2: the proposals are good, the group that was guessed is not.
    if suite.key_exchange.id() != content.group {
        return refuse(Fault::AnotherGroup, &suite.key_exchange.id().to_be_bytes());
    }
    // RFC 7296 §2.10, of the prf that makes the keys and of the one that it is for.
    let old = sa.channel.keys.as_ref().map_or(0, |keys| keys.suite.prf.key_len());
    if content.nonce.len() * 2 < suite.prf.key_len().max(old) {
        return Err(live::Refusal::Syntax("a nonce that is too short for the prf".into()));
    }
    let respond = crypto::respond(suite.key_exchange, &mut cx.shared.random, content.public);
    let Ok((public, secret)) = respond else {
        // RFC 6989 §2.5: after authentication a bad value is INVALID_SYNTAX, and the end.
        return Err(live::Refusal::Syntax("a KE payload that is no value of its group".into()));
    };
    let spi_r = cx.shared.draw_ike_spi();
    let nonce_r = cx.shared.random.array::<32>().to_vec();
    let nonces = (content.nonce, nonce_r.as_slice());
    let role = Role::Responder;
    let channel = derive(sa, (role, suite), &secret, nonces, (spi_i, spi_r));
    let Some(mut channel) = channel else { return refuse(Fault::Busy, &[]) };
    reveal(cx, &channel);
    let mut response = vec![Payload::Nonce(nonce_r.clone())];
    answer.spi = spi_r.to_be_bytes().to_vec();
    response.insert(0, Payload::SecurityAssociation(vec![answer]));
    response.push(Payload::KeyExchange { group: suite.key_exchange.id(), data: public });
    response.extend(windows(&mut channel, window, payloads));
    // RFC 6290 §4.3: a new IKE_SA, a new token.
    let taker = path.remote.ip();
    let token = cx.shared.crash.token((spi_i, spi_r), taker);
    if let Some(token) = token.filter(|_| sa.role == Role::Responder) {
        channel.crash.told = Some(taker);
        response.push(token);
    }
    let until = cx.now + former::patience(&sa.policy(cx.shared));
    let nonces = Nonces { i: content.nonce.to_vec(), r: nonce_r };
    former::keep(sa, cx, channel, Fate::Successor { nonces, until });
    Ok(response)
}

/// A new IKE_SA begins with windows of 1 (RFC 7296 §2.3): what the two say of theirs goes along.
fn windows(channel: &mut Channel, ours: u32, payloads: &[Payload]) -> Option<Payload> {
    if let Some(window) = exchange::window_of(payloads) {
        channel.outgoing.widen(window);
    }
    channel.incoming.widen(ours);
    exchange::announce_window(ours)
}

/// The response to our request.
pub(crate) fn on_response(sa: &mut Sa, cx: &mut Cx<'_>, rekey: RekeyIke, payloads: &[Payload]) {
    let refusal = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind.is_error() => Some(n),
        _ => None,
    });
    if let Some(notify) = refusal {
        cx.shared.by_spi.remove(&rekey.spi);
        on_refused(sa, cx, &rekey, notify);
        return;
    }
    let Some((channel, nonces)) = agree(sa, cx, &rekey, payloads) else {
        // The peer has a successor that we can't use: there is no way on for the two.
        cx.shared.by_spi.remove(&rekey.spi);
        let reason = "the peer's answer to the rekey of the IKE_SA does not fit what was offered";
        live::end(sa, cx, CloseReason::Protocol(reason.into()));
        return;
    };
    reveal(cx, &channel);
    let until = cx.now + former::patience(&sa.policy(cx.shared));
    let loses = former::successor(sa).is_some_and(|theirs| nonces.lowest() < theirs.lowest());
    match former::take_successor(sa) {
        None => former::adopt(sa, cx, channel, Fate::Ours { sent: false }),
        // RFC 7296 §2.8.2: the IKE_SA of the exchange with the lowest nonce is deleted by whoever made
        // it, the other inherits; the old one is deleted by who made the survivor.
        Some(theirs) if loses => {
            former::adopt(sa, cx, theirs, Fate::Peers { until });
            former::keep(sa, cx, channel, Fate::Ours { sent: false });
        }
        Some(theirs) => {
            former::adopt(sa, cx, channel, Fate::Ours { sent: false });
            former::keep(sa, cx, theirs, Fate::Peers { until });
        }
    }
}

fn agree(
    sa: &Sa,
    cx: &Cx<'_>,
    rekey: &RekeyIke,
    payloads: &[Payload],
) -> Option<(Channel, Nonces)> {
    let content = read(payloads)?;
    let config = sa.connection.and_then(|id| cx.shared.connection(id))?;
    let (suite, spi_r) = negotiate::accept_ike_rekey(&config.ike_proposals, content.proposals)?;
    let method = rekey.exchange.method();
    let short = content.nonce.len() * 2 < suite.prf.key_len();
    if suite.key_exchange != method || content.group != method.id() || short {
        return None;
    }
    let secret = rekey.exchange.agree(content.public).ok()?;
    let nonces = (rekey.nonce.as_slice(), content.nonce);
    let mut channel = derive(sa, (Role::Initiator, suite), &secret, nonces, (rekey.spi, spi_r))?;
    let _ = windows(&mut channel, config.window, payloads);
    channel.crash.note(payloads);
    let nonces = Nonces { i: rekey.nonce.clone(), r: content.nonce.to_vec() };
    Some((channel, nonces))
}

fn on_refused(sa: &mut Sa, cx: &mut Cx<'_>, rekey: &RekeyIke, notify: &Notify) {
    tracing::info!(kind = %notify.kind, "the peer refuses to rekey the IKE_SA");
    // RFC 7296 §2.8.2: the peer had its own done when ours came, and that one is it.
    if let Some(theirs) = former::take_successor(sa) {
        let until = cx.now + former::patience(&sa.policy(cx.shared));
        former::adopt(sa, cx, theirs, Fate::Peers { until });
        return;
    }
    if notify.kind == NotifyType::INVALID_KE_PAYLOAD && rekey.tries < MOST_TRIES {
        let method = <[u8; 2]>::try_from(notify.data.as_slice())
            .ok()
            .and_then(|id| KeyExchangeMethod::from_id(u16::from_be_bytes(id)))
            .filter(|method| *method != rekey.exchange.method());
        if let (Some(method), State::Live(live)) = (method, &mut sa.state) {
            live.tasks.push_front(Task::RekeyIke(Some(method), rekey.tries + 1));
            return;
        }
    }
    task::retry_ike(sa, cx, notify.kind);
}

/// The peer deletes the IKE_SA that it has replaced: the successor takes over, and a rekey of ours that
/// is under way is forgotten (RFC 7296 §2.25.2). False if there is no successor.
pub(crate) fn on_deleted(sa: &mut Sa, cx: &mut Cx<'_>) -> bool {
    let Some(theirs) = former::take_successor(sa) else { return false };
    let State::Live(live) = &mut sa.state else { return false };
    if let Some(Running::Ike(rekey)) = &live.tasks.running {
        cx.shared.by_spi.remove(&rekey.spi);
        live.tasks.running = None;
    }
    let until = cx.now + super::LINGER;
    former::adopt(sa, cx, theirs, Fate::Gone { until });
    true
}
