//! What the kernel reports by itself: EXPIRE, MAPPING and ACQUIRE; and that another program has removed
//! states or policies of ours.
//!
//! All of it is hints. A message that is too short or about a state that is not ours is skipped.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    sync::Arc,
};

use netlink_packet_xfrm::{UserExpire, UserMapping, UserPolicyInfo, UserSaId, constants::*};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    ledger::Shared,
    message::{Message, attribute, messages},
    policy::{POLICY_INFO, Tag},
    state::{Key, Side, Usage, ip},
    trap,
};
use crate::{
    events::Events,
    plane::{PlaneError, PlaneEvent},
};

/// Octets of struct xfrm_user_expire, xfrm_user_mapping, xfrm_usersa_id and xfrm_userpolicy_id.
const EXPIRE: usize = 232;
const MAPPING: usize = 64;
const SA_ID: usize = 24;
const POLICY_ID: usize = 64;

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

/// Opens the event socket and starts the task that reads it. Needs a tokio runtime. What the netlink
/// socket with the port `ours` removes, and what does not bear `tag`, is not told of.
pub(super) fn start(ledger: Shared, tag: Tag, ours: u32) -> Result<Started, PlaneError> {
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(libc::NETLINK_XFRM as isize)?;
        socket.socket_mut().bind_auto()?;
        // What does not fit is lost, and the states of a thousand CHILD_SAs may end at once. Without the
        // right to so much room, what there is has to do.
        let _ = room(&socket);
        let wanted = filter(ours);
        // SAFETY: the descriptor is open as long as the socket is there.
        attach(unsafe { BorrowedFd::borrow_raw(socket.socket_ref().as_raw_fd()) }, &wanted)?;
        for group in
            [XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING, XFRMNLGRP_SA, XFRMNLGRP_POLICY]
        {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(socket)
    };
    let socket = open().map_err(|error| PlaneError::kernel("listening to XFRM events", &error))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let events = Arc::new(Events::new(sender));
    let task = tokio::spawn(run(socket, ledger, tag, events.clone())).abort_handle();
    Ok(Started { events, receiver, task })
}

/// Gives the kernel's queue [`QUEUED`] octets, for which CAP_NET_ADMIN is needed.
fn room(socket: &TokioSocket) -> io::Result<()> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket.socket_ref(), QUEUED)?;
    Ok(())
}

async fn run(socket: TokioSocket, ledger: Shared, tag: Tag, events: Arc<Events>) {
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
                    match read(&message, &ledger, tag) {
                        Some(PlaneEvent::Expire { id, hard }) => events.expire(id, hard),
                        // Of many removals one tells, until it is looked after.
                        Some(PlaneEvent::Disturbed) if !ledger.lock().disturb() => {}
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
pub(super) fn read(message: &Message<'_>, ledger: &Shared, tag: Tag) -> Option<PlaneEvent> {
    match message.kind {
        XFRM_MSG_EXPIRE => expire(message.body, ledger),
        XFRM_MSG_MAPPING => mapping(message.body, ledger),
        XFRM_MSG_ACQUIRE => trap::acquired(message.body, tag),
        XFRM_MSG_DELSA => removed_state(message.body, ledger),
        XFRM_MSG_DELPOLICY => removed_policy(message.body, tag),
        // All of a kind, and so of ours, if there are any.
        XFRM_MSG_FLUSHSA => (!ledger.lock().is_empty()).then_some(PlaneEvent::Disturbed),
        XFRM_MSG_FLUSHPOLICY => Some(PlaneEvent::Disturbed),
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

fn removed_state(body: &[u8], ledger: &Shared) -> Option<PlaneEvent> {
    let id = UserSaId::parse(body.get(..SA_ID)?).ok()?;
    let key = Key { destination: ip(&id.daddr, id.family)?, spi: id.spi };
    let ours = id.proto == IPPROTO_ESP && ledger.lock().get(&key).is_some();
    ours.then_some(PlaneEvent::Disturbed)
}

fn removed_policy(body: &[u8], tag: Tag) -> Option<PlaneEvent> {
    // struct xfrm_userpolicy_id says what was asked for, and the policy itself follows.
    let info = attribute(body, POLICY_ID, XFRMA_POLICY)?.get(..POLICY_INFO)?;
    tag.has(UserPolicyInfo::parse(info).ok()?.index).then_some(PlaneEvent::Disturbed)
}

/// A program for the kernel (bpf(4)) that lets only those events into the socket's queue that
/// [`read`] knows, and of removals only those that the socket with the port `ours` has not asked for: each
/// change of a state of ours or others' would be told of, with its keys.
fn filter(ours: u32) -> Vec<libc::sock_filter> {
    let code = |class: u32, mode: u32| (class | mode) as u16;
    let load = |size, at| libc::sock_filter {
        code: code(libc::BPF_LD | libc::BPF_ABS, size),
        jt: 0,
        jf: 0,
        k: at,
    };
    let jump = |value, jt, jf| libc::sock_filter {
        code: code(libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_K),
        jt,
        jf,
        k: value,
    };
    let end = |octets| libc::sock_filter {
        code: code(libc::BPF_RET, libc::BPF_K),
        jt: 0,
        jf: 0,
        k: octets,
    };
    // Numbers are read as in the network, and netlink's are the machine's own.
    let kind = |kind: u16| u32::from(kind.to_be());
    vec![
        load(libc::BPF_H, 4), // nlmsg_type
        jump(kind(XFRM_MSG_EXPIRE), 9, 0),
        jump(kind(XFRM_MSG_MAPPING), 8, 0),
        jump(kind(XFRM_MSG_ACQUIRE), 7, 0),
        jump(kind(XFRM_MSG_DELSA), 3, 0),
        jump(kind(XFRM_MSG_FLUSHSA), 2, 0),
        jump(kind(XFRM_MSG_DELPOLICY), 1, 0),
        jump(kind(XFRM_MSG_FLUSHPOLICY), 0, 2),
        load(libc::BPF_W, 12), // nlmsg_pid: whose request it was
        jump(ours.to_be(), 0, 1),
        end(0),
        end(u32::MAX),
    ]
}

fn attach(socket: BorrowedFd<'_>, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel copies as many
    // instructions as we say are there.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would make of it.
    fn run(filter: &[libc::sock_filter], packet: &[u8]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let step = &filter[at];
            at += 1;
            match u32::from(step.code) & 0x7 {
                libc::BPF_LD => {
                    let from = step.k as usize;
                    value = match u32::from(step.code) & 0x18 {
                        libc::BPF_H => {
                            u16::from_be_bytes(packet[from..from + 2].try_into().unwrap()).into()
                        }
                        _ => u32::from_be_bytes(packet[from..from + 4].try_into().unwrap()),
                    };
                }
                libc::BPF_JMP => {
                    at += usize::from(if value == step.k { step.jt } else { step.jf });
                }
                _ => return step.k,
            }
        }
    }

    #[test]
    fn only_what_is_read_gets_into_the_queue_and_no_removal_of_our_own() {
        let ours = 0x0102_0304;
        let filter = filter(ours);
        let taken = |kind: u16, port: u32| {
            let mut packet = [0; 16];
            packet[4..6].copy_from_slice(&kind.to_ne_bytes());
            packet[12..16].copy_from_slice(&port.to_ne_bytes());
            run(&filter, &packet) != 0
        };
        for kind in [XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING, XFRM_MSG_ACQUIRE] {
            assert!(taken(kind, 0) && taken(kind, ours), "{kind:#x}");
        }
        for kind in [XFRM_MSG_DELSA, XFRM_MSG_FLUSHSA, XFRM_MSG_DELPOLICY, XFRM_MSG_FLUSHPOLICY] {
            assert!(taken(kind, 0) && taken(kind, 7) && !taken(kind, ours), "{kind:#x}");
        }
        for kind in [XFRM_MSG_NEWSA, XFRM_MSG_UPDSA, XFRM_MSG_NEWPOLICY, XFRM_MSG_UPDPOLICY] {
            assert!(!taken(kind, 0) && !taken(kind, ours), "{kind:#x}");
        }
    }
}
