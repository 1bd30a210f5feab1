//! The receiving threads: batches of datagrams, told apart as RFC 3948 §2 and §3 say.

use std::{
    cell::Cell,
    io, mem,
    net::SocketAddr,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::Duration,
};

use bewick_ike::Path;
use socket2::{SockAddr, SockAddrStorage};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{
    EspPacket, IkeDatagram, KEEPALIVE, NON_ESP_MARKER, Shared,
    control::{self, Arrival},
    errors,
    socket::Socket,
};
use crate::eager::Eager;

/// Datagrams per system call at most.
const BATCH: usize = 32;
/// Room for one datagram: more than UDP can carry, so that none is ever cut.
const ROOM: usize = 1 << 16;
/// An IKE header (RFC 7296 §3.1).
const MIN_IKE: usize = 28;
/// SPI, sequence number and an integrity check value of 96 bits.
const MIN_ESP: usize = 20;

/// Starts the thread that receives from `socket` until `shared.stop`.
pub(super) fn spawn(
    socket: Arc<Socket>,
    shared: Arc<Shared>,
    ike: mpsc::Sender<IkeDatagram>,
) -> io::Result<JoinHandle<()>> {
    let family = if socket.ipv4 { 4 } else { 6 };
    let name = format!("udp{family}-{}.{}", socket.port, socket.lane);
    thread::Builder::new().name(name).spawn(move || {
        let mut batch = Batch::new();
        let receiver = Receiver { socket: &socket, shared: &shared, ike };
        while !shared.stop.load(Relaxed) {
            receiver.turn(&mut batch);
        }
    })
}

struct Receiver<'a> {
    socket: &'a Socket,
    shared: &'a Shared,
    ike: mpsc::Sender<IkeDatagram>,
}

impl Receiver<'_> {
    /// Waits for datagrams and handles all that are there.
    fn turn(&self, batch: &mut Batch) {
        let count = match batch.receive(self.socket) {
            Ok(count) => count,
            Err(error) => {
                match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => {}
                    // An ICMP error for something sent before says nothing about receiving.
                    Some(errno) if errors::is_reported(errno) => {
                        self.shared.unreachable.take(self.socket);
                    }
                    _ => {
                        self.shared.counters.receive_errors.fetch_add(1, Relaxed);
                        thread::sleep(Duration::from_millis(10));
                    }
                }
                return;
            }
        };
        // One reference per batch, so that no packet waits for who changes the sink.
        let sink = self.shared.sink.read().unwrap_or_else(PoisonError::into_inner).clone();
        let has_sink = sink.is_some();
        let esp_in = Cell::new(0);
        let mut esp = batch
            .datagrams(count, self.socket.port)
            .filter_map(|datagram| {
                if datagram.is_none() {
                    self.malformed();
                }
                datagram
            })
            .flat_map(|(path, arrival, octets)| pieces(path, arrival, octets))
            .filter_map(|(path, arrival, octets)| self.sort(path, arrival, octets, has_sink))
            .inspect(|_| esp_in.set(esp_in.get() + 1));
        match sink {
            Some(sink) => sink.esp_batch(self.socket.lane, &mut esp),
            None => esp.for_each(drop),
        }
        self.shared.counters.esp_in.fetch_add(esp_in.get(), Relaxed);
    }

    /// Gives ESP back, and sees to everything else.
    fn sort<'a>(
        &self,
        path: Path,
        arrival: Arrival,
        octets: &'a mut [u8],
        has_sink: bool,
    ) -> Option<EspPacket<'a>> {
        if !self.socket.nat {
            self.ike(path, arrival.ifindex, octets);
        } else if *octets == KEEPALIVE {
            // RFC 3948 §4: a keepalive proves nothing about the peer; it ends here.
            self.shared.counters.keepalives_in.fetch_add(1, Relaxed);
        } else if let Some(message) = octets.strip_prefix(&NON_ESP_MARKER) {
            self.ike(path, arrival.ifindex, message);
        } else if octets.len() < MIN_ESP {
            self.malformed();
        } else if has_sink {
            return Some(EspPacket { path, class: arrival.class, octets });
        } else {
            self.shared.counters.esp_dropped.fetch_add(1, Relaxed);
        }
        None
    }

    fn ike(&self, path: Path, ifindex: u32, message: &[u8]) {
        if message.len() < MIN_IKE {
            return self.malformed();
        }
        let counters = &self.shared.counters;
        match self.ike.try_reserve() {
            Ok(permit) => {
                counters.ike_in.fetch_add(1, Relaxed);
                permit.send(IkeDatagram { path, bytes: message.to_vec(), ifindex });
            }
            Err(TrySendError::Full(()) | TrySendError::Closed(())) => {
                counters.ike_dropped.fetch_add(1, Relaxed);
            }
        }
    }

    fn malformed(&self) {
        self.shared.counters.malformed.fetch_add(1, Relaxed);
    }
}

/// Buffers for one `recvmmsg`.
struct Batch {
    octets: Vec<u8>,
    names: Vec<SockAddrStorage>,
    controls: Vec<control::Control>,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
    eager: Eager,
}

impl Batch {
    fn new() -> Self {
        // SAFETY: both are plain data for which all zero octets are valid.
        let (vector, header): (libc::iovec, libc::mmsghdr) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        Batch {
            octets: vec![0; BATCH * ROOM],
            names: (0..BATCH).map(|_| SockAddrStorage::zeroed()).collect(),
            controls: vec![control::Control::new(); BATCH],
            vectors: vec![vector; BATCH],
            headers: vec![header; BATCH],
            eager: Eager::default(),
        }
    }

    /// Waits for at least one datagram; how many there are.
    fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        let rooms = self.octets.chunks_exact_mut(ROOM);
        let addresses = self.names.iter_mut().zip(&mut self.controls);
        for (((header, vector), room), (name, control)) in
            self.headers.iter_mut().zip(&mut self.vectors).zip(rooms).zip(addresses)
        {
            vector.iov_base = room.as_mut_ptr().cast();
            vector.iov_len = room.len();
            header.msg_len = 0;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_namelen = name.size_of();
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_control = control.as_mut_ptr();
            header.msg_hdr.msg_controllen = control::Control::CAPACITY as _;
            header.msg_hdr.msg_flags = 0;
        }
        let mut take = |flags: libc::c_int| {
            // SAFETY: every header points into buffers of this batch, which stay in place and unused
            // by others during the call.
            let count = unsafe {
                libc::recvmmsg(
                    socket.fd(),
                    self.headers.as_mut_ptr(),
                    BATCH as libc::c_uint,
                    flags as _,
                    std::ptr::null_mut(),
                )
            };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        };
        let mut wait = self.eager.wait();
        while wait.is_quick() {
            match take(libc::MSG_DONTWAIT) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && wait.again() => {}
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
                done => return done,
            }
        }
        take(libc::MSG_WAITFORONE)
    }

    /// The first `count` datagrams of the last receive; `None` for one that is cut or lacks an address.
    fn datagrams(
        &mut self,
        count: usize,
        port: u16,
    ) -> impl Iterator<Item = Option<(Path, Arrival, &mut [u8])>> {
        let rooms = self.octets.chunks_exact_mut(ROOM);
        self.headers.iter().zip(&self.names).zip(rooms).take(count).map(
            move |((header, name), room)| {
                let len = usize::try_from(header.msg_len).ok()?;
                if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                    return None;
                }
                // SAFETY: the header was filled by `receive` and its control buffer is ours.
                let arrival = unsafe { control::arrival(&header.msg_hdr)? };
                // SAFETY: recvmmsg wrote an address of msg_namelen octets into the storage.
                let remote =
                    unsafe { SockAddr::new(copy(name), header.msg_hdr.msg_namelen) }.as_socket()?;
                let path = Path::new(SocketAddr::new(arrival.local, port), remote);
                Some((path, arrival, room.get_mut(..len)?))
            },
        )
    }
}

/// The datagrams that the kernel has put together to one (UDP_GRO).
fn pieces(
    path: Path,
    arrival: Arrival,
    octets: &mut [u8],
) -> impl Iterator<Item = (Path, Arrival, &mut [u8])> {
    // An empty datagram is one too.
    let (whole, several) = match arrival.segment {
        Some(_) if !octets.is_empty() => (None, octets),
        _ => (Some(octets), Default::default()),
    };
    let size = arrival.segment.unwrap_or(1);
    let several = several.chunks_mut(size);
    whole.into_iter().chain(several).map(move |octets| (path, arrival, octets))
}

fn copy(name: &SockAddrStorage) -> SockAddrStorage {
    // SAFETY: the storage is plain octets without a destructor.
    unsafe { std::ptr::read(name) }
}
