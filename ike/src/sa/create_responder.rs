//! The peer's CREATE_CHILD_SA requests (RFC 7296 §1.3, §2.8, §2.9.2, §2.25), and what follows once the
//! data plane has a new CHILD_SA. After a rekey both SAs work until the old one is deleted by whoever
//! asked.

use crate::{
    asked::Asked,
    child::{ChildId, ChildMove, ChildSa, Mode},
    config::{ChildView, Role, Selectors},
    crypto,
    event::{Action, ActionError, ActionId, CloseReason, Event},
    path::Path,
    wire::{ExchangeType, Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, State,
    child::{self, Agreed, Child},
    create_initiator::{self, Purpose},
    fault::Fault,
    former::{self, Nonces},
    live::{HeldResponse, Refusal},
    mode, negotiate, rekey_ike,
    task::{self, Task},
};

/// A peer does not get CHILD_SAs without end: neither new ones nor successors that it never deletes.
const MOST_CHILDREN: usize = 64;

/// A new CHILD_SA that waits for the data plane.
pub(crate) struct Pending {
    pub(crate) action: ActionId,
    pub(crate) child: Child,
    pub(crate) then: Then,
}

/// What follows when the data plane has it.
pub(crate) enum Then {
    /// the peer asked: answer; if it replaces one, the peer will delete that
    Respond(HeldResponse, Option<ChildId>),
    /// we asked: delete the one that it replaces
    Retire(ChildId),
    /// we asked for another one
    Use(Asked),
}

impl Then {
    /// The CHILD_SA that has found its successor.
    pub(crate) fn old(&self) -> Option<ChildId> {
        match self {
            Then::Respond(_, old) => *old,
            Then::Retire(old) => Some(*old),
            Then::Use(_) => None,
        }
    }
}

fn notify(fault: Fault) -> Vec<Payload> {
    vec![Payload::Notify(Notify::new(fault.notify(), Vec::new()))]
}

/// A CREATE_CHILD_SA request; gives the payloads of the response, or nothing if that has to wait.
pub(crate) fn on_request(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    path: Path,
    message_id: u32,
    payloads: &[Payload],
) -> Result<Option<Vec<Payload>>, Refusal> {
    let refuse = |fault| Ok(Some(notify(fault)));
    let rekeyed = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::REKEY_SA => Some(n),
        _ => None,
    });
    if rekeyed.is_none() && rekey_ike::is_meant(payloads) {
        return rekey_ike::on_request(sa, cx, path, payloads).map(Some);
    }
    // RFC 7296 §2.25.2: no CHILD_SAs on an IKE_SA that is being rekeyed.
    let replacing = task::is_rekeying_ike(sa) || former::successor(sa).is_some();
    let State::Live(live) = &sa.state else { return refuse(Fault::Busy) };
    // RFC 7296 §2.25: nothing new on an IKE_SA that is going.
    if replacing || !live.is_up() {
        return refuse(Fault::Busy);
    }
    let mut old = None;
    if let Some(rekeyed) = rekeyed {
        let spi = rekeyed.esp_spi();
        old = spi.and_then(|spi| live.children.iter().find(|child| child.spi_out == spi)).cloned();
        let Some(old) = &old else {
            // RFC 7296 §2.25: the notify names the SPI that was not found.
            let mut notify = rekeyed.clone();
            notify.kind = Fault::NoSuchChild.notify();
            notify.data.clear();
            return Ok(Some(vec![Payload::Notify(notify)]));
        };
        // RFC 7296 §2.25.1: not one that we are about to delete, as when our own rekey of it is done but for
        // the data plane's word: two successors would stay, for the peer alone knows that they crossed.
        let retires = |pending: &Pending| matches!(pending.then, Then::Retire(id) if id == old.id);
        let going = live.tasks.is_deleting(old.spi_in) || live.pending.iter().any(retires);
        if !old.is_current() || going {
            return refuse(Fault::Busy);
        }
    }
    if live.children.len() + live.pending.len() >= MOST_CHILDREN {
        // RFC 7296 §1.3, §3.10.1: NO_ADDITIONAL_SAS is for what would be one more.
        return refuse(match old {
            Some(_) => Fault::Busy,
            None => Fault::NoMoreChildren,
        });
    }
    match agree(sa, cx, old.as_ref(), payloads) {
        Err(Refused::Answer(fault, data)) => {
            Ok(Some(vec![Payload::Notify(Notify::new(fault.notify(), data))]))
        }
        Err(Refused::Syntax(text)) => Err(Refusal::Syntax(text.into())),
        Ok((new, config, response, nonces)) => {
            let info = Child::of(&new, config);
            let old = old.map(|old| old.id);
            tracing::info!(?old, new = %new.spi_in, "the peer rekeys or makes a CHILD_SA");
            let id = new.id;
            let action = cx.shared.action(sa.id, Action::Install(Box::new(new)));
            if matches!(&sa.state, State::Live(live) if live.capped) {
                cx.shared.action(sa.id, Action::Cap { children: vec![id], on: true });
            }
            let without_child = notify(Fault::Busy);
            let response = HeldResponse { path, message_id, payloads: response, without_child };
            if let State::Live(live) = &mut sa.state {
                let then = Then::Respond(response, old);
                live.pending.push(Pending { action, child: info, then });
                if let Some(ours) = old.and_then(|old| live.tasks.rekey_of(old)) {
                    ours.crossed = Some(nonces);
                }
            }
            Ok(None)
        }
    }
}

/// Why a request gets no CHILD_SA.
enum Refused {
    /// the IKE_SA lives on
    Answer(Fault, Vec<u8>),
    /// INVALID_SYNTAX
    Syntax(&'static str),
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Refused::Answer(fault, Vec::new())
    }
}

type Made = (ChildSa, usize, Vec<Payload>, Nonces);

fn agree(
    sa: &Sa,
    cx: &mut Cx<'_>,
    old: Option<&Child>,
    payloads: &[Payload],
) -> Result<Made, Refused> {
    let (mut offered, mut nonce, mut ke, mut ts_i, mut ts_r) = (None, None, None, None, None);
    for payload in payloads {
        match payload {
            Payload::SecurityAssociation(p) => offered = offered.or(Some(p)),
            Payload::Nonce(n) => nonce = nonce.or(Some(n)),
            Payload::KeyExchange { group, data } => ke = ke.or(Some((*group, data.as_slice()))),
            Payload::TsInitiator(ts) => ts_i = ts_i.or(Some(ts)),
            Payload::TsResponder(ts) => ts_r = ts_r.or(Some(ts)),
            _ => {}
        }
    }
    let (Some(offered), Some(nonce_i), Some(ts_i), Some(ts_r)) = (offered, nonce, ts_i, ts_r)
    else {
        return Err(Refused::Syntax("CREATE_CHILD_SA without SA, Ni, TSi or TSr"));
    };
    // RFC 7296 §2.10
    let least = sa.channel.keys.as_ref().map_or(0, |keys| keys.suite.prf.key_len());
    if nonce_i.len() * 2 < least {
        return Err(Refused::Syntax("a nonce that is too short for the prf"));
    }
    let State::Live(live) = &sa.state else { return Err(Fault::Busy.into()) };
    let settings =
        cx.shared.connections.get(live.connection.0).ok_or(Refused::from(Fault::Busy))?;
    let group = ke.map(|(group, _)| group);
    let mut fault = Fault::Selectors;
    let mut found = None;
    // RFC 7296 §2.19: where virtual addresses are a must, who has none has nothing on its side.
    let homeless = !settings.pools.is_empty() && live.assigned.is_empty();
    let asked = mode::is_asked(payloads);
    let obstacle = mode::obstacle_now(sa, cx.shared);
    let mut candidates = mode::candidates(settings, asked && obstacle.is_none());
    candidates.retain(|(index, view)| {
        old.is_none_or(|old| old.config == *index && old.mode == view.mode)
    });
    let mut why_not = None;
    if candidates.is_empty() {
        fault = Fault::NoProposal;
        why_not = mode::why_not(settings, asked, obstacle);
    }
    for (index, of_child) in candidates {
        // Its traffic is where the peer has shown that it is, and the selectors have to be of there.
        if of_child.mode == Mode::Transport && !mode::same_hosts(live.place().0, sa.path) {
            return Err(Fault::Busy.into());
        }
        if old.is_none()
            && of_child.mode == Mode::Tunnel
            && homeless
            && *of_child.ts_remote == Selectors::Dynamic
        {
            continue;
        }
        // Whoever starts the exchange is "i" in it.
        let Some((ts_local, ts_remote)) = narrow(sa, live, old, of_child, (ts_i, ts_r)) else {
            continue;
        };
        match negotiate::select_esp(of_child.esp_proposals, offered, Some(group)) {
            Some(chosen) => {
                found = Some((index, of_child.mode, chosen, ts_local, ts_remote));
                break;
            }
            None => fault = Fault::NoProposal,
        }
    }
    let Some((index, mode, (proposal, mut answer, spi_out), ts_local, ts_remote)) = found else {
        if let Some(why) = why_not {
            let reason = CloseReason::Child(why.into());
            cx.shared.event(Event::Refused { path: sa.path, reason });
        }
        return Err(fault.into());
    };
    let (mut public, mut secret) = (None, None);
    if let Some(method) = proposal.key_exchange {
        // RFC 7296 §1.3.1: the proposals are good, the group that was guessed is not.
        let Some((_, theirs)) = ke.filter(|(group, _)| *group == method.id()) else {
            let wanted = method.id().to_be_bytes().to_vec();
            return Err(Refused::Answer(Fault::AnotherGroup, wanted));
        };
        // RFC 6989 §2.5: after authentication a bad value is INVALID_SYNTAX, and the end.
        let (ours, shared) = crypto::respond(method, &mut cx.shared.random, theirs)
            .map_err(|_| Refused::Syntax("a KE payload that is no value of its group"))?;
        public = Some(Payload::KeyExchange { group: method.id(), data: ours });
        secret = Some(shared);
    }
    let (id, spi_in) = (cx.shared.fresh_id(), cx.shared.draw_esp_spi());
    let (limits, carriage) = task::terms(cx.shared, live.connection);
    let nonce_r = cx.shared.random.array::<32>().to_vec();
    answer.spi = spi_in.to_be_bytes().to_vec();
    let agreed = Agreed {
        mode,
        proposal,
        spi_in,
        spi_out,
        ts_local: ts_local.clone(),
        ts_remote: ts_remote.clone(),
        virtual_ips: live.virtual_ips.clone(),
        limits,
        carriage,
    };
    let keys = sa.channel.keys.as_ref().ok_or(Refused::from(Fault::Busy))?;
    let nonces = (nonce_i.as_slice(), nonce_r.as_slice());
    // RFC 4555 §3.3: the addresses are those in use, whatever path the request came on.
    let place = live.place();
    let role = Role::Responder;
    let new = child::build(agreed, (id, role), keys, secret.as_ref(), nonces, place);
    let Ok(mut new) = new else {
        cx.shared.esp_spis.remove(&spi_in);
        return Err(Fault::Busy.into());
    };
    if let Some(old) = old {
        new.reqid = old.reqid;
        // The peer can use it once it has the response and its data plane has the SA. It then deletes
        // the old one, and until then both work (RFC 7296 §2.8).
        new.waits = true;
    }
    let mut response = Vec::from_iter(mode::notify(mode));
    response.push(Payload::SecurityAssociation(vec![answer]));
    response.push(Payload::Nonce(nonce_r.clone()));
    response.extend(public);
    response.push(Payload::TsInitiator(ts_remote));
    response.push(Payload::TsResponder(ts_local));
    Ok((new, index, response, Nonces { i: nonce_i.clone(), r: nonce_r }))
}

type Sides = (Vec<crate::TrafficSelector>, Vec<crate::TrafficSelector>);

/// Our side and the peer's as they are agreed, if they can be.
fn narrow(
    sa: &Sa,
    live: &super::live::Live,
    old: Option<&Child>,
    of_child: ChildView<'_>,
    (ts_i, ts_r): (&[crate::TrafficSelector], &[crate::TrafficSelector]),
) -> Option<Sides> {
    if let Some(old) = old {
        // RFC 7296 §2.9.2: not narrower than what is in use.
        let ts_remote = child::narrow(&old.ts_remote, ts_i);
        let ts_local = child::narrow(&old.ts_local, ts_r);
        let whole = child::is_within(&old.ts_remote, &ts_remote)
            && child::is_within(&old.ts_local, &ts_local);
        return whole.then_some((ts_local, ts_remote));
    }
    let (ours, theirs) = match of_child.mode {
        Mode::Tunnel => (
            child::resolve(of_child.ts_local, &live.virtual_ips, sa.path.local.ip()),
            child::resolve(of_child.ts_remote, &live.assigned, sa.path.remote.ip()),
        ),
        Mode::Transport => mode::sides(of_child, sa.path),
    };
    let (ts_local, ts_remote) =
        child::matched(&child::narrow(&ours, ts_r), &child::narrow(&theirs, ts_i));
    (!ts_local.is_empty() && !ts_remote.is_empty()).then_some((ts_local, ts_remote))
}

/// The data plane has answered to the installation of a CHILD_SA; false if that was not asked.
pub(crate) fn on_answer(
    sa: &mut Sa,
    cx: &mut Cx<'_>,
    id: ActionId,
    result: &Result<(), ActionError>,
) -> bool {
    let State::Live(live) = &mut sa.state else { return false };
    let Some(at) = live.pending.iter().position(|pending| pending.action == id) else {
        return false;
    };
    let Pending { mut child, then, .. } = live.pending.remove(at);
    let spi_in = child.spi_in;
    if result.is_ok() {
        // The tunnel may have moved while the data plane was at work.
        let (path, encap) = live.place();
        if child.mode == Mode::Tunnel && (path, encap) != (child.path, child.encap) {
            let change = ChildMove { id: child.id, path, encap };
            let action = cx.shared.action(sa.id, Action::Move(vec![change]));
            live.moving.push((action, vec![change]));
        }
        child.rekey_at = task::rekey_time(cx, live);
        live.children.push(child);
        mode::leave_behind(sa, cx, (path, encap));
    } else {
        cx.shared.esp_spis.remove(&spi_in.0);
    }
    let State::Live(live) = &mut sa.state else { return true };
    match then {
        Then::Respond(held, old) => {
            if result.is_ok() {
                live.children
                    .iter_mut()
                    .filter(|c| Some(c.id) == old)
                    .for_each(|c| c.superseded = true);
            }
            let payloads = if result.is_ok() { held.payloads } else { held.without_child };
            let exchange = ExchangeType::CREATE_CHILD_SA;
            let sent = sa.respond(cx, held.path, exchange, held.message_id, &payloads);
            if let Err(reason) = sent {
                sa.close(cx, reason);
                return true;
            }
        }
        // A successor that the data plane refused exists at the peer: that one goes, the old stays.
        Then::Retire(old) => {
            let mut gone = vec![spi_in];
            if result.is_ok() {
                gone.clear();
                for child in live.children.iter_mut().filter(|c| c.id == old) {
                    child.replaced = true;
                    gone.push(child.spi_in);
                }
            }
            if !gone.is_empty() {
                live.tasks.push(Task::Delete(gone));
            }
        }
        Then::Use(_) if result.is_ok() => {}
        Then::Use(asked) => {
            live.tasks.push(Task::Delete(vec![spi_in]));
            create_initiator::try_again(sa, cx, Purpose::New(asked), None);
        }
    }
    task::arm(sa, cx);
    task::proceed(sa, cx);
    true
}
