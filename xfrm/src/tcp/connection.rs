//! One connection: what waits to be sent on it, and whether it is of use.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bewick_ike::wire::stream::{self, STREAM_PREFIX};
use tokio::{net::TcpStream, sync::Notify};

/// Octets that may wait before ESP is dropped: a tenth of a second at 20 Mbit/s, for a longer queue helps
/// nobody (RFC 9329 §9.5).
const MOST_ESP: usize = 256 << 10;

/// Octets that may wait before a connection is given up: ESP stops before, and IKE is never as much.
const MOST: usize = 1 << 20;

/// See the module.
pub(super) struct Connection {
    stream: OnceLock<TcpStream>,
    queue: Mutex<Queue>,
    /// something waits that could not be written at once, or the end has come
    pub(super) wake: Notify,
    ours: bool,
    used: AtomicBool,
    /// since when no IKE_SA uses it; when it was opened here, when the last IKE message went
    idle: Mutex<Instant>,
}

#[derive(Default)]
struct Queue {
    octets: Vec<u8>,
    /// what has been written of it
    start: usize,
    closed: bool,
}

impl Connection {
    /// One that is to be opened: the prefix comes first (RFC 9329 §4).
    pub(super) fn to_open() -> Self {
        let queue = Queue { octets: STREAM_PREFIX.to_vec(), ..Queue::default() };
        Connection::new(true, queue)
    }

    /// One that a peer has opened.
    pub(super) fn accepted(stream: TcpStream) -> Self {
        let connection = Connection::new(false, Queue::default());
        connection.opened(stream);
        connection
    }

    fn new(ours: bool, queue: Queue) -> Self {
        Connection {
            stream: OnceLock::new(),
            queue: Mutex::new(queue),
            wake: Notify::new(),
            ours,
            used: AtomicBool::new(false),
            idle: Mutex::new(Instant::now()),
        }
    }

    /// It is open now; what waits goes out.
    pub(super) fn opened(&self, stream: TcpStream) {
        // It is opened once.
        let _ = self.stream.set(stream);
        self.wake.notify_one();
    }

    pub(super) fn stream(&self) -> Option<&TcpStream> {
        self.stream.get()
    }

    pub(super) fn send_ike(&self, message: &[u8]) -> io::Result<()> {
        if self.ours {
            self.touch();
        }
        self.send(MOST, |out| stream::emit_ike_frame(message, out))
    }

    pub(super) fn send_esp(&self, packet: &[u8]) -> io::Result<()> {
        self.send(MOST_ESP, |out| stream::emit_esp_frame(packet, out))
    }

    fn send(
        &self,
        most: usize,
        emit: impl FnOnce(&mut Vec<u8>) -> Result<(), stream::StreamError>,
    ) -> io::Result<()> {
        let mut queue = self.queue();
        if queue.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if queue.octets.len() - queue.start > most {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let all_gone = queue.octets.is_empty();
        emit(&mut queue.octets).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        // Behind something that waits it waits as well.
        if all_gone {
            self.write(&mut queue)?;
        }
        if !queue.octets.is_empty() {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Writes what waits; whether it has all gone.
    pub(super) fn flush(&self) -> io::Result<bool> {
        let mut queue = self.queue();
        self.write(&mut queue)?;
        Ok(queue.octets.is_empty())
    }

    fn write(&self, queue: &mut Queue) -> io::Result<()> {
        let Some(stream) = self.stream.get() else { return Ok(()) };
        while let Some(rest) = queue.octets.get(queue.start..).filter(|rest| !rest.is_empty()) {
            match stream.try_write(rest) {
                Ok(octets) => queue.start += octets,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // What has gone makes room before the rest is moved more often than it is written.
                    if queue.start > MOST_ESP {
                        queue.octets.drain(..queue.start);
                        queue.start = 0;
                    }
                    return Ok(());
                }
                Err(e) => {
                    queue.closed = true;
                    self.wake.notify_one();
                    return Err(e);
                }
            }
        }
        queue.octets.clear();
        queue.start = 0;
        Ok(())
    }

    /// Nothing is sent from here on.
    pub(super) fn close(&self) {
        self.queue().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue().closed
    }

    /// It was opened here.
    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Relaxed)
    }

    pub(super) fn set_used(&self, used: bool) {
        if self.used.swap(used, Relaxed) && !used {
            self.touch();
        }
    }

    /// Whether nobody has used it for so long: one from a peer, or one that was opened here.
    pub(super) fn is_idle(&self, grace: Duration, own_grace: Duration) -> bool {
        let grace = if self.ours { own_grace } else { grace };
        !self.is_used() && self.idle_since().elapsed() >= grace
    }

    /// Since when nobody has used it; when it was opened here, since the last IKE message.
    pub(super) fn idle_since(&self) -> Instant {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
