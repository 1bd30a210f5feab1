//! A netlink socket for requests: one at a time or several that don't depend on each other, each with
//! its answer.
//!
//! The kernel carries a request out while we send it, so the answer is there when sending returns.
//! The calls therefore block: there is nothing to wait for, and an operation of several requests
//! can't be cancelled half way.

use std::{
    io,
    time::{Duration, Instant},
};

use netlink_sys::SocketAddr;
use zeroize::{Zeroize, Zeroizing};

use super::message::{Request, messages, refusal};
use crate::plane::PlaneError;

/// How long an answer may take before we give up on it.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Room for one datagram of answers; the kernel makes dump datagrams of at most 32 KiB.
const BUFFER: usize = 64 * 1024;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

/// Requests in one datagram at most: all their answers have to fit into the socket's buffer.
const TOGETHER: usize = 64;

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    /// our address, for which the kernel has the answers
    port: u32,
    sequence: u32,
    sent: u32,
    datagrams: u32,
    /// Answers may hold keys, so it is zeroed.
    buffer: Zeroizing<Vec<u8>>,
}

impl Socket {
    /// A socket for `protocol` (NETLINK_XFRM or NETLINK_ROUTE).
    pub(super) fn open(protocol: libc::c_int) -> Result<Self, PlaneError> {
        let open = || -> io::Result<(netlink_sys::Socket, u32)> {
            let mut socket = netlink_sys::Socket::new(protocol as isize)?;
            let port = socket.bind_auto()?.port_number();
            socket.connect(&SocketAddr::new(0, 0))?;
            // Without it, an error carries our request back, keys and all.
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            socket2::SockRef::from(&socket).set_read_timeout(Some(TIMEOUT))?;
            Ok((socket, port))
        };
        let (socket, port) = open().map_err(|error| {
            let what = if protocol == libc::NETLINK_XFRM { "an XFRM" } else { "a route" };
            PlaneError::kernel(&format!("opening {what} netlink socket"), &error)
        })?;
        Ok(Socket {
            socket,
            port,
            sequence: 0,
            sent: 0,
            datagrams: 0,
            buffer: Zeroizing::new(vec![0; BUFFER]),
        })
    }

    /// The port by which the kernel tells whose request has changed something.
    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// How many requests went out so far.
    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    /// How often we have sent something and waited for the answers.
    pub(super) fn round_trips(&self) -> u32 {
        self.datagrams
    }

    /// Sends `request` and waits for the acknowledgement. `operation` is for the error.
    pub(super) fn request(&mut self, operation: &str, request: Request) -> Result<(), PlaneError> {
        self.exchange(operation, request, |_, _| {})
    }

    /// Sends `request` and returns what `read` makes of the answer (message type and body).
    pub(super) fn ask<T>(
        &mut self,
        operation: &str,
        request: Request,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<T, PlaneError> {
        let mut found = None;
        self.exchange(operation, request, |kind, body| {
            found = found.take().or_else(|| read(kind, body));
        })?;
        found.ok_or_else(|| PlaneError::Kernel {
            operation: operation.to_owned(),
            errno: libc::EBADMSG,
            message: "the kernel's answer can't be read".into(),
        })
    }

    /// Sends the dump `request` and returns what `read` makes of each part of the answer.
    pub(super) fn dump<T>(
        &mut self,
        operation: &str,
        request: Request,
        mut read: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, PlaneError> {
        let mut found = Vec::new();
        self.exchange(operation, request, |kind, body| found.extend(read(kind, body)))?;
        Ok(found)
    }

    /// Sends all of `requests`, several at once, and waits for their acknowledgements. Each is carried
    /// out, in order, whatever becomes of the others; the first refusal is the error.
    pub(super) fn requests(
        &mut self,
        operation: &str,
        requests: Vec<Request>,
    ) -> Result<(), PlaneError> {
        self.batch(operation, requests, |_, _, _| {}).into_iter().collect()
    }

    /// Sends all of `requests`, several at once, and has `read` see the answers: which request's,
    /// message type and body. Each is carried out, in order, whatever becomes of the others.
    pub(super) fn batch(
        &mut self,
        operation: &str,
        mut requests: Vec<Request>,
        mut read: impl FnMut(usize, u16, &[u8]),
    ) -> Vec<Result<(), PlaneError>> {
        let mut results = Vec::with_capacity(requests.len());
        for some in requests.chunks_mut(TOGETHER) {
            let first = self.sequence.wrapping_add(1);
            // It may hold keys, and is never to be reallocated.
            let length = some.iter().map(Request::length).sum();
            let mut together = Zeroizing::new(Vec::with_capacity(length));
            let mut count = 0;
            for request in some {
                together.extend_from_slice(request.finish(self.next_sequence(), self.port));
                count += 1;
            }
            let sent = self.send(&together);
            for step in 0..count {
                let at = results.len();
                results.push(match &sent {
                    Ok(()) => self.answer(operation, first.wrapping_add(step), |kind, body| {
                        read(at, kind, body);
                    }),
                    Err(error) => Err(PlaneError::kernel(operation, error)),
                });
            }
        }
        results
    }

    fn exchange(
        &mut self,
        operation: &str,
        mut request: Request,
        read: impl FnMut(u16, &[u8]),
    ) -> Result<(), PlaneError> {
        let sequence = self.next_sequence();
        self.send(request.finish(sequence, self.port))
            .map_err(|error| PlaneError::kernel(operation, &error))?;
        drop(request);
        self.answer(operation, sequence, read)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sent = self.sent.wrapping_add(1);
        self.sequence
    }

    fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.datagrams = self.datagrams.wrapping_add(1);
        self.socket.send(octets, 0).map(drop)
    }

    /// Waits for the end of the answer to the request `sequence`; each is a datagram of its own.
    fn answer(
        &mut self,
        operation: &str,
        sequence: u32,
        mut read: impl FnMut(u16, &[u8]),
    ) -> Result<(), PlaneError> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            let length = match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(PlaneError::kernel(operation, &error)),
            };
            let datagram = self.buffer.get_mut(..length).unwrap_or_default();
            let mut outcome = None;
            // An answer to an earlier request that we gave up on has another sequence number.
            for message in messages(datagram).filter(|m| m.sequence == sequence) {
                match message.kind {
                    // The end of a dump begins with an error number too.
                    NLMSG_ERROR | NLMSG_DONE => outcome = refusal(&message),
                    kind => read(kind, message.body),
                }
            }
            datagram.zeroize();
            match outcome {
                None => {}
                Some(answer) if answer.errno == 0 => return Ok(()),
                Some(answer) => {
                    let system = io::Error::from_raw_os_error(answer.errno);
                    return Err(PlaneError::Kernel {
                        operation: operation.to_owned(),
                        errno: answer.errno,
                        message: answer.text.unwrap_or_else(|| text(&system)),
                    });
                }
            }
        }
        Err(PlaneError::Timeout(operation.to_owned()))
    }
}

impl PlaneError {
    /// A system call that failed while doing `operation`.
    pub(super) fn kernel(operation: &str, error: &io::Error) -> Self {
        PlaneError::Kernel {
            operation: operation.to_owned(),
            errno: error.raw_os_error().unwrap_or(0),
            message: text(error),
        }
    }

    /// The error number, if the kernel gave one.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            PlaneError::Kernel { errno, .. } => Some(*errno),
            PlaneError::SpiInUse => Some(libc::EEXIST),
            _ => None,
        }
    }
}

/// The system's words for `error` without the "(os error N)" that the standard library adds.
pub(super) fn text(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text.get(..at).unwrap_or(&text).to_owned(),
        None => text,
    }
}
