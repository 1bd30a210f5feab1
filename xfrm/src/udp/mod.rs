//! The UDP sockets on ports 500 and 4500 that IKE and ESP in UDP share (RFC 7296 §2.23, RFC 3948).
//!
//! The non-ESP marker (RFC 3948 §2.2) begins and ends here: callers see IKE messages without it.
//! One thread per socket receives; IKE goes to a bounded channel, ESP to an [`EspSink`] within the
//! receiving thread. Sends name the source address and, where known, the interface, so that any
//! uplink can be used whatever the routing metrics say. ICMP errors about what was sent go to a channel
//! of their own.

mod control;
mod errors;
mod receive;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use bewick_ike::Path;
use tokio::sync::mpsc;

use crate::tcp::{Arrivals, Footing, TcpConfig, TcpStreams};
use errors::Unreachable;
use socket::Socket;

/// The port of IKE without NAT (RFC 7296 §2).
pub const IKE_PORT: u16 = 500;
/// The port of IKE and ESP in UDP (RFC 3948 §2.1).
pub const NAT_PORT: u16 = 4500;

/// Four zero octets where an ESP packet would have its SPI (RFC 3948 §2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// The one octet that keeps a NAT's mapping (RFC 3948 §2.3).
const KEEPALIVE: [u8; 1] = [0xff];

/// How to open the sockets.
#[derive(Clone, Debug)]
pub struct UdpConfig {
    /// the port of IKE alone, [`IKE_PORT`]; 0 for any that is free
    pub ike_port: u16,
    /// the port of IKE and ESP, [`NAT_PORT`]; 0 for any that is free
    pub nat_port: u16,
    /// the IPv4 address to bind to, unspecified for all
    pub bind_v4: Ipv4Addr,
    /// the IPv6 address to bind to, unspecified for all; `None` for no IPv6
    pub bind_v6: Option<Ipv6Addr>,
    /// SO_MARK of all that is sent
    pub mark: Option<u32>,
    /// size of the receive and send buffers to ask for, in octets
    pub buffer: usize,
    /// IKE messages that wait for the daemon at most; further ones are dropped and counted
    pub queue: usize,
    /// threads that receive on the NAT port, for each family: a peer's packets always come to the same
    /// one, so that they stay in order
    pub receivers: usize,
    /// whether paths may be TCP connections too (RFC 9329)
    pub tcp: Option<TcpConfig>,
}

impl Default for UdpConfig {
    fn default() -> Self {
        UdpConfig {
            ike_port: IKE_PORT,
            nat_port: NAT_PORT,
            bind_v4: Ipv4Addr::UNSPECIFIED,
            bind_v6: Some(Ipv6Addr::UNSPECIFIED),
            mark: None,
            buffer: 4 << 20,
            queue: 1024,
            receivers: 1,
            tcp: None,
        }
    }
}

/// Why the sockets could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// another program has the port
    #[error(
        "UDP port {port} is in use by another program ({family}); `ss -lunp 'sport = :{port}'` \
         shows which: stop it and start again"
    )]
    InUse {
        /// the port
        port: u16,
        /// `IPv4` or `IPv6`
        family: &'static str,
    },
    /// another program has the TCP port
    #[error(
        "TCP port {port} is in use by another program ({family}); `ss -ltnp 'sport = :{port}'` \
         shows which: stop it and start again, or have another port in tcp_listen"
    )]
    TcpInUse {
        /// the port
        port: u16,
        /// `IPv4` or `IPv6`
        family: &'static str,
    },
    /// not allowed to bind a port below 1024
    #[error(
        "no permission to use port {port}: run as root, or with CAP_NET_BIND_SERVICE and \
         CAP_NET_ADMIN"
    )]
    Denied {
        /// the port
        port: u16,
    },
    /// a system call failed
    #[error("{operation}: {source}")]
    Io {
        /// what was being done
        operation: String,
        /// the system's error
        source: io::Error,
    },
}

/// An IKE message from the network, without the non-ESP marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeDatagram {
    /// local: the address it was sent to and the socket's port; remote: where it came from
    pub path: Path,
    /// the message
    pub bytes: Vec<u8>,
    /// the interface that it came in on, 0 if not known
    pub ifindex: u32,
}

/// Takes the ESP packets that come in on the NAT port.
pub trait EspSink: Send + Sync {
    /// One packet, from its SPI on, that came with the traffic class `class` (DSCP and ECN) in its
    /// IP header. Called in a receiving thread: must not wait for long.
    fn esp(&self, path: Path, class: u8, packet: &mut [u8]);

    /// Packets that came together, in their order; as [`EspSink::esp`] for each. `lane` is the number of
    /// the thread, from 0 on: less than [`UdpConfig::receivers`].
    fn esp_batch<'a>(&self, _lane: usize, packets: &mut dyn Iterator<Item = EspPacket<'a>>) {
        for packet in packets {
            self.esp(packet.path, packet.class, packet.octets);
        }
    }
}

/// One ESP packet that came in, as [`EspSink::esp`] gets it.
pub struct EspPacket<'a> {
    /// local: where it was sent to; remote: where it came from
    pub path: Path,
    /// the traffic class of its IP header
    pub class: u8,
    /// from the SPI on
    pub octets: &'a mut [u8],
}

/// Packets in one call of [`UdpSockets::send_esp_batch`] at most: what every kernel that has
/// UDP_SEGMENT cuts.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// What the sockets did since they were opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// IKE messages handed to the daemon
    pub ike_in: u64,
    /// IKE messages dropped because the daemon was not quick enough
    pub ike_dropped: u64,
    /// ESP packets handed to the sink
    pub esp_in: u64,
    /// ESP packets dropped because there is no sink
    pub esp_dropped: u64,
    /// NAT keepalives (RFC 3948 §2.3)
    pub keepalives_in: u64,
    /// datagrams that are none of these: too short, or without a destination address
    pub malformed: u64,
    /// errors of receiving system calls
    pub receive_errors: u64,
    /// sends that the system refused
    pub send_errors: u64,
    /// ICMP errors about what was sent
    pub icmp_errors: u64,
}

#[derive(Default)]
struct AtomicCounters {
    ike_in: AtomicU64,
    ike_dropped: AtomicU64,
    esp_in: AtomicU64,
    esp_dropped: AtomicU64,
    keepalives_in: AtomicU64,
    malformed: AtomicU64,
    receive_errors: AtomicU64,
    send_errors: AtomicU64,
}

/// What the receiving threads and the owner share.
struct Shared {
    stop: AtomicBool,
    sink: RwLock<Option<Arc<dyn EspSink>>>,
    counters: AtomicCounters,
    unreachable: Unreachable,
}

/// The open sockets and their receiving threads; dropping it ends both.
pub struct UdpSockets {
    sockets: Vec<Arc<Socket>>,
    ike_port: u16,
    nat_port: u16,
    interfaces: RwLock<BTreeMap<IpAddr, u32>>,
    notes: Vec<String>,
    shared: Arc<Shared>,
    unreachable: Mutex<Option<mpsc::Receiver<Path>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    tcp: Option<TcpStreams>,
    arrivals: Mutex<Streamed>,
}

/// IKE messages that come over TCP, and the paths of connections that have ended, until they are taken.
type Streamed = (Option<mpsc::Receiver<IkeDatagram>>, Option<mpsc::UnboundedReceiver<Path>>);

impl UdpSockets {
    /// Opens the sockets of both ports for IPv4 and IPv6 and starts to receive.
    ///
    /// Does without IPv6 where the machine has none; [`UdpSockets::notes`] says so then.
    pub fn open(
        config: &UdpConfig,
    ) -> Result<(Arc<UdpSockets>, mpsc::Receiver<IkeDatagram>), UdpError> {
        let mut notes = Vec::new();
        let (ike_port, mut sockets) = open_pair(config, config.ike_port, None, &mut notes)?;
        let (nat_port, nat_sockets) = open_pair(config, config.nat_port, Some(0), &mut notes)?;
        sockets.extend(nat_sockets);
        for lane in 1..config.receivers {
            sockets.extend(open_pair(config, nat_port, Some(lane), &mut notes)?.1);
        }
        notes.dedup();

        let (unreachable, hints) = Unreachable::new();
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            sink: RwLock::new(None),
            counters: AtomicCounters::default(),
            unreachable,
        });
        let (ike, receiver) = mpsc::channel(config.queue.max(1));
        let (tcp, arrivals) = match &config.tcp {
            Some(tcp) => {
                let footing = Footing { v4: config.bind_v4, v6: config.bind_v6, mark: config.mark };
                let (tcp, Arrivals { ike, gone }) = TcpStreams::open(tcp, footing, &mut notes)?;
                notes.dedup();
                (Some(tcp), (Some(ike), Some(gone)))
            }
            None => (None, (None, None)),
        };
        let mut udp = UdpSockets {
            sockets,
            ike_port,
            nat_port,
            interfaces: RwLock::default(),
            notes,
            shared,
            unreachable: Mutex::new(Some(hints)),
            threads: Mutex::default(),
            tcp,
            arrivals: Mutex::new(arrivals),
        };
        for socket in &udp.sockets {
            let thread = receive::spawn(socket.clone(), udp.shared.clone(), ike.clone())
                .map_err(|source| UdpError::Io { operation: "starting a thread".into(), source })?;
            udp.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok((Arc::new(udp), receiver))
    }

    /// The port of the sockets for IKE alone.
    pub fn ike_port(&self) -> u16 {
        self.ike_port
    }

    /// The port of the sockets for IKE and ESP.
    pub fn nat_port(&self) -> u16 {
        self.nat_port
    }

    /// The port on which TCP connections are accepted, if they are.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp.as_ref().and_then(TcpStreams::port)
    }

    /// What had to be done without, one sentence each, for the operator.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether addresses of IPv6 can be used.
    pub fn has_ipv6(&self) -> bool {
        self.sockets.iter().any(|socket| !socket.ipv4)
    }

    /// Sets which interface owns which local address; what is sent from an address that is not in
    /// the map (or with index 0) goes where routing sends it.
    pub fn set_interfaces(&self, interfaces: BTreeMap<IpAddr, u32>) {
        *self.interfaces.write().unwrap_or_else(PoisonError::into_inner) = interfaces;
    }

    /// Sets who takes ESP packets from the NAT port; without a sink they are dropped and counted.
    pub fn set_esp_sink(&self, sink: Option<Arc<dyn EspSink>>) {
        // Only for us: the kernel's own ESP in UDP takes datagrams as they come.
        let gro = sink.is_some();
        self.sockets.iter().filter(|socket| socket.nat).for_each(|socket| socket.set_gro(gro));
        if let Some(tcp) = &self.tcp {
            tcp.set_esp_sink(sink.clone());
        }
        *self.shared.sink.write().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    /// These TCP connections are used by IKE_SAs; all others are closed in a few seconds (RFC 9329 §6.1).
    pub fn keep_connections(&self, used: &BTreeSet<Path>) {
        if let Some(tcp) = &self.tcp {
            tcp.keep(used);
        }
    }

    /// IKE messages that come over TCP; `None` the second time, or without TCP.
    pub fn take_streamed(&self) -> Option<mpsc::Receiver<IkeDatagram>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).0.take()
    }

    /// The paths of TCP connections that have ended or could not be opened; `None` the second time, or
    /// without TCP.
    pub fn take_disconnected(&self) -> Option<mpsc::UnboundedReceiver<Path>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).1.take()
    }

    /// Has the kernel take ESP from the NAT port into its own data plane (UDP_ENCAP), or stop it.
    ///
    /// With it on, IKE passes the kernel's policies in the clear ([`crate::kernel::bypass`]). An
    /// error is the system's, from the first socket that refused.
    pub fn set_kernel_encap(&self, on: bool) -> io::Result<()> {
        if on {
            self.sockets.iter().try_for_each(|socket| socket.bypass())?;
        }
        self.sockets.iter().filter(|socket| socket.nat).try_for_each(|s| s.set_encap(on))
    }

    /// Sends the IKE message `bytes` along `path`, with the non-ESP marker if it leaves from the NAT
    /// port. Never waits; errors are the system's (address gone: EINVAL, no route: ENETUNREACH …).
    ///
    /// Over TCP it goes on the connection of the path. One that is ours to open is opened if there is none,
    /// and [`UdpSockets::take_disconnected`] says later if that fails.
    pub fn send_ike(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if path.is_tcp() {
            let ifindex = self.interface(path.local.ip());
            return self.over_tcp(|tcp| tcp.send_ike(path, ifindex, bytes));
        }
        let marker: &[u8] = if self.is_nat(path) { &NON_ESP_MARKER } else { &[] };
        self.send(path, 0, &[io::IoSlice::new(marker), io::IoSlice::new(bytes)], 0)
    }

    /// Sends an ESP packet in UDP along `path` (RFC 3948 §2.1), without allocating or waiting;
    /// `class` is the traffic class of its IP header, DSCP and ECN.
    /// Over TCP it goes on the connection of the path, without a class of its own (RFC 9329 §6.8).
    pub fn send_esp(&self, path: &Path, class: u8, packet: &[u8]) -> io::Result<()> {
        if path.is_tcp() {
            return self.over_tcp(|tcp| tcp.send_esp(path, packet));
        }
        self.send(path, class, &[io::IoSlice::new(packet)], 0)
    }

    /// Sends the ESP packets at `places` in `arena` along `path`: each has `len` octets, the last one may
    /// be shorter. With one call where the kernel can cut what it gets (UDP_SEGMENT), one by one where it
    /// or the path can't; otherwise as [`UdpSockets::send_esp`]. `tell` gets to know which have left or have not.
    pub(crate) fn send_esp_batch(
        &self,
        path: &Path,
        class: u8,
        arena: &[u8],
        places: &[Range<usize>],
        len: usize,
        mut tell: impl FnMut(Range<usize>, io::Result<()>),
    ) {
        let packets = places.iter().filter_map(|place| arena.get(place.clone()));
        let segment = u16::try_from(len).unwrap_or(0);
        let many = (2..=MAX_SEGMENTS).contains(&places.len()) && segment != 0 && !path.is_tcp();
        let socket = self.socket(path).filter(|socket| many && socket.may_cut());
        let mut refused = None;
        if let Some(socket) = socket {
            let mut parts = [io::IoSlice::new(&[]); MAX_SEGMENTS];
            for (to, packet) in parts.iter_mut().zip(packets.clone()) {
                *to = io::IoSlice::new(packet);
            }
            let parts = match adjacent(places).and_then(|all| arena.get(all)) {
                Some(all) => &[io::IoSlice::new(all)],
                None => parts.get(..places.len()).unwrap_or_default(),
            };
            match self.send(path, class, parts, segment) {
                // The packets are longer than the link takes, or its device can't make checksums.
                Err(error) if needs_one_by_one(&error) => refused = Some(socket),
                result => return tell(0..places.len(), result),
            }
        }
        let mut all = true;
        for (index, packet) in packets.enumerate() {
            let result = self.send_esp(path, class, packet);
            all &= result.is_ok();
            tell(index..index + 1, result);
        }
        if let Some(socket) = refused
            && all
        {
            socket.cannot_cut();
        }
    }

    /// Sends a NAT keepalive along `path` (RFC 3948 §2.3).
    /// None goes over TCP (RFC 9329 §6.6).
    pub fn send_keepalive(&self, path: &Path) -> io::Result<()> {
        if path.is_tcp() {
            return Ok(());
        }
        self.send(path, 0, &[io::IoSlice::new(&KEEPALIVE)], 0)
    }

    /// The paths along which something was sent that an ICMP error says could not be delivered (net,
    /// host or port unreachable); `None` the second time.
    ///
    /// A hint that anyone can forge (RFC 4555 §3.5). Each path is told of at most once a second, and
    /// none while many wait. With [`UdpSockets::set_kernel_encap`] there are none from the NAT port:
    /// the kernel keeps them for itself.
    pub fn take_unreachable(&self) -> Option<mpsc::Receiver<Path>> {
        self.unreachable.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the sockets did so far.
    pub fn counters(&self) -> UdpCounters {
        let c = &self.shared.counters;
        UdpCounters {
            ike_in: c.ike_in.load(Relaxed),
            ike_dropped: c.ike_dropped.load(Relaxed),
            esp_in: c.esp_in.load(Relaxed),
            esp_dropped: c.esp_dropped.load(Relaxed),
            keepalives_in: c.keepalives_in.load(Relaxed),
            malformed: c.malformed.load(Relaxed),
            receive_errors: c.receive_errors.load(Relaxed),
            send_errors: c.send_errors.load(Relaxed),
            icmp_errors: self.shared.unreachable.taken.load(Relaxed),
        }
    }

    /// Ends the receiving threads and waits for them; the channel of IKE messages closes.
    pub fn shutdown(&self) {
        self.shared.stop.store(true, Relaxed);
        self.set_esp_sink(None);
        if let Some(tcp) = &self.tcp {
            tcp.shutdown();
        }
        for socket in &self.sockets {
            socket.wake_receiver();
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // The last owner may be a sink in one of these threads: it can't wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    fn over_tcp(&self, send: impl FnOnce(&TcpStreams) -> io::Result<()>) -> io::Result<()> {
        let none = || io::Error::new(io::ErrorKind::Unsupported, "TCP is not configured");
        let result = self.tcp.as_ref().ok_or_else(none).and_then(send);
        if result.is_err() {
            self.shared.counters.send_errors.fetch_add(1, Relaxed);
        }
        result
    }

    fn is_nat(&self, path: &Path) -> bool {
        path.local.port() == self.nat_port
    }

    /// Which one sends along `path`.
    fn socket(&self, path: &Path) -> Option<&Socket> {
        let (nat, ipv4) = (self.is_nat(path), path.local.is_ipv4());
        self.sockets.iter().find(|s| s.nat == nat && s.ipv4 == ipv4).map(|socket| &**socket)
    }

    fn send(
        &self,
        path: &Path,
        class: u8,
        parts: &[io::IoSlice<'_>],
        segment: u16,
    ) -> io::Result<()> {
        let nat = self.is_nat(path);
        let ipv4 = path.local.is_ipv4();
        let result = if !nat && path.local.port() != self.ike_port {
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no socket has this local port"))
        } else if path.remote.is_ipv4() != ipv4 {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "the path's ends differ in family"))
        } else if let Some(socket) = self.socket(path) {
            let ifindex = self.interface(path.local.ip());
            socket.send(path, ifindex, class, parts, segment, &self.shared.unreachable)
        } else {
            Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "this machine has no IPv6"))
        };
        if result.as_ref().is_err_and(|error| segment == 0 || !needs_one_by_one(error)) {
            self.shared.counters.send_errors.fetch_add(1, Relaxed);
        }
        result
    }

    fn interface(&self, local: IpAddr) -> u32 {
        let interfaces = self.interfaces.read().unwrap_or_else(PoisonError::into_inner);
        interfaces.get(&local).copied().unwrap_or(0)
    }
}

impl Drop for UdpSockets {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Opens `port` for IPv4 and, if the machine can, the same port for IPv6; `lane` is that of a socket of
/// the NAT port.
fn open_pair(
    config: &UdpConfig,
    port: u16,
    lane: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<(u16, Vec<Arc<Socket>>), UdpError> {
    let v4 = Socket::open(SocketAddr::new(config.bind_v4.into(), port), lane, config, notes)?;
    let port = v4.port;
    let mut sockets = vec![Arc::new(v4)];
    if let Some(bind_v6) = config.bind_v6 {
        match Socket::open(SocketAddr::new(bind_v6.into(), port), lane, config, notes) {
            Ok(v6) => sockets.push(Arc::new(v6)),
            Err(UdpError::Io { source, .. }) if no_ipv6(&source) => {
                notes.push(format!("IPv6 is not available on this machine ({source}): IPv4 only"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((port, sockets))
}

/// All of `places` as one, if each begins where the one before ends.
fn adjacent(places: &[Range<usize>]) -> Option<Range<usize>> {
    let touch = places.windows(2).all(|two| matches!(two, [a, b] if a.end == b.start));
    let (first, last) = (places.first()?, places.last()?);
    touch.then_some(first.start..last.end)
}

/// Whether `error` may come of sending several datagrams with one call.
fn needs_one_by_one(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// Whether `error` means that there is no IPv6 at all: compiled out, or disabled by sysctl.
pub(crate) fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
    )
}

#[cfg(test)]
mod tests;
