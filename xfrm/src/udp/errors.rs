//! ICMP errors about what the sockets sent (ip(7) and ipv6(7), IP_RECVERR): hints that a path carries
//! nothing (RFC 4555 §3.5), and no more than hints, as anyone can forge them.
//!
//! The price of asking for them: the system also returns each one, once, from whichever call on the
//! socket comes next, in the place of what that call was to do.

use std::{
    mem,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bewick_ike::Path;
use socket2::{SockAddr, SockAddrStorage};
use tokio::sync::mpsc;

use super::{control, socket::Socket};

/// Hints that wait for the daemon at most; further ones are dropped.
const QUEUE: usize = 16;

/// A path is told of once in this time: the first hint has led to a probe, and an attacker must not
/// keep the daemon busy.
const INTERVAL: Duration = Duration::from_secs(1);

/// Different paths told of in [`INTERVAL`] at most.
const PATHS: usize = QUEUE;

/// Errors taken from the queue in one go, so that a flood holds up no sender for long.
const BATCH: usize = 64;

/// Room for an error with its offender, a packet info and a traffic class.
const CONTROL: usize = 256;

const ICMP_UNREACHABLE: u8 = 3;
const ICMP_TOO_BIG: u8 = 4;
const ICMPV6_UNREACHABLE: u8 = 1;

/// Where the paths go that ICMP errors speak of.
pub(super) struct Unreachable {
    queue: mpsc::Sender<Path>,
    told: Mutex<Vec<(Path, Instant)>>,
    /// errors taken, hints or not
    pub(super) taken: AtomicU64,
}

impl Unreachable {
    pub(super) fn new() -> (Self, mpsc::Receiver<Path>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Unreachable { queue, told: Mutex::default(), taken: AtomicU64::new(0) }, receiver)
    }

    /// Takes what waits in the error queue of `socket`; how many there were.
    pub(super) fn take(&self, socket: &Socket) -> usize {
        let mut count = 0;
        while count < BATCH
            && let Some(error) = next(socket)
        {
            count += 1;
            self.taken.fetch_add(1, Relaxed);
            if let Some(path) = error.unreachable() {
                self.tell(path, Instant::now());
            }
        }
        count
    }

    fn tell(&self, path: Path, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|(_, when)| now.saturating_duration_since(*when) < INTERVAL);
        if told.len() < PATHS && !told.iter().any(|(known, _)| *known == path) {
            told.push((path, now));
            // With no room there are hints enough already.
            let _ = self.queue.try_send(path);
        }
    }
}

/// Whether a call that failed with `errno` may have been told of an ICMP error, and not of anything
/// that it did itself (`icmp_err_convert` and `icmpv6_err_convert` of Linux).
pub(super) fn is_reported(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EACCES
            | libc::EPROTO
            | libc::EMSGSIZE
    )
}

/// One entry of an error queue.
struct Report {
    origin: u8,
    kind: u8,
    code: u8,
    /// of the datagram that the error is about
    path: Option<Path>,
}

impl Report {
    /// The path that the error says can't be used. That a datagram was too big says nothing of the
    /// kind: smaller ones get through.
    fn unreachable(&self) -> Option<Path> {
        let is = match self.origin {
            libc::SO_EE_ORIGIN_ICMP => self.kind == ICMP_UNREACHABLE && self.code != ICMP_TOO_BIG,
            libc::SO_EE_ORIGIN_ICMP6 => self.kind == ICMPV6_UNREACHABLE,
            _ => false,
        };
        self.path.filter(|_| is)
    }
}

/// Takes one entry from the error queue, without waiting.
fn next(socket: &Socket) -> Option<Report> {
    #[repr(C, align(8))]
    struct Room([u8; CONTROL]);
    let mut room = Room([0; CONTROL]);
    let mut name = SockAddrStorage::zeroed();
    // SAFETY: msghdr is plain data for which all zero octets are valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_namelen = name.size_of();
    header.msg_name = (&raw mut name).cast();
    header.msg_control = room.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL as _;
    // SAFETY: name and control live until after the call and are as long as is said; there is no
    // room for what was sent, which nobody needs.
    let got =
        unsafe { libc::recvmsg(socket.fd(), &mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if got < 0 {
        return None;
    }
    // SAFETY: the header was filled by the receive and its control buffer still lives.
    let (error, arrival) = unsafe { (control::error(&header), control::arrival(&header)) };
    // SAFETY: recvmsg wrote an address of msg_namelen octets into the storage.
    let remote = unsafe { SockAddr::new(name, header.msg_namelen) }.as_socket();
    // The error was sent to where the datagram came from: to its local address.
    let path = arrival
        .zip(remote)
        .map(|(arrival, remote)| Path::new(SocketAddr::new(arrival.local, socket.port), remote));
    let (origin, kind, code) =
        error.map_or((libc::SO_EE_ORIGIN_NONE, 0, 0), |e| (e.ee_origin, e.ee_type, e.ee_code));
    Some(Report { origin, kind, code, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(port: u16) -> Path {
        Path::new("192.0.2.1:500".parse().unwrap(), SocketAddr::new([192, 0, 2, 2].into(), port))
    }

    #[test]
    fn only_unreachable_is_a_hint_and_too_big_is_not() {
        let (icmp, icmp6) = (libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6);
        let is = |origin, kind, code| {
            let report = Report { origin, kind, code, path: Some(path(500)) };
            report.unreachable() == Some(path(500))
        };
        // Net, host, port, and forbidden by a router on the way.
        for code in [0, 1, 3, 9, 10, 13] {
            assert!(is(icmp, 3, code), "{code}");
        }
        assert!(!is(icmp, 3, 4), "fragmentation needed");
        assert!(!is(icmp, 11, 0), "time exceeded");
        assert!(!is(icmp, 12, 0), "parameter problem");
        for code in [0, 1, 3, 4] {
            assert!(is(icmp6, 1, code), "{code}");
        }
        assert!(!is(icmp6, 2, 0), "packet too big");
        assert!(!is(libc::SO_EE_ORIGIN_LOCAL, 3, 1));
        let pathless = Report { origin: icmp, kind: 3, code: 1, path: None };
        assert_eq!(pathless.unreachable(), None);
    }

    #[test]
    fn a_path_is_told_of_once_in_a_while_and_a_flood_is_cut() {
        let (hints, mut queue) = Unreachable::new();
        let start = Instant::now();
        for _ in 0..3 {
            hints.tell(path(1), start);
        }
        assert_eq!((queue.try_recv(), queue.try_recv().is_err()), (Ok(path(1)), true));
        hints.tell(path(1), start + INTERVAL);
        assert_eq!(queue.try_recv(), Ok(path(1)));
        let later = start + 3 * INTERVAL;
        for port in 1..1000 {
            hints.tell(path(port), later);
        }
        let told = std::iter::from_fn(|| queue.try_recv().ok()).count();
        assert_eq!(told, PATHS);
        assert!(hints.told.lock().unwrap().len() <= PATHS);
    }
}
