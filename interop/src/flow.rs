//! Numbered packets through the tunnel, to see how long none arrives.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fail;
use crate::failure::{Context, Result};

/// How long packets may still be on the way after the last one was sent.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// The smallest packet, in octets: its number alone.
pub const SMALL: usize = 8;

/// A running flow in one direction.
pub struct Flow {
    spacing: Duration,
    stop_sending: Arc<AtomicBool>,
    stop_receiving: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Vec<(u64, Instant)>>,
}

/// What a flow showed.
pub struct Record {
    spacing: Duration,
    sent: u64,
    arrivals: Vec<(u64, Instant)>,
    end: Instant,
}

impl Flow {
    /// Sends a numbered packet of `size` octets, [`SMALL`] or more, every `spacing` from a connected socket to
    /// where `to` receives.
    ///
    /// # Errors
    /// The receiver's timeout cannot be set.
    pub fn start(from: UdpSocket, to: UdpSocket, spacing: Duration, size: usize) -> Result<Self> {
        to.set_read_timeout(Some(Duration::from_millis(20))).context("receive timeout")?;
        let stop_sending = Arc::new(AtomicBool::new(false));
        let stop_receiving = Arc::new(AtomicBool::new(false));
        let (stop_s, stop_r) = (Arc::clone(&stop_sending), Arc::clone(&stop_receiving));
        let sender = std::thread::spawn(move || send(&from, spacing, size, &stop_s));
        let receiver = std::thread::spawn(move || receive(&to, &stop_r));
        Ok(Self { spacing, stop_sending, stop_receiving, sender, receiver })
    }

    /// Ends it, with time for packets that are still on the way.
    pub fn finish(self) -> Record {
        self.stop_sending.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap_or(0);
        let end = Instant::now();
        std::thread::sleep(STRAGGLERS);
        self.stop_receiving.store(true, Ordering::Relaxed);
        let arrivals = self.receiver.join().unwrap_or_default();
        Record { spacing: self.spacing, sent, arrivals, end }
    }
}

fn send(socket: &UdpSocket, spacing: Duration, size: usize, stop: &AtomicBool) -> u64 {
    let mut packet = vec![0; size.max(SMALL)];
    let start = Instant::now();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        // A packet that the host refuses to send is as lost as any other.
        packet.splice(..SMALL, number.to_be_bytes());
        let _ = socket.send(&packet);
        number += 1;
        let due = spacing.mul_f64(number as f64);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    number
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<(u64, Instant)> {
    let mut arrivals = Vec::new();
    let mut packet = [0u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.recv(&mut packet) else { continue };
        let now = Instant::now();
        let number = packet.get(..length).and_then(<[u8]>::first_chunk);
        arrivals.extend(number.map(|number| (u64::from_be_bytes(*number), now)));
    }
    arrivals
}

impl Record {
    /// How many packets were sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// How many of them never arrived.
    pub fn lost(&self) -> u64 {
        self.missing().len() as u64
    }

    /// The numbers of those that never arrived; the first packet is number 0.
    pub fn missing(&self) -> Vec<u64> {
        let delivered: BTreeSet<u64> = self.arrivals.iter().map(|(number, _)| *number).collect();
        (0..self.sent).filter(|number| !delivered.contains(number)).collect()
    }

    /// Fails if more than this many were lost one after the other.
    ///
    /// # Errors
    /// They were, or none was sent.
    pub fn lost_few(&self, in_a_row: usize) -> Result<()> {
        let lost = self.missing();
        let rows = lost.chunk_by(|one, next| one + 1 == *next);
        match (rows.map(<[u64]>::len).max().unwrap_or(0), self.sent) {
            (_, 0) => Err(fail!("none was sent")),
            (most, _) if most <= in_a_row => Ok(()),
            (_, sent) => Err(fail!("{} of {sent} were lost: {lost:?}", lost.len())),
        }
    }

    /// The longest time without a packet from just before `moment` on, less the spacing.
    ///
    /// `None` if packets did not come back.
    pub fn gap(&self, moment: Instant) -> Option<Duration> {
        let from = moment.checked_sub(Duration::from_millis(20)).unwrap_or(moment);
        let mut longest = Duration::ZERO;
        let mut last = self.arrivals.first()?.1;
        for (_, at) in &self.arrivals {
            if *at >= from {
                longest = longest.max(at.saturating_duration_since(last));
            }
            last = *at;
        }
        let silent_at_end = self.end.saturating_duration_since(last);
        (silent_at_end < STRAGGLERS).then(|| longest.saturating_sub(self.spacing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(milliseconds: &[u64], sent: u64, end: u64) -> (Record, Instant) {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let arrivals = milliseconds.iter().map(|ms| (*ms, at(*ms))).collect();
        (Record { spacing: Duration::from_millis(1), sent, arrivals, end: at(end) }, start)
    }

    #[test]
    fn gap_is_the_longest_silence_less_the_spacing() {
        let (record, start) = record(&[100, 101, 102, 150, 151, 152], 153, 153);
        assert_eq!(record.gap(start + Duration::from_millis(103)), Some(Duration::from_millis(47)));
        assert_eq!(record.lost(), 147);
    }

    #[test]
    fn gap_long_before_the_move_does_not_count() {
        let (record, start) = record(&[1, 90, 200, 201, 202], 202, 203);
        assert_eq!(record.gap(start + Duration::from_millis(221)), Some(Duration::ZERO));
    }

    #[test]
    fn a_packet_that_comes_twice_counts_once() {
        let (record, _) = record(&[1, 1, 2], 3, 4);
        assert_eq!(record.missing(), [0]);
    }

    #[test]
    fn silence_to_the_end_is_no_gap_but_a_failure() {
        let (record, start) = record(&[1, 2, 3], 900, 900);
        assert_eq!(record.gap(start), None);
    }
}
