//! As many small UDP packets as a tunnel carries, in batches as QUIC sends them: what makes and counts
//! them is to leave the processors to the tunnel.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fail;
use crate::failure::{Context, Result};

/// Octets of UDP payload in an IPv4 packet of 64 octets.
pub const SMALL: usize = 64 - 20 - 8;
/// Packets in one send: what every kernel that has UDP_SEGMENT cuts.
const TOGETHER: usize = 64;
/// `include/uapi/linux/udp.h`
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
/// How long nothing comes before what was on the way has come.
const SILENCE: Duration = Duration::from_millis(300);

/// What has come through.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pumped {
    /// Packets.
    pub delivered: u64,
    /// How many of them came after a later one.
    pub reordered: u64,
    /// From the first to the last.
    pub took: Duration,
}

/// Sends numbered packets from a connected socket to where `to` receives, as fast as it can for `time`.
///
/// # Errors
/// The kernel has no batches of UDP packets, or no packet arrives.
pub fn pump(from: &UdpSocket, to: &UdpSocket, time: Duration) -> Result<Pumped> {
    set(from, UDP_SEGMENT, SMALL as libc::c_int).context("UDP_SEGMENT")?;
    set(to, UDP_GRO, 1).context("UDP_GRO")?;
    to.set_read_timeout(Some(SILENCE)).context("receive timeout")?;
    let done = AtomicBool::new(false);
    let pumped = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, &done));
        send(from, time);
        done.store(true, Ordering::Relaxed);
        receiver.join().unwrap_or_default()
    });
    if pumped.delivered == 0 {
        return Err(fail!("no packet of {SMALL} octets arrives"));
    }
    Ok(pumped)
}

fn send(socket: &UdpSocket, time: Duration) {
    let start = Instant::now();
    let mut batch = [0; TOGETHER * SMALL];
    let mut number = 0_u64;
    while start.elapsed() < time {
        for packet in batch.chunks_exact_mut(SMALL) {
            number += 1;
            packet[..8].copy_from_slice(&number.to_be_bytes());
        }
        // A full queue is what it is about: what does not leave is not delivered.
        let _ = socket.send(&batch);
    }
}

fn receive(socket: &UdpSocket, done: &AtomicBool) -> Pumped {
    let mut buffer = vec![0; 1 << 16];
    let (mut pumped, mut highest) = (Pumped::default(), 0);
    let mut first: Option<Instant> = None;
    loop {
        let Ok(len) = socket.recv(&mut buffer) else {
            if done.load(Ordering::Relaxed) {
                return pumped;
            }
            continue;
        };
        let start = *first.get_or_insert_with(Instant::now);
        // The kernel puts packets of one length together, and nothing else is sent here.
        for packet in buffer.get(..len).unwrap_or_default().chunks(SMALL) {
            let Some(number) = packet.first_chunk().map(|octets| u64::from_be_bytes(*octets))
            else {
                continue;
            };
            pumped.delivered += 1;
            pumped.reordered += u64::from(number < highest);
            highest = highest.max(number);
        }
        pumped.took = start.elapsed();
    }
}

fn set(socket: &UdpSocket, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pumped_is_counted_and_in_order() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.connect(to.local_addr().unwrap()).unwrap();
        let pumped = pump(&from, &to, Duration::from_millis(50)).unwrap();
        assert!(pumped.delivered >= TOGETHER as u64);
        assert_eq!(pumped.reordered, 0);
    }

    #[test]
    fn a_packet_behind_a_later_one_is_seen() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        to.set_read_timeout(Some(SILENCE)).unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in [1_u64, 3, 2, 4] {
            let mut packet = [0; SMALL];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            from.send_to(&packet, to.local_addr().unwrap()).unwrap();
        }
        let pumped = receive(&to, &AtomicBool::new(true));
        assert_eq!((pumped.delivered, pumped.reordered), (4, 1));
    }
}
