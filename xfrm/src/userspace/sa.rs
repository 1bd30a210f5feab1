//! One CHILD_SA of the userspace plane and its running state.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use bewick_ike::{ChildId, ChildSa, EspSpi, Limits, TrafficSelector};

use super::{esp::Transform, replay::ReplayWindow};
use crate::{Counters, PlaneError, Since};

/// Nothing limits what is sent.
const NO_CAP: u64 = u64::MAX;

/// So many octets may go to where the peer has not shown yet that it receives, for each that came from
/// there (RFC 9000 §8.1 has the same).
const CAP: u64 = 3;

/// One CHILD_SA: what stays the same over moves, and its running state.
pub(super) struct Sa {
    pub(super) id: ChildId,
    pub(super) reqid: u32,
    /// see [`ChildSa::waits`]
    pub(super) waits: bool,
    pub(super) spi_in: EspSpi,
    pub(super) outbound: Transform,
    pub(super) inbound: Transform,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    /// the sequence number of the last packet sent
    sequence: Mutex<u64>,
    last_sequence: u64,
    replay: Mutex<ReplayWindow>,
    pub(super) traffic: Traffic,
    arrivals: Arrivals,
    limits: Limits,
    /// octets that may still be sent; [`NO_CAP`] for any number
    allowance: AtomicU64,
    /// the limits are reached, and that has been said
    told: AtomicBool,
    /// when the last mapping event was given, in milliseconds of the plane's clock, plus 1
    pub(super) last_mapping: AtomicU64,
}

/// [`Counters`] as they run.
#[derive(Default)]
pub(super) struct Traffic {
    pub(super) octets_in: AtomicU64,
    pub(super) octets_out: AtomicU64,
    pub(super) packets_in: AtomicU64,
    pub(super) packets_out: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) wrong_path: AtomicU64,
}

/// When packets came in. Times are microseconds of the plane's clock, plus 1; 0 is never.
#[derive(Default)]
struct Arrivals {
    last: AtomicU64,
    /// since the mark, in microseconds
    longest_gap: AtomicU64,
    /// the sequence numbers missing when the mark was set, plus 1; 0 without a mark
    missing: AtomicU64,
}

/// The next sequence number to send with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    /// use this one
    Next(u64),
    /// use this one, and warn that few are left
    Soon(u64),
    /// there are no more; true when it is time to say so
    Exhausted(bool),
}

/// See [`Sa::turn`].
pub(super) struct Turn<'a> {
    last: MutexGuard<'a, u64>,
    end: u64,
}

impl Turn<'_> {
    /// Draws a sequence number; each is given once, and they never wrap (RFC 4303 §3.3.3).
    pub(super) fn draw(&mut self) -> Sequence {
        *self.last = self.last.wrapping_add(1);
        let next = *self.last;
        if next > self.end {
            // Again and again, as the first word may have led to no successor.
            return Sequence::Exhausted((next - self.end) % 1024 == 1);
        }
        // A sixteenth of the shorter space: at 10 Gbit/s with full packets, five minutes.
        if next == self.end - (u64::from(u32::MAX) >> 4) {
            return Sequence::Soon(next);
        }
        Sequence::Next(next)
    }
}

impl Sa {
    pub(super) fn new(sa: &ChildSa) -> Result<Sa, PlaneError> {
        let outbound = Transform::new(sa.spi_out, sa.suite, sa.esn, &sa.keys_out)?;
        let inbound = Transform::new(sa.spi_in, sa.suite, sa.esn, &sa.keys_in)?;
        Ok(Sa {
            id: sa.id,
            reqid: sa.reqid,
            waits: sa.waits,
            spi_in: sa.spi_in,
            outbound,
            inbound,
            ts_local: sa.ts_local.clone(),
            ts_remote: sa.ts_remote.clone(),
            sequence: Mutex::new(0),
            last_sequence: if sa.esn { u64::MAX - u64::from(u32::MAX) } else { u32::MAX.into() },
            replay: Mutex::new(ReplayWindow::new(sa.carriage.replay_window, sa.esn)),
            traffic: Traffic::default(),
            arrivals: Arrivals::default(),
            limits: sa.limits,
            allowance: AtomicU64::new(NO_CAP),
            told: AtomicBool::new(false),
            last_mapping: AtomicU64::new(0),
        })
    }

    /// The right to send, for a batch at a time: packets of one SA leave in the order of their numbers,
    /// whichever threads they come from, as the peer's replay window may be small (RFC 4303 §3.4.3).
    pub(super) fn turn(&self) -> Turn<'_> {
        let last = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { last, end: self.last_sequence }
    }

    /// The replay window, for a batch at a time.
    pub(super) fn replay(&self) -> MutexGuard<'_, ReplayWindow> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many packets with `octets` together have gone out or come in; whether they are the first
    /// beyond the limits.
    pub(super) fn note(&self, out: bool, packets: u64, octets: usize) -> bool {
        let t = &self.traffic;
        let (count, total) = match out {
            true => (&t.packets_out, &t.octets_out),
            false => (&t.packets_in, &t.octets_in),
        };
        let packets = count.fetch_add(packets, Relaxed) + packets;
        let octets = octets as u64;
        let total = total.fetch_add(octets, Relaxed) + octets;
        self.limits.are_reached(total, packets) && !self.told.swap(true, Relaxed)
    }

    /// Limits what is sent to [`CAP`] times what comes in from now on, or lifts that.
    pub(super) fn cap(&self, on: bool) {
        self.allowance.store(if on { 0 } else { NO_CAP }, SeqCst);
    }

    /// A genuine packet of so many octets came on the path in use.
    pub(super) fn earn(&self, octets: usize) {
        let more = |left: u64| {
            (left != NO_CAP).then(|| left.saturating_add(CAP * octets as u64).min(NO_CAP - 1))
        };
        // Where nothing is limited nothing is to be counted.
        let _ = self.allowance.fetch_update(Relaxed, Relaxed, more);
    }

    /// Whether a packet of so many octets may be sent.
    pub(super) fn spend(&self, octets: usize) -> bool {
        self.allowance.load(Relaxed) == NO_CAP || {
            let less = |left: u64| match left {
                NO_CAP => Some(NO_CAP),
                left => left.checked_sub(octets as u64),
            };
            self.allowance.fetch_update(Relaxed, Relaxed, less).is_ok()
        }
    }

    /// A genuine packet has come in, `now` after the plane began.
    pub(super) fn arrived(&self, now: Duration) {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        // Two threads may be a packet apart: the later time stays.
        let last = self.arrivals.last.fetch_max(now, Relaxed);
        if last != 0 {
            self.arrivals.longest_gap.fetch_max(now.saturating_sub(last), Relaxed);
        }
    }

    /// Sets the mark of [`Sa::since_mark`].
    pub(super) fn mark(&self) {
        let missing = self.missing();
        self.arrivals.missing.store(missing.saturating_add(1), Relaxed);
        self.arrivals.longest_gap.store(0, Relaxed);
    }

    /// See [`crate::DataPlane::since_mark`].
    pub(super) fn since_mark(&self) -> Option<Since> {
        let before = self.arrivals.missing.load(Relaxed).checked_sub(1)?;
        let longest_gap = Duration::from_micros(self.arrivals.longest_gap.load(Relaxed));
        // One that was missing at the mark may have come since.
        Some(Since { longest_gap, lost: self.missing().saturating_sub(before) })
    }

    fn missing(&self) -> u64 {
        self.replay().missing()
    }

    pub(super) fn counters(&self) -> Counters {
        let t = &self.traffic;
        Counters {
            octets_in: t.octets_in.load(Relaxed),
            octets_out: t.octets_out.load(Relaxed),
            packets_in: t.packets_in.load(Relaxed),
            packets_out: t.packets_out.load(Relaxed),
            rejected: t.rejected.load(Relaxed),
            wrong_path: t.wrong_path.load(Relaxed),
        }
    }

    /// Whether nobody has the replay window now.
    #[cfg(test)]
    pub(super) fn is_replay_free(&self) -> bool {
        self.replay.try_lock().is_ok()
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&self, sequence: u64) {
        *self.turn().last = sequence;
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{table::Table, tests::child},
        *,
    };

    #[test]
    fn m_5_3_2_a_capped_sa_sends_three_times_what_came_in() {
        let table = Table::default().with(&child(1)).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        assert!(sa.spend(1 << 40), "nothing is limited at first");
        sa.cap(true);
        assert!(!sa.spend(1), "nothing has come from there");
        sa.earn(100);
        assert!(sa.spend(200) && !sa.spend(101) && sa.spend(100) && !sa.spend(1));
        sa.cap(false);
        sa.earn(100);
        assert!(sa.spend(1 << 40) && sa.spend(1 << 40), "and nothing again");
    }

    #[test]
    fn rfc_4303_3_3_3_sequence_numbers_end_before_they_wrap() {
        let table = Table::default().with(&child(1)).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        assert_eq!(sa.turn().draw(), Sequence::Next(1));
        sa.set_sequence(0xefff_ffff);
        assert_eq!(sa.turn().draw(), Sequence::Soon(0xf000_0000));
        assert_eq!(sa.turn().draw(), Sequence::Next(0xf000_0001));
        sa.set_sequence(0xffff_fffe);
        assert_eq!(sa.turn().draw(), Sequence::Next(0xffff_ffff));
        assert_eq!(sa.turn().draw(), Sequence::Exhausted(true));
        assert_eq!(sa.turn().draw(), Sequence::Exhausted(false));
    }

    #[test]
    fn rfc_4303_3_3_3_extended_sequence_numbers_end_before_they_wrap() {
        let table = Table::default().with(&ChildSa { esn: true, ..child(1) }).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        sa.set_sequence(0xefff_ffff);
        assert_eq!(sa.turn().draw(), Sequence::Next(0xf000_0000));
        sa.set_sequence(u32::MAX.into());
        assert_eq!(sa.turn().draw(), Sequence::Next(1 << 32));
        sa.set_sequence(0xffff_fffe_efff_ffff);
        assert_eq!(sa.turn().draw(), Sequence::Next(0xffff_fffe_f000_0000));
        assert_eq!(sa.turn().draw(), Sequence::Soon(0xffff_fffe_f000_0001));
        let last = 0xffff_ffff_0000_0000;
        sa.set_sequence(last - 1);
        assert_eq!(sa.turn().draw(), Sequence::Next(last));
        assert_eq!(sa.turn().draw(), Sequence::Exhausted(true));
    }

    /// RFC 4301 §4.4.2.1.
    #[test]
    fn a_limit_is_said_once_by_the_packet_that_reaches_it() {
        let with = |octets, packets| {
            let table =
                Table::default().with(&ChildSa { limits: Limits { octets, packets }, ..child(1) });
            table.unwrap().child(ChildId(1)).unwrap().sa.clone()
        };
        // Which of ten packets of 100 octets says so, where only one direction counts.
        let said =
            |sa: &Sa, out| -> Vec<usize> { (1..=10).filter(|_| sa.note(out, 1, 100)).collect() };
        for out in [false, true] {
            assert_eq!(said(&with(None, None), out), []);
            assert_eq!(said(&with(None, Some(3)), out), [3]);
            assert_eq!(said(&with(Some(500), None), out), [5]);
            assert_eq!(said(&with(Some(501), None), out), [6]);
            assert_eq!(said(&with(Some(500), Some(3)), out), [3]);
            assert_eq!(said(&with(Some(200), Some(3)), out), [2]);
            assert_eq!(said(&with(Some(0), None), out), [1]);
            assert_eq!(said(&with(Some(1001), Some(11)), out), []);
        }
        let sa = with(None, Some(3));
        assert!(![true, true, false, false].into_iter().any(|out| sa.note(out, 1, 100)));
        assert!(sa.note(false, 1, 100), "each direction has its own count");
        assert!(!sa.note(true, 1, 100), "one successor is enough");
    }

    #[test]
    fn gaps_and_losses_count_from_the_mark() {
        let table = Table::default().with(&child(1)).unwrap();
        let sa = &table.child(ChildId(1)).unwrap().sa;
        let comes = |sequence, at| {
            assert!(sa.replay().accept(sequence));
            sa.arrived(Duration::from_millis(at));
        };
        let since = |gap, lost| Some(Since { longest_gap: Duration::from_millis(gap), lost });
        comes(1, 0);
        comes(4, 500);
        assert_eq!(sa.since_mark(), None);
        sa.mark();
        assert_eq!(sa.since_mark(), since(0, 0));
        comes(7, 700);
        assert_eq!(sa.since_mark(), since(200, 2), "the silence before the mark counts");
        comes(8, 750);
        assert_eq!(sa.since_mark(), since(200, 2));
        comes(6, 749);
        assert_eq!(sa.since_mark(), since(200, 1), "overtaken, and seen by another thread");
        comes(9, 1050);
        assert_eq!(sa.since_mark(), since(300, 1));
        sa.mark();
        assert_eq!(sa.since_mark(), since(0, 0));
        comes(5, 1051);
        assert_eq!(sa.since_mark(), since(1, 0), "lost before the mark, and then not");
    }
}
