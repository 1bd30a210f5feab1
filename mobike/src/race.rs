//! A race between pairs of addresses: the same request on all of them, one after the other, until one
//! answers (RFC 4555 §3.10; RFC 8305 §5 for the stagger).

use std::{collections::VecDeque, time::Duration};

use bewick_ike::{Path, Time};

use crate::event::Cause;

/// Between two copies.
pub(crate) const STAGGER: Duration = Duration::from_millis(75);

/// So often the pair in use is asked before another one may take its place on a mere hint: with 2 % loss
/// in each direction it seems dead in 3 of 1,000,000 checks.
pub(crate) const TURNS: u32 = 4;

/// Pairs that are tried in one round.
pub(crate) const MOST_PAIRS: usize = 16;

/// The pause after the first round; each is twice as long as the one before.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// Rounds in which UDP has its chance before TCP is tried beside it: about a second (RFC 9329 §7.1).
const UDP_ALONE: u32 = 2;

/// A pair that was tried, for the record of the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// the pair
    pub path: Path,
    /// after this time from the beginning of the race
    pub after: Duration,
    /// how long the answer took, if it came
    pub answered: Option<Duration>,
}

/// A race that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Race {
    /// why the IKE_SA moves, if it does
    pub(crate) cause: Cause,
    pub(crate) since: Time,
    /// the pair in use may be alive, and has its turns before another one is taken
    pub(crate) patient: bool,
    /// one after the other with a growing wait (draft-ietf-multi6-failure-detection-00 §5.3)
    strict: bool,
    turns: u32,
    last_turn: Time,
    queue: VecDeque<Path>,
    round: u32,
    /// in so many rounds at first no TCP connection is tried (RFC 9329 §7.1)
    udp_alone: u32,
    pub(crate) winner: Option<Path>,
    tried: Vec<Tried>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// the request on these
    Send(Vec<Path>),
    /// nothing has answered in this round: begin the next one with these pairs after that time
    Pause(Duration),
}

impl Race {
    /// A race that begins now; the request is out on `current` already.
    pub(crate) fn new(
        now: Time,
        cause: Cause,
        current: Path,
        (patient, strict): (bool, bool),
        candidates: Vec<Path>,
    ) -> Self {
        let mut race = Race {
            cause,
            since: now,
            patient,
            strict,
            turns: 1,
            last_turn: now,
            queue: VecDeque::new(),
            round: 0,
            // Where TCP is in use UDP has had its chance.
            udp_alone: if current.is_tcp() { 0 } else { UDP_ALONE },
            winner: None,
            tried: Vec::new(),
        };
        race.refill(candidates);
        race
    }

    /// The pairs of the next round, best first.
    pub(crate) fn refill(&mut self, candidates: Vec<Path>) {
        let udp_alone = self.round < self.udp_alone;
        let fits = |path: &Path| !(udp_alone && path.is_tcp());
        self.queue = candidates.into_iter().filter(fits).take(MOST_PAIRS).collect();
    }

    /// Something about our addresses has changed: as if the race had just begun.
    pub(crate) fn restart(&mut self, candidates: Vec<Path>) {
        self.round = 0;
        self.refill(candidates);
    }

    /// The next step, and when the one after that is due.
    pub(crate) fn step(&mut self, now: Time, current: Path, timeout: Duration) -> (Step, Time) {
        let mut paths = Vec::new();
        let turns = if self.patient { TURNS } else { 1 };
        // In later rounds the pair in use has one turn each.
        if self.turns < turns.max(self.round) {
            self.turns += 1;
            self.last_turn = now;
            paths.push(current);
        }
        // Whoever has answered is enough; what is left is for the pair in use to speak up.
        if self.winner.is_none()
            && let Some(path) = self.queue.pop_front()
        {
            self.note_sent(now, path);
            paths.push(path);
        }
        if !paths.is_empty() {
            return (Step::Send(paths), now + self.stagger());
        }
        let due = self.last_turn + timeout;
        if now < due {
            return (Step::Send(Vec::new()), due);
        }
        self.round += 1;
        let pause = PAUSE.0.saturating_mul(1 << (self.round - 1).min(10)).min(PAUSE.1);
        (Step::Pause(pause), now + pause)
    }

    fn stagger(&self) -> Duration {
        let tried = u32::try_from(self.tried.len()).unwrap_or(u32::MAX);
        match self.strict {
            true => STAGGER.saturating_mul(1 << tried.min(10)).min(PAUSE.1),
            false => STAGGER,
        }
    }

    fn note_sent(&mut self, now: Time, path: Path) {
        let after = now.since(self.since);
        if self.tried.len() < 2 * MOST_PAIRS {
            self.tried.push(Tried { path, after, answered: None });
        }
    }

    /// An answer has come on another pair than the one in use.
    pub(crate) fn answered(&mut self, now: Time, path: Path) {
        let since = self.since;
        let tried = self.tried.iter_mut().rev().find(|tried| tried.path == path);
        if let Some(tried) = tried.filter(|tried| tried.answered.is_none()) {
            tried.answered = Some(now.since(since + tried.after));
        }
        self.winner.get_or_insert(path);
    }

    /// Who is to be taken: the first that answered, once the pair in use has had its turns.
    pub(crate) fn verdict(&self, now: Time, timeout: Duration) -> Option<Path> {
        let heard = self.turns >= TURNS && now >= self.last_turn + timeout;
        self.winner.filter(|_| !self.patient || heard)
    }

    /// The pairs that were tried, and how they answered.
    pub(crate) fn tried(&self) -> &[Tried] {
        &self.tried
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn way(local: u8) -> Path {
        let socket = |last: u8| (std::net::IpAddr::from([192, 0, 2, last]), 4500).into();
        Path::new(socket(local), socket(200))
    }

    /// When the last of `count` candidates is sent to in the first round.
    fn last_of(count: u8, strict: bool) -> Time {
        let candidates = (1..=count).map(way).collect();
        let mut race = Race::new(ms(0), Cause::NoAnswer, way(0), (true, strict), candidates);
        let mut now = ms(0);
        loop {
            let (step, next) = race.step(now, way(0), Duration::from_millis(200));
            if step == Step::Send(vec![way(count)]) {
                return now;
            }
            assert!(matches!(step, Step::Send(_)), "{step:?}");
            now = next;
        }
    }

    #[test]
    fn fifteen_alternatives_are_tried_within_one_and_a_half_seconds() {
        assert!(last_of(15, false) <= ms(1500));
        assert!(last_of(15, true) > ms(300_000), "the draft's way: each wait twice the last");
    }

    /// RFC 9329 §7.1: UDP is tried more than once before TCP, but where TCP is in use.
    #[test]
    fn tcp_has_its_turn_after_udp() {
        let over_tcp = |last| Path::tcp(way(last).local, way(last).remote);
        let timeout = Duration::from_millis(200);
        let candidates = vec![way(1), over_tcp(1)];
        for (current, before) in [(way(0), 3), (over_tcp(0), 1)] {
            let mut race =
                Race::new(ms(0), Cause::NoAnswer, current, (false, false), candidates.clone());
            let (mut now, mut over_udp) = (ms(0), 0);
            loop {
                let (step, next) = race.step(now, current, timeout);
                match step {
                    Step::Send(paths) if paths.contains(&over_tcp(1)) => break,
                    Step::Send(paths) => over_udp += usize::from(paths.contains(&way(1))),
                    Step::Pause(_) => race.refill(candidates.clone()),
                }
                now = next;
            }
            assert_eq!(over_udp, before, "{current}");
        }
    }

    #[test]
    fn the_pair_in_use_has_its_turns_before_another_one_is_taken() {
        let timeout = Duration::from_millis(200);
        let mut race = Race::new(ms(0), Cause::NoAnswer, way(0), (true, false), vec![way(1)]);
        assert_eq!(race.step(ms(0), way(0), timeout).0, Step::Send(vec![way(0), way(1)]));
        race.answered(ms(20), way(1));
        assert_eq!(race.verdict(ms(20), timeout), None);
        let mut now = ms(100);
        while let (Step::Send(paths), next) = race.step(now, way(0), timeout) {
            assert!(paths.iter().all(|path| *path == way(0)), "nobody else is asked any more");
            if race.verdict(next, timeout).is_some() {
                now = next;
                break;
            }
            now = next;
        }
        assert_eq!(race.verdict(now, timeout), Some(way(1)));
        assert_eq!(race.tried()[0].answered, Some(Duration::from_millis(20)));
        let mut known = Race::new(ms(0), Cause::NoAnswer, way(0), (false, false), vec![way(1)]);
        known.answered(ms(20), way(1));
        assert_eq!(known.verdict(ms(20), timeout), Some(way(1)), "nothing to wait for");
    }

    #[test]
    fn rounds_back_off_and_a_change_of_addresses_begins_anew() {
        let timeout = Duration::from_millis(200);
        let mut race = Race::new(ms(0), Cause::NoAnswer, way(0), (true, false), vec![way(1)]);
        let (mut now, mut pauses) = (ms(0), Vec::new());
        while pauses.len() < 11 {
            let (step, next) = race.step(now, way(0), timeout);
            if let Step::Pause(pause) = step {
                pauses.push(pause.as_millis());
                race.refill(vec![way(1)]);
            }
            now = next;
        }
        assert_eq!(pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(pauses[10], 60_000);
        race.restart(vec![way(1)]);
        while let (Step::Send(_), next) = race.step(now, way(0), timeout) {
            now = next;
        }
        assert_eq!(race.step(now, way(0), timeout).0, Step::Pause(Duration::from_millis(500)));
    }
}
