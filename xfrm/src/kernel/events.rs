//! What the kernel reports by itself: EXPIRE, MAPPING and ACQUIRE.
//!
//! All of it is hints. A message that is too short or about a state that is not ours is skipped.

use std::{io, net::SocketAddr, sync::Arc};

use netlink_packet_xfrm::{UserExpire, UserMapping, constants::*};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    ledger::Shared,
    message::{Message, messages},
    state::{Key, Side, Usage, ip},
    trap,
};
use crate::{
    events::Events,
    plane::{PlaneError, PlaneEvent},
};

/// Octets of struct xfrm_user_expire and xfrm_user_mapping.
const EXPIRE: usize = 232;
const MAPPING: usize = 64;

/// Events that may wait for the daemon. Of more than that the expiries are kept, and the others are
/// dropped and said to be lost.
const QUEUE: usize = 256;

/// Room for one datagram of events.
const BUFFER: usize = 64 * 1024;

/// Octets of the kernel's queue of events: some 2000 of them, as it counts them.
const QUEUED: usize = 4 << 20;

/// The events' way to the daemon.
pub(super) struct Started {
    pub(super) events: Arc<Events>,
    pub(super) receiver: mpsc::Receiver<PlaneEvent>,
    pub(super) task: tokio::task::AbortHandle,
}

/// Opens the event socket and starts the task that reads it. Needs a tokio runtime.
pub(super) fn start(ledger: Shared) -> Result<Started, PlaneError> {
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(libc::NETLINK_XFRM as isize)?;
        socket.socket_mut().bind_auto()?;
        // What does not fit is lost, and the states of a thousand CHILD_SAs may end at once. Without the
        // right to so much room, what there is has to do.
        let _ = room(&socket);
        for group in [XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING] {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(socket)
    };
    let socket = open().map_err(|error| PlaneError::kernel("listening to XFRM events", &error))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let events = Arc::new(Events::new(sender));
    let task = tokio::spawn(run(socket, ledger, events.clone())).abort_handle();
    Ok(Started { events, receiver, task })
}

/// Gives the kernel's queue [`QUEUED`] octets, for which CAP_NET_ADMIN is needed.
fn room(socket: &TokioSocket) -> io::Result<()> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.socket_ref(), QUEUED)?;
    Ok(())
}

async fn run(socket: TokioSocket, ledger: Shared, events: Arc<Events>) {
    let mut buffer = Zeroizing::new(vec![0u8; BUFFER]);
    let mut lost = false;
    loop {
        lost = lost && !events.hint(PlaneEvent::EventsLost);
        let mut room = buffer.as_mut_slice();
        let received = tokio::select! {
            received = socket.recv(&mut room) => received,
            // The daemon has taken something: what waits for that must not wait for the kernel too.
            () = events.room(), if lost || events.owes() => {
                events.settle();
                if events.is_closed() {
                    return;
                }
                continue;
            }
        };
        let length = BUFFER - room.len();
        match received {
            Ok(()) => {
                for message in messages(buffer.get(..length).unwrap_or_default()) {
                    match read(&message, &ledger) {
                        Some(PlaneEvent::Expire { id, hard }) => events.expire(id, hard),
                        Some(event) => lost |= !events.hint(event),
                        None => {}
                    }
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "no more events from the kernel");
                return;
            }
        }
        if events.is_closed() {
            return;
        }
    }
}

/// Turns a message of the kernel into an event, if it is about something of ours.
pub(super) fn read(message: &Message<'_>, ledger: &Shared) -> Option<PlaneEvent> {
    match message.kind {
        XFRM_MSG_EXPIRE => expire(message.body, ledger),
        XFRM_MSG_MAPPING => mapping(message.body, ledger),
        XFRM_MSG_ACQUIRE => trap::acquired(message.body),
        _ => None,
    }
}

fn expire(body: &[u8], ledger: &Shared) -> Option<PlaneEvent> {
    let body = body.get(..EXPIRE)?;
    let expire = UserExpire::parse(body).ok()?;
    let info = &expire.state;
    let key = Key { destination: ip(&info.id.daddr, info.family)?, spi: info.id.spi };
    let hard = expire.hard != 0;
    let mut ledger = ledger.lock();
    let entry = ledger.get(&key).filter(|_| info.id.proto == IPPROTO_ESP)?;
    if let Some(left) = entry.left {
        // The end that the move has set for it.
        if hard {
            ledger.close(&key, Usage::of_info(body).unwrap_or(left));
        }
        return None;
    }
    Some(PlaneEvent::Expire { id: entry.id, hard })
}

fn mapping(body: &[u8], ledger: &Shared) -> Option<PlaneEvent> {
    let mapping = UserMapping::parse(body.get(..MAPPING)?).ok()?;
    let id = &mapping.id;
    let key = Key { destination: ip(&id.daddr, id.family)?, spi: id.spi };
    let seen = SocketAddr::new(ip(&mapping.new_saddr, id.family)?, mapping.new_sport);
    let mut ledger = ledger.lock();
    let entry = ledger.get(&key).filter(|_| id.proto == IPPROTO_ESP)?;
    // During a move, and on a path that it has left, other addresses are what one expects.
    if entry.left.is_some() || entry.side == Side::Out || entry.remote == seen {
        return None;
    }
    ledger.count_wrong_path(entry.id);
    Some(PlaneEvent::Mapping { id: entry.id, seen })
}
