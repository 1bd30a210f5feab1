//! Transport mode (RFC 7296 §1.3.1, RFC 4301 §4.1): who offers and takes it, what it can carry, and what
//! becomes of it when the addresses change.
//!
//! ESP in transport mode is between the two ends themselves, so that the selectors have no addresses but
//! those of the path. It is not used through a NAT (RFC 7296 §2.23.1 would have checksums mended by what
//! each end knows of the other's real address), and it is never moved (RFC 4555 §1.2).

use std::{net::IpAddr, time::Duration};

use crate::{
    child::Mode,
    config::{ChildView, ConnectionConfig, Role, Selectors},
    event::Event,
    path::Path,
    selector::TrafficSelector,
    wire::{Notify, NotifyType, Payload},
};

use super::{
    Cx, Sa, Shared, State,
    child::{self, Child},
    task::{self, Task},
};

/// USE_TRANSPORT_MODE, in a request or an answer about a CHILD_SA of that mode.
pub(crate) fn notify(mode: Mode) -> Option<Payload> {
    let notify = || Payload::Notify(Notify::new(NotifyType::USE_TRANSPORT_MODE, Vec::new()));
    (mode == Mode::Transport).then(notify)
}

/// Whether the peer asks for transport mode, or agrees to it.
pub(crate) fn is_asked(payloads: &[Payload]) -> bool {
    payloads
        .iter()
        .any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::USE_TRANSPORT_MODE))
}

/// Whether the answer to a request of ours is of the mode that it was for. If not, the SA is to be deleted
/// (RFC 7296 §1.3.1): what one end sends the other would drop.
pub(crate) fn check(mode: Mode, answer: &[Payload]) -> Result<(), &'static str> {
    match (mode, is_asked(answer)) {
        (Mode::Transport, false) => {
            Err("the peer declines transport mode: have its side of it be in \
                                         transport mode too, or let mode be \"tunnel\" here")
        }
        (Mode::Tunnel, true) => Err("the peer chose transport mode, which it was not asked for"),
        _ => Ok(()),
    }
}

/// Why transport mode can't be used with this peer now.
pub(crate) fn obstacle(sa: &Sa, shared: &Shared, encap: bool) -> Option<&'static str> {
    if shared.force_encap {
        return Some(
            "the userspace data plane has no transport mode: let dataplane be \"kernel\", or mode \
                     be \"tunnel\"",
        );
    }
    let in_udp = encap || sa.nat.any() || sa.path.is_tcp();
    in_udp.then_some(
        "a NAT is on the path (or ESP is to be in UDP), where transport mode is not used: let mode be \
         \"tunnel\", or take the NAT away",
    )
}

/// Why transport mode can't be used for a CHILD_SA of a connection that stands.
pub(crate) fn obstacle_now(sa: &Sa, shared: &Shared) -> Option<&'static str> {
    let State::Live(live) = &sa.state else { return None };
    obstacle(sa, shared, live.place().1)
}

/// Whether both are between the same two addresses: ports are nothing to ESP by itself.
pub(crate) fn same_hosts(one: Path, other: Path) -> bool {
    (one.local.ip(), one.remote.ip()) == (other.local.ip(), other.remote.ip())
}

/// What the configuration allows of one end itself.
fn of_host(selectors: &Selectors, address: IpAddr) -> Vec<TrafficSelector> {
    let host = TrafficSelector::from_addr(address);
    match selectors {
        Selectors::Dynamic => vec![host],
        Selectors::List(list) => child::narrow(list, &[host]),
    }
}

/// Our side and the peer's of a CHILD_SA in transport mode on `path`.
pub(crate) fn sides(
    of_child: ChildView<'_>,
    path: Path,
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let sides = (
        of_host(of_child.ts_local, path.local.ip()),
        of_host(of_child.ts_remote, path.remote.ip()),
    );
    child::matched(&sides.0, &sides.1)
}

/// The same for our own request, or why there can be none.
pub(crate) fn offer(
    of_child: ChildView<'_>,
    path: Path,
) -> Result<(Vec<TrafficSelector>, Vec<TrafficSelector>), String> {
    let sides = sides(of_child, path);
    if sides.0.is_empty() {
        return Err(format!(
            "mode is \"transport\", which is for the two ends themselves, and local_ts and remote_ts do not \
             have the addresses of {path}: write these, or leave both out"
        ));
    }
    Ok(sides)
}

/// The CHILD_SAs of the configuration that a request for a new one may be for, with their places in it:
/// where transport mode is asked for and possible those of that mode first, and else none of them.
pub(crate) fn candidates(
    config: &ConnectionConfig,
    transport: bool,
) -> Vec<(usize, ChildView<'_>)> {
    let of = |mode| config.children().enumerate().filter(move |(_, view)| view.mode == mode);
    let first = of(Mode::Transport).filter(|_| transport);
    first.chain(of(Mode::Tunnel)).collect()
}

/// Why those in transport mode are not among the candidates, if there are any.
pub(crate) fn why_not(
    config: &ConnectionConfig,
    asked: bool,
    obstacle: Option<&'static str>,
) -> Option<&'static str> {
    let any = config.children().any(|view| view.mode == Mode::Transport);
    let text = "ours is in transport mode (mode = \"transport\"), which the peer does not ask for";
    let why = if asked { obstacle } else { Some(text) };
    why.filter(|_| any)
}

/// Whether a CHILD_SA can go on when traffic is on `path`.
pub(crate) fn stays(child: &Child, (path, encap): (Path, bool)) -> bool {
    child.mode == Mode::Tunnel || (!encap && same_hosts(child.path, path))
}

/// Deletes the CHILD_SAs that can't go along to where traffic is going; the peer is told when the window
/// is open (RFC 4555 §1.2).
pub(crate) fn leave_behind(sa: &mut Sa, cx: &mut Cx<'_>, place: (Path, bool)) {
    let State::Live(live) = &mut sa.state else { return };
    while let Some(child) = live.children.iter().find(|child| !stays(child, place)).cloned() {
        live.remove_child(&mut *cx.shared, sa.id, |other| other.id == child.id);
        if !live.tasks.is_deleting(child.spi_in) {
            live.tasks.push(Task::Delete(vec![child.spi_in]));
        }
        let (config, from) = (child.config, child.path);
        cx.shared.event(Event::LeftBehind { sa: sa.id, config, from });
    }
    // What is left of these is where it was, whatever the ports of IKE are.
    for child in live.children.iter_mut().filter(|child| child.mode == Mode::Transport) {
        child.path = place.0;
    }
}

/// After a move the initiator waits so long before it asks for a CHILD_SA in transport mode: by then the
/// responder has heard the answer to its question whether we receive here (RFC 4555 §3.7).
const SETTLE: Duration = Duration::from_millis(100);

/// Initiator: asks soon for the CHILD_SAs in transport mode that are missing, where the path has the addresses
/// for them.
pub(crate) fn make_missing(sa: &mut Sa, cx: &mut Cx<'_>) {
    let (path, role) = (sa.path, sa.role);
    let clear = obstacle_now(sa, cx.shared).is_none();
    let State::Live(live) = &mut sa.state else { return };
    let Some(settings) = cx.shared.connections.get(live.connection.0) else { return };
    if role != Role::Initiator || !clear {
        return;
    }
    let fits =
        |view: &ChildView<'_>| view.mode == Mode::Transport && !sides(*view, path).0.is_empty();
    for (config, _) in settings.children().enumerate().filter(|(_, view)| fits(view)) {
        live.missing.retain(|(_, missing)| *missing != config);
        if !live.children.iter().any(|child| child.config == config) && !live.is_making(config) {
            live.missing.push((cx.now + SETTLE, config));
        }
    }
    task::arm(sa, cx);
}
