//! TCP connections that carry IKE and ESP (RFC 9329).
//!
//! One thread accepts, opens, reads and closes them all. Whoever sends writes into the connection at once and
//! never waits: what the network does not take is kept for a moment, and ESP beyond that is lost, as on any
//! link that is full. Whether a connection is of use is for the owner to say ([`TcpStreams::keep`]): one that
//! no IKE_SA uses is closed soon, so that strangers hold nothing for long (RFC 9329 §6.1, §11).

mod connection;
mod serve;
mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bewick_ike::Path;
use tokio::sync::mpsc;

use crate::udp::{EspSink, IkeDatagram, UdpError};
use connection::Connection;

/// What goes over TCP, and how much of it there may be.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// the port to accept connections on; `None` for one who only opens them, 0 for any port that is free
    pub listen: Option<u16>,
    /// connections at most
    pub most: usize,
    /// connections at most that no IKE_SA uses
    pub most_unused: usize,
    /// of these from one address, or one /64 of IPv6
    pub most_unused_of_one: usize,
    /// a connection from a peer is closed after so long without an IKE_SA that uses it
    pub grace: Duration,
    /// one that was opened here is closed so long after the last IKE message if no IKE_SA uses it
    pub own_grace: Duration,
}

impl Default for TcpConfig {
    fn default() -> Self {
        TcpConfig {
            listen: None,
            most: 20_000,
            most_unused: 512,
            most_unused_of_one: 64,
            grace: Duration::from_secs(15),
            own_grace: Duration::from_secs(4),
        }
    }
}

/// IKE messages of connections that wait for the daemon.
const QUEUE: usize = 64;

/// How sockets are bound and marked; the same as for UDP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footing {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) mark: Option<u32>,
}

/// What the thread and the senders share.
struct Shared {
    config: TcpConfig,
    footing: Footing,
    connections: Mutex<BTreeMap<Path, Arc<Connection>>>,
    sink: RwLock<Option<Arc<dyn EspSink>>>,
    /// few: what waits here waits in its connection too
    ike: mpsc::Sender<IkeDatagram>,
    /// no more than one for each connection that was known
    gone: mpsc::UnboundedSender<Path>,
}

/// An order to the thread.
enum Order {
    Open { path: Path, ifindex: u32, connection: Arc<Connection> },
    Stop,
}

/// What comes from connections.
pub(crate) struct Arrivals {
    /// IKE messages: a queue of their own, so that connections that push leave UDP its place
    pub(crate) ike: mpsc::Receiver<IkeDatagram>,
    /// the path of each connection that has ended
    pub(crate) gone: mpsc::UnboundedReceiver<Path>,
}

/// The connections, and the thread that serves them; dropping it closes all.
pub(crate) struct TcpStreams {
    shared: Arc<Shared>,
    orders: mpsc::UnboundedSender<Order>,
    port: Option<u16>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl TcpStreams {
    /// Listens, if that is asked for, and starts the thread.
    pub(crate) fn open(
        config: &TcpConfig,
        footing: Footing,
        notes: &mut Vec<String>,
    ) -> Result<(TcpStreams, Arrivals), UdpError> {
        let (port, listeners) = match config.listen {
            Some(port) => {
                let (port, listeners) = socket::listen(port, footing, notes)?;
                (Some(port), listeners)
            }
            None => (None, Vec::new()),
        };
        let (gone, gone_receiver) = mpsc::unbounded_channel();
        let (ike, ike_receiver) = mpsc::channel(QUEUE);
        let (orders, order_receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            config: config.clone(),
            footing,
            connections: Mutex::default(),
            sink: RwLock::default(),
            ike,
            gone,
        });
        let failed =
            |source| UdpError::Io { operation: "starting the thread for TCP".into(), source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let served = shared.clone();
        let thread = thread::Builder::new()
            .name("tcp".into())
            .spawn(move || runtime.block_on(serve::serve(served, listeners, order_receiver)))
            .map_err(failed)?;
        let arrivals = Arrivals { ike: ike_receiver, gone: gone_receiver };
        Ok((TcpStreams { shared, orders, port, thread: Mutex::new(Some(thread)) }, arrivals))
    }

    /// The port that connections are accepted on.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    pub(crate) fn set_esp_sink(&self, sink: Option<Arc<dyn EspSink>>) {
        *self.shared.sink.write().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    /// Sends an IKE message on the connection of `path`, which is opened out of the interface `ifindex` if
    /// there is none and it would not be for the peer to do that.
    pub(crate) fn send_ike(&self, path: &Path, ifindex: u32, bytes: &[u8]) -> io::Result<()> {
        let mut connections = self.shared.connections();
        if let Some(connection) = connections.get(path).cloned() {
            drop(connections);
            return connection.send_ike(bytes);
        }
        if Some(path.local.port()) == self.port {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if connections.len() >= self.shared.config.most {
            return Err(io::Error::other("there are too many TCP connections already"));
        }
        let connection = Arc::new(Connection::to_open());
        connection.send_ike(bytes)?;
        connections.insert(*path, connection.clone());
        let order = Order::Open { path: *path, ifindex, connection };
        self.orders.send(order).map_err(|_| io::ErrorKind::NotConnected.into())
    }

    /// Sends an ESP packet on the connection of `path`, if there is one and it has room.
    pub(crate) fn send_esp(&self, path: &Path, packet: &[u8]) -> io::Result<()> {
        let connection = self.shared.connections().get(path).cloned();
        connection.ok_or(io::ErrorKind::NotConnected)?.send_esp(packet)
    }

    /// These connections are used by IKE_SAs; all others are closed soon.
    pub(crate) fn keep(&self, used: &BTreeSet<Path>) {
        for (path, connection) in self.shared.connections().iter() {
            connection.set_used(used.contains(path));
        }
    }

    /// Closes all, without an event, and ends the thread.
    pub(crate) fn shutdown(&self) {
        self.set_esp_sink(None);
        // A thread that has ended already needs no order.
        let _ = self.orders.send(Order::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last owner may be a sink in this thread: it can't wait for itself.
        if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Drop for TcpStreams {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<Path, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more connection from `remote` may be accepted. Where strangers hold all places, the one
    /// who has held his for longest makes room. A peer is a stranger until its IKE_SA stands and that has been
    /// told ([`TcpStreams::keep`]).
    fn admits(&self, remote: IpAddr) -> bool {
        let connections = self.connections();
        let unused = connections.iter().filter(|(_, one)| !one.is_used() && !one.is_closed());
        let (mut all, mut of_one) = (0, 0);
        let mut oldest: Option<(Instant, &Path, &Arc<Connection>)> = None;
        for (path, connection) in unused {
            all += 1;
            of_one += usize::from(network(path.remote.ip()) == network(remote));
            let since = connection.idle_since();
            let older = oldest.is_none_or(|(other, ..)| since < other);
            if !connection.is_ours() && older {
                oldest = Some((since, path, connection));
            }
        }
        if of_one >= self.config.most_unused_of_one {
            return false;
        }
        if connections.len() < self.config.most && all < self.config.most_unused {
            return true;
        }
        let Some((_, path, connection)) = oldest else { return false };
        tracing::debug!(%path, "this connection without an IKE_SA makes room for another");
        connection.close();
        true
    }

    /// The connection is no more.
    fn forget(&self, path: Path, connection: &Arc<Connection>) {
        let mut connections = self.connections();
        if connections.get(&path).is_some_and(|there| Arc::ptr_eq(there, connection)) {
            connections.remove(&path);
            // Nobody listens when the daemon ends.
            let _ = self.gone.send(path);
        }
    }
}

/// What counts as one place: an IPv4 address, and of IPv6, where everybody has very many, a /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
