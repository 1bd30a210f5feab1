//! How long no packet came in (`bewick moves`): the kernel tells only how many have come, so that a
//! thread asks for that again and again while a move is under way.
//!
//! Gaps are true to a millisecond or two, or to one part in 64 if they are longer; that somebody was
//! late to ask makes no gap.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bewick_ike::ChildId;

use super::{
    ledger::Shared,
    socket::Socket,
    state::{self, Side},
};
use crate::plane::{PlaneError, Since};

/// CHILD_SAs that are watched at once: each costs a request of some 10 µs whenever it is asked for.
const MOST: usize = 16;

/// The shortest and the longest time between two looks.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(250);

/// Packets that have come in, and the highest sequence number among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub(super) packets: u64,
    pub(super) highest: u64,
}

impl Arrivals {
    fn missing(self) -> u64 {
        self.highest.saturating_sub(self.packets)
    }
}

/// What has come in for `id` over all of its states; those of the peer's that are gone count too.
pub(super) fn arrivals(
    xfrm: &mut Socket,
    ledger: &Shared,
    id: ChildId,
) -> Result<Arrivals, PlaneError> {
    let (carried, states) = {
        let ledger = ledger.lock();
        (ledger.carried(id), ledger.states_of(id))
    };
    let mut all = Arrivals { packets: carried.packets_in, highest: 0 };
    for (key, entry) in states.into_iter().filter(|(_, entry)| entry.side == Side::In) {
        match xfrm.ask("counting packets", state::query(key), state::snapshot) {
            Ok((replay, usage)) => {
                all.packets = all.packets.saturating_add(usage.packets);
                all.highest = all.highest.max(replay.last(Side::In));
            }
            // It has ended this moment, and the event that tells what it had carried is not read yet.
            Err(error) if error.errno() == Some(libc::ESRCH) => {
                let left = entry.left.map_or(0, |left| left.packets);
                all.packets = all.packets.saturating_add(left);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// One CHILD_SA that is watched.
#[derive(Debug)]
struct Watch {
    marked: Instant,
    at_mark: Arrivals,
    packets: u64,
    /// when it was seen that the last packet had come
    changed: Instant,
    /// the last look
    looked: Instant,
    longest: Duration,
}

impl Watch {
    fn new(now: Instant, arrivals: Arrivals, since: Instant) -> Self {
        Watch {
            marked: now,
            at_mark: arrivals,
            packets: arrivals.packets,
            changed: since,
            looked: now,
            longest: Duration::ZERO,
        }
    }

    /// Time to the next look.
    fn interval(&self, now: Instant) -> Duration {
        let silence = now.saturating_duration_since(self.changed) / 64;
        let age = now.saturating_duration_since(self.marked) / 512;
        silence.max(age).clamp(SHORTEST, LONGEST)
    }

    fn look(&mut self, now: Instant, packets: u64) {
        // While a move changes from one state to another, less may be found for a moment.
        if packets > self.packets {
            let silent = self.looked.saturating_duration_since(self.changed);
            let at_most = now.saturating_duration_since(self.changed);
            self.longest = self.longest.max((silent + self.interval(self.looked)).min(at_most));
            self.packets = packets;
            self.changed = now;
        }
        self.looked = now;
    }

    fn since(&self, arrivals: Arrivals) -> Since {
        // One that was missing at the mark may have come since.
        let lost = arrivals.missing().saturating_sub(self.at_mark.missing());
        Since { longest_gap: self.longest, lost }
    }
}

#[derive(Default)]
struct Watches {
    all: BTreeMap<ChildId, Watch>,
    closed: bool,
}

type Together = Arc<(Mutex<Watches>, Condvar)>;

/// The thread and what it looks at.
pub(super) struct Watcher {
    together: Together,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread, which asks by a socket of its own in this thread's network namespace.
    pub(super) fn start(ledger: Shared) -> Result<Self, PlaneError> {
        let socket = Socket::open(libc::NETLINK_XFRM)?;
        let together = Together::default();
        let mine = together.clone();
        let thread = thread::Builder::new()
            .name("bewick-watch".into())
            .spawn(move || run(socket, &ledger, &mine))
            .map_err(|error| PlaneError::kernel("starting a thread", &error))?;
        Ok(Watcher { together, thread: Some(thread) })
    }

    /// Watches `id` from now on, where nothing has come since `since`. One of many at once is not.
    pub(super) fn mark(&self, id: ChildId, arrivals: Arrivals, since: Instant) {
        let mut watches = lock(&self.together.0);
        if watches.all.len() < MOST || watches.all.contains_key(&id) {
            watches.all.insert(id, Watch::new(Instant::now(), arrivals, since));
            self.together.1.notify_one();
        }
    }

    /// What was seen of `id`, which ends it.
    pub(super) fn take(&self, id: ChildId, arrivals: Arrivals) -> Option<Since> {
        let mut watch = lock(&self.together.0).all.remove(&id)?;
        watch.look(Instant::now(), arrivals.packets);
        Some(watch.since(arrivals))
    }

    pub(super) fn watches(&self, id: ChildId) -> bool {
        lock(&self.together.0).all.contains_key(&id)
    }

    pub(super) fn forget(&self, id: ChildId) {
        lock(&self.together.0).all.remove(&id);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.together.0).closed = true;
        self.together.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut xfrm: Socket, ledger: &Shared, together: &Together) {
    let (watches, changed) = (&together.0, &together.1);
    let mut guard = lock(watches);
    loop {
        if guard.closed {
            return;
        }
        let now = Instant::now();
        let next = guard.all.values().map(|watch| watch.looked + watch.interval(now)).min();
        guard = match next {
            None => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(next) if next > now => {
                let wait = changed.wait_timeout(guard, next - now);
                wait.unwrap_or_else(PoisonError::into_inner).0
            }
            Some(_) => {
                let due = |watch: &Watch| watch.looked + watch.interval(now) <= now;
                let due: Vec<ChildId> =
                    guard.all.iter().filter(|(_, watch)| due(watch)).map(|(id, _)| *id).collect();
                drop(guard);
                // The kernel is asked without the lock, which those who move wait for.
                let found: Vec<_> =
                    due.iter().map(|id| (*id, arrivals(&mut xfrm, ledger, *id))).collect();
                let mut guard = lock(watches);
                let now = Instant::now();
                for (id, found) in found {
                    if let Some(watch) = guard.all.get_mut(&id) {
                        // After an error nothing new is known.
                        let packets = found.map_or(watch.packets, |found| found.packets);
                        watch.look(now, packets);
                    }
                }
                guard
            }
        };
    }
}

fn lock(watches: &Mutex<Watches>) -> MutexGuard<'_, Watches> {
    watches.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_longest_silence_that_ended_counts_and_one_before_the_mark_too() {
        let start = Instant::now();
        let at = |time| start + ms(time);
        let mut watch = Watch::new(at(100), Arrivals { packets: 5, highest: 5 }, start);
        assert_eq!(watch.since(Arrivals { packets: 5, highest: 5 }).longest_gap, ms(0));
        for time in 101..=140 {
            watch.look(at(time), 5);
        }
        watch.look(at(141), 6);
        assert_eq!(watch.longest.as_millis(), 141, "from before the mark");
        let mut watch = Watch::new(at(100), Arrivals::default(), at(100));
        for (time, packets) in [(101, 1), (102, 1), (103, 1), (104, 2), (105, 3)] {
            watch.look(at(time), packets);
        }
        assert_eq!(watch.longest, ms(3));
        // Who asks late finds many, which says nothing of a gap.
        watch.look(at(155), 40);
        assert_eq!(watch.longest, ms(3));
        // Less for a moment, as the states change.
        watch.look(at(156), 20);
        watch.look(at(157), 41);
        assert_eq!(watch.longest, ms(3));
    }

    #[test]
    fn what_the_peer_has_passed_and_has_not_come_is_lost_if_it_was_not_so_at_the_mark() {
        let start = Instant::now();
        let watch = Watch::new(start, Arrivals { packets: 97, highest: 100 }, start);
        let lost = |packets, highest| watch.since(Arrivals { packets, highest }).lost;
        assert_eq!(lost(97, 100), 0, "three before");
        assert_eq!(lost(107, 110), 0);
        assert_eq!(lost(105, 110), 2);
        assert_eq!(lost(109, 110), 0, "late ones");
    }

    #[test]
    fn a_long_silence_is_looked_at_less_often() {
        let start = Instant::now();
        let watch = Watch::new(start, Arrivals::default(), start);
        assert_eq!(watch.interval(start), SHORTEST);
        assert_eq!(watch.interval(start + ms(6400)), ms(100));
        assert_eq!(watch.interval(start + Duration::from_secs(1800)), LONGEST);
    }
}
