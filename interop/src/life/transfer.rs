//! Much that goes through the tunnel over TCP, of which each octet is looked at.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fail;
use crate::failure::{Context, Result};
use crate::topology::{Node, Topology};

const PORT: u16 = 7200;
/// How much goes at a time, and the time from one to the next: 8 MB/s, which leaves processors to the
/// daemons and lasts longer than the moves.
const CHUNK: usize = 64 << 10;
const PACE: Duration = Duration::from_millis(8);
/// How long either end may hear nothing of the other.
const STUCK: Duration = Duration::from_secs(20);

/// A transfer under way, from the client to a host behind the gateway.
pub struct Transfer {
    enough: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Transfer {
    /// Starts it; no fewer octets than `least` go through.
    ///
    /// # Errors
    /// There is no connection.
    pub fn start(topology: &Topology, host: IpAddr, least: u64) -> Result<Self> {
        let listener = topology.within(Node::Gateway, move || {
            TcpListener::bind((host, PORT)).context("a listener behind the gateway")
        })??;
        let stream = topology.within(Node::Client, move || {
            TcpStream::connect_timeout(&(host, PORT).into(), STUCK).context("TCP to the gateway")
        })??;
        stream.set_write_timeout(Some(STUCK)).context("write timeout")?;
        let (accepted, _) = listener.accept().context("TCP from the client")?;
        accepted.set_read_timeout(Some(STUCK)).context("read timeout")?;
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        Ok(Self {
            enough,
            sender: std::thread::spawn(move || send(stream, least, &told)),
            receiver: std::thread::spawn(move || receive(accepted)),
        })
    }

    /// Lets it come to its end: all that was sent has arrived, in its place.
    ///
    /// # Errors
    /// It has not, or the connection broke.
    pub fn finish(self) -> Result<()> {
        self.enough.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Result<u64>>| {
            thread.join().map_err(|_| fail!("a thread of the transfer died"))?
        };
        let (sent, received) = (join(self.sender), join(self.receiver));
        let (sent, received) = (sent.context("sending")?, received.context("receiving")?);
        if sent == received { Ok(()) } else { Err(fail!("{received} of {sent} octets arrived")) }
    }
}

fn send(mut stream: TcpStream, least: u64, enough: &AtomicBool) -> Result<u64> {
    let mut sent = 0;
    let mut next = Instant::now();
    let mut chunk = vec![0; CHUNK];
    while sent < least || !enough.load(Ordering::Relaxed) {
        fill(&mut chunk, sent);
        stream.write_all(&chunk).context(format!("after {sent} octets"))?;
        sent += CHUNK as u64;
        // What a standstill has held up is not made up for: a flood would push all other packets aside.
        next = (next + PACE).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    stream.shutdown(Shutdown::Write).context("end of the transfer")?;
    Ok(sent)
}

fn receive(mut stream: TcpStream) -> Result<u64> {
    let mut received = 0;
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let mut filled = 0;
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match stream.read(rest).context(format!("after {received} octets"))? {
                0 => break,
                read => filled += read,
            }
        }
        fill(&mut expected, received);
        if chunk.get(..filled) != expected.get(..filled) {
            return Err(fail!("octets {received} and on are not those that were sent"));
        }
        received += filled as u64;
        if filled < CHUNK {
            return Ok(received);
        }
    }
}

/// What is at this place of the transfer: each eight octets are others, so none can be in the wrong place.
fn fill(chunk: &mut [u8], at: u64) {
    for (index, eight) in (at / 8..).zip(chunk.chunks_mut(8)) {
        // An odd factor makes a permutation of 64-bit numbers.
        let word = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        eight.iter_mut().zip(word).for_each(|(octet, value)| *octet = value);
    }
}
