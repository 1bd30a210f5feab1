//! The thread of all connections.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bewick_ike::{
    Path,
    wire::{StreamFrame, StreamReader},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{JoinSet, yield_now},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{Order, Shared, connection::Connection, socket};
use crate::udp::IkeDatagram;

/// How long a connection may take to come up; the machines try something else before.
const CONNECT: Duration = Duration::from_secs(10);

/// How often is looked for connections that nobody uses.
const LOOK: Duration = Duration::from_millis(250);

/// What is no packet at all, in a row, before a stream counts as corrupt (RFC 9329 §6.1).
const MOST_MALFORMED: u32 = 16;

/// IKE messages that a connection has free before an IKE_SA uses it: more than a set-up takes.
const FREE: u32 = 8;
/// How far apart the others are taken.
const PACE: Duration = Duration::from_millis(250);

/// An IKE header (RFC 7296 §3.1).
const MIN_IKE: usize = 28;
/// SPI, sequence number and an integrity check value of 96 bits.
const MIN_ESP: usize = 20;

pub(super) async fn serve(
    shared: Arc<Shared>,
    listeners: Vec<std::net::TcpListener>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    // Dropping it ends all tasks, and with them all connections.
    let mut tasks = JoinSet::new();
    for listener in listeners {
        match socket::adopt(listener) {
            Ok(listener) => drop(tasks.spawn(accept(shared.clone(), listener))),
            Err(error) => tracing::error!(%error, "listening for TCP connections"),
        }
    }
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Open { path, ifindex, connection }) => {
                    tasks.spawn(open(shared.clone(), path, ifindex, connection));
                }
                Some(Order::Stop) | None => break,
            },
            _ = look.tick() => close_unused(&shared),
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
    shared.connections().clear();
}

fn close_unused(shared: &Shared) {
    let (grace, own_grace) = (shared.config.grace, shared.config.own_grace);
    for (path, connection) in shared.connections().iter() {
        if connection.is_idle(grace, own_grace) {
            tracing::debug!(%path, "no IKE_SA uses this connection");
            connection.close();
        }
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    if !shared.admits(remote.ip()) {
                        tracing::debug!(%remote, "too many connections without an IKE_SA");
                        continue;
                    }
                    let Ok(local) = stream.local_addr() else { continue };
                    if socket::settle(&stream).is_err() {
                        continue;
                    }
                    let path = Path::tcp(local, remote);
                    let connection = Arc::new(Connection::accepted(stream));
                    let old = shared.connections().insert(path, connection.clone());
                    // The kernel has no two of the same ends: that one is over and does not know it yet.
                    if let Some(old) = old {
                        old.close();
                    }
                    tasks.spawn(run(shared.clone(), path, connection, StreamReader::responder()));
                }
                Err(error) => {
                    // Without file descriptors, say; what is open already goes on.
                    tracing::warn!(%error, "accepting a TCP connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

async fn open(shared: Arc<Shared>, path: Path, ifindex: u32, connection: Arc<Connection>) {
    match timeout(CONNECT, socket::connect(path, ifindex, shared.footing)).await {
        Ok(Ok(stream)) => {
            connection.opened(stream);
            run(shared, path, connection, StreamReader::originator()).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(%path, %error, "no TCP connection");
            connection.close();
            shared.forget(path, &connection);
        }
        Err(_) => {
            tracing::debug!(%path, "no TCP connection: no answer");
            connection.close();
            shared.forget(path, &connection);
        }
    }
}

/// Reads and writes until the connection ends, however it does.
async fn run(shared: Arc<Shared>, path: Path, connection: Arc<Connection>, reader: StreamReader) {
    let Some(stream) = connection.stream() else { return };
    tokio::select! {
        result = read(&shared, path, (&connection, stream), reader) => match result {
            Ok(()) => tracing::debug!(%path, "the peer has closed the connection"),
            Err(error) => tracing::debug!(%path, %error, "the connection is lost"),
        },
        () = write(&connection, stream) => {}
    }
    connection.close();
    shared.forget(path, &connection);
}

async fn read(
    shared: &Shared,
    path: Path,
    (connection, stream): (&Connection, &TcpStream),
    mut reader: StreamReader,
) -> io::Result<()> {
    let (mut malformed, mut strange) = (0, 0);
    loop {
        // The others have their turn, however fast this one sends.
        yield_now().await;
        stream.readable().await?;
        match stream.try_read(reader.room()) {
            Ok(0) => return Ok(()),
            Ok(octets) => reader.filled(octets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        loop {
            let message = {
                let frame = reader.next_frame();
                match frame.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
                    None => break,
                    Some(StreamFrame::Nothing) => continue,
                    Some(StreamFrame::Ike(message)) if message.len() >= MIN_IKE => message.to_vec(),
                    Some(StreamFrame::Esp(packet)) if packet.len() >= MIN_ESP => {
                        malformed = 0;
                        let sink =
                            shared.sink.read().unwrap_or_else(PoisonError::into_inner).clone();
                        if let Some(sink) = sink {
                            // RFC 9329 §6.8: the class of the outer packet is that of the connection.
                            sink.esp(path, 0, packet);
                        }
                        continue;
                    }
                    Some(StreamFrame::Ike(_) | StreamFrame::Esp(_)) => {
                        malformed += 1;
                        if malformed >= MOST_MALFORMED {
                            return Err(io::Error::new(io::ErrorKind::InvalidData, "no packets"));
                        }
                        continue;
                    }
                }
            };
            malformed = 0;
            // Nobody sends again what a stream has delivered (RFC 9329 §6.2), so that it waits for room.
            if shared.ike.send(IkeDatagram { path, bytes: message, ifindex: 0 }).await.is_err() {
                return Ok(());
            }
            // A stranger who pushes is no faster than this.
            strange = if connection.is_used() { 0 } else { strange + 1 };
            if strange > FREE {
                sleep(PACE).await;
            }
        }
    }
}

/// Returns when nothing can be sent any more.
async fn write(connection: &Connection, stream: &TcpStream) {
    loop {
        connection.wake.notified().await;
        loop {
            if connection.is_closed() {
                return;
            }
            match connection.flush() {
                Ok(true) => break,
                Ok(false) => tokio::select! {
                    ready = stream.writable() => {
                        if ready.is_err() {
                            return;
                        }
                    }
                    // It may be the end.
                    () = connection.wake.notified() => {}
                },
                Err(_) => return,
            }
        }
    }
}
