//! Pairs of addresses: what is known of each, and in which order they are tried.
//!
//! draft-ietf-multi6-failure-detection-00 §3 to §5: a pair has a state and a history; the newest result
//! counts most. What is learnt about one of our addresses is shared by all IKE_SAs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{Path, Time, Transport};

/// After this time a result counts half.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// A result, and the most that a score can be.
const FULL: i32 = 1000;

/// Below this a pair counts as one that has failed.
const FAILED: i32 = -FULL / 4;

/// How long an address counts as one where the peer has shown that it receives, once it is no longer the
/// current one: as long as a NAT keeps a mapping at least (RFC 4787 §4.3).
pub(crate) const VALID: Duration = Duration::from_secs(120);

/// Pairs of which something is remembered, for each IKE_SA.
const MOST_PAIRS: usize = 64;

/// A result that fades with its age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Score {
    value: i32,
    at: Time,
}

impl Score {
    fn now(self, now: Time) -> i32 {
        let lives = now.since(self.at).as_micros() / HALF_LIFE.as_micros();
        self.value / 2_i32.pow(u32::try_from(lives.min(20)).unwrap_or(20))
    }

    fn note(&mut self, now: Time, good: bool) {
        let result = if good { FULL } else { -FULL };
        *self = Score { value: (self.now(now) + result) / 2, at: now };
    }
}

/// How a pair of addresses stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairState {
    /// nothing has been sent on it lately
    Untried,
    /// a probe is on its way
    Testing,
    /// it has answered
    Operational,
    /// it has not
    Failed,
}

impl PairState {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            PairState::Untried => "untried",
            PairState::Testing => "testing",
            PairState::Operational => "operational",
            PairState::Failed => "failed",
        }
    }
}

/// What is known of one pair.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairRecord {
    score: Score,
    /// smoothed round-trip time and its variation (RFC 6298 §2)
    rtt: Option<(Duration, Duration)>,
    /// probes and how many of them were lost, the old ones fading
    probes: u32,
    lost: u32,
    /// a probe went out then and has had no answer yet
    pub(crate) pending: Option<Time>,
    /// the same probe went out on it more than once: which of them is answered can't be told
    ambiguous: bool,
    /// when the first probe went out that had no answer, since there was one last
    silent_since: Option<Time>,
    /// when it was last asked by itself
    pub(crate) asked: Option<Time>,
    pub(crate) answered: Option<Time>,
    /// whether a NAT is on it, if that was asked
    pub(crate) nat: Option<bool>,
    /// the peer has returned a COOKIE2 of this pair alone
    pub(crate) validated: Option<Time>,
    /// with the ports that it had then
    pub(crate) path: Option<Path>,
    /// as whom the peer sees us on it
    pub(crate) seen: Option<SocketAddr>,
    /// when the peer last heard us on it, as it says
    pub(crate) heard: Option<Time>,
}

impl PairRecord {
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|(rtt, _)| rtt)
    }

    /// How long an answer may take, by what is known (RFC 6298 §2).
    pub(crate) fn timeout(&self) -> Duration {
        let (least, most) = (Duration::from_millis(200), Duration::from_secs(2));
        let rto = self.rtt.map_or(2 * least, |(rtt, var)| rtt + 4 * var);
        rto.clamp(least, most)
    }

    /// Lost probes of a hundred.
    pub(crate) fn loss(&self) -> Option<u32> {
        (self.probes > 0).then(|| self.lost * 100 / self.probes)
    }

    pub(crate) fn has_failed(&self, now: Time) -> bool {
        self.score.now(now) < FAILED
    }

    pub(crate) fn is_valid(&self, now: Time) -> bool {
        self.validated.is_some_and(|at| now.since(at) < VALID)
    }

    /// Whether the peer hears us on it, but we do not hear the peer
    /// (draft-ietf-multi6-failure-detection-00 §5.4).
    pub(crate) fn is_one_way(&self, now: Time) -> bool {
        let lately = |at: Time| now.since(at) < HALF_LIFE;
        let since = self.silent_since;
        self.has_failed(now)
            && self.heard.is_some_and(|at| lately(at) && since.is_some_and(|since| since < at))
    }

    fn silent(&mut self, now: Time) {
        let asked = self.pending.take().unwrap_or(now);
        self.silent_since.get_or_insert(asked);
        self.note(now, false);
    }

    fn note(&mut self, now: Time, good: bool) {
        self.score.note(now, good);
        if self.probes >= 64 {
            (self.probes, self.lost) = (self.probes / 2, self.lost / 2);
        }
        self.probes += 1;
        self.lost += u32::from(!good);
    }

    fn measure(&mut self, rtt: Duration) {
        self.rtt = Some(match self.rtt {
            None => (rtt, rtt / 2),
            Some((smooth, var)) => {
                let off = smooth.abs_diff(rtt);
                ((smooth * 7 + rtt) / 8, (var * 3 + off) / 4)
            }
        });
    }

    pub(crate) fn state(&self, now: Time) -> PairState {
        match self.pending {
            Some(_) => PairState::Testing,
            None if self.has_failed(now) => PairState::Failed,
            None if self.answered.is_some() => PairState::Operational,
            None => PairState::Untried,
        }
    }
}

/// What an IKE_SA knows of its pairs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pairs(BTreeMap<Key, PairRecord>);

/// A pair of addresses, over UDP or TCP: what is known of the one says nothing of the other.
type Key = (IpAddr, IpAddr, Transport);

fn key(path: Path) -> Key {
    (path.local.ip(), path.remote.ip(), path.transport)
}

impl Pairs {
    pub(crate) fn get(&self, path: Path) -> Option<&PairRecord> {
        self.0.get(&key(path))
    }

    pub(crate) fn of(&mut self, path: Path) -> &mut PairRecord {
        if self.0.len() >= MOST_PAIRS && !self.0.contains_key(&key(path)) {
            // What was answered longest ago is worth least.
            let oldest =
                self.0.iter().min_by_key(|(_, record)| record.answered).map(|(key, _)| *key);
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        self.0.entry(key(path)).or_default()
    }

    /// A probe has gone out on it.
    pub(crate) fn sent(&mut self, now: Time, path: Path) {
        let record = self.of(path);
        record.ambiguous = record.pending.is_some();
        record.pending.get_or_insert(now);
    }

    /// An answer has come on it; `sent` is when its request was sent, if that is known.
    pub(crate) fn answered(&mut self, now: Time, path: Path, sent: Option<Time>) {
        let record = self.of(path);
        // RFC 6298 §3: what was sent twice measures nothing.
        let sent = sent.or(record.pending.filter(|_| !record.ambiguous));
        (record.pending, record.silent_since) = (None, None);
        record.answered = Some(now);
        record.note(now, true);
        if let Some(sent) = sent {
            record.measure(now.since(sent));
        }
    }

    /// Nothing has come back.
    pub(crate) fn silent(&mut self, now: Time, path: Path) {
        self.of(path).silent(now);
    }

    /// The pair on which the peer has shown last that it receives, other than `but`.
    pub(crate) fn newest_valid(&self, now: Time, but: Path) -> Option<Path> {
        let valid = self.0.values().filter(|record| record.is_valid(now));
        let newest = valid.filter(|record| record.path.is_some_and(|path| path != but));
        newest.max_by_key(|record| record.validated).and_then(|record| record.path)
    }

    /// The peer has heard us from there, so long ago.
    pub(crate) fn heard(&mut self, now: Time, from: SocketAddr, age: Duration) {
        let at = Time::from_micros(
            (now.since(Time::ZERO).saturating_sub(age)).as_micros().try_into().unwrap_or(0),
        );
        for ((local, ..), record) in &mut self.0 {
            if record.seen == Some(from) || *local == from.ip() {
                record.heard = record.heard.max(Some(at));
            }
        }
    }

    /// It was in use, was asked several times and stayed silent.
    pub(crate) fn failed(&mut self, now: Time, path: Path) {
        self.silent(now, path);
        self.of(path).score = Score { value: -FULL, at: now };
    }

    /// Every probe that is still without an answer has none.
    pub(crate) fn conclude(&mut self, now: Time) {
        for record in self.0.values_mut().filter(|record| record.pending.is_some()) {
            record.silent(now);
        }
    }
}

/// NAT keepalives at first (RFC 3948 §4), and the shortest interval that a NAT can teach us.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(5));

/// What is known of one address of ours, whichever IKE_SA has found it out.
#[derive(Clone, Copy, Debug)]
struct Uplink {
    score: Score,
    keepalive: Duration,
}

impl Default for Uplink {
    fn default() -> Self {
        Uplink { score: Score::default(), keepalive: KEEPALIVE.0 }
    }
}

/// What all IKE_SAs together know of our addresses (the drafts' common pool).
#[derive(Clone, Debug, Default)]
pub(crate) struct Uplinks(BTreeMap<IpAddr, Uplink>);

impl Uplinks {
    pub(crate) fn note(&mut self, now: Time, local: IpAddr, good: bool) {
        self.0.entry(local).or_default().score.note(now, good);
    }

    pub(crate) fn has_failed(&self, now: Time, local: IpAddr) -> bool {
        self.0.get(&local).is_some_and(|uplink| uplink.score.now(now) < FAILED)
    }

    /// How often the NAT in front of this address has to be reminded.
    pub(crate) fn keepalive(&self, local: IpAddr) -> Duration {
        self.0.get(&local).map_or(KEEPALIVE.0, |uplink| uplink.keepalive)
    }

    /// The NAT in front of this address has forgotten us although it was reminded.
    pub(crate) fn forgotten(&mut self, local: IpAddr) {
        let uplink = self.0.entry(local).or_default();
        uplink.keepalive = (uplink.keepalive * 2 / 3).max(KEEPALIVE.1);
    }

    /// Addresses that we no longer have are forgotten.
    pub(crate) fn retain(&mut self, ours: impl Fn(IpAddr) -> bool) {
        self.0.retain(|address, _| ours(*address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn way(remote: u8) -> Path {
        let socket = |last: u8| (IpAddr::from([192, 0, 2, last]), 4500).into();
        Path::new(socket(1), socket(remote))
    }

    #[test]
    fn the_newest_result_counts_most_and_old_ones_fade() {
        let mut score = Score::default();
        (0..10).for_each(|n| score.note(at(n), true));
        assert!(score.now(at(10)) > FULL * 9 / 10);
        score.note(at(10), false);
        score.note(at(11), false);
        assert!(score.now(at(11)) < FAILED, "two new failures outweigh ten old answers");
        assert!(score.now(at(11 + 240)) > FAILED, "after minutes it is worth another try");
    }

    #[test]
    fn a_pair_measures_its_round_trip_time_and_its_loss() {
        let mut pairs = Pairs::default();
        assert_eq!(pairs.of(way(2)).state(at(0)), PairState::Untried);
        pairs.sent(at(1), way(2));
        assert_eq!(pairs.of(way(2)).state(at(1)), PairState::Testing);
        pairs.answered(at(1) + Duration::from_millis(40), way(2), None);
        assert_eq!(pairs.of(way(2)).rtt(), Some(Duration::from_millis(40)));
        assert_eq!(pairs.of(way(2)).state(at(2)), PairState::Operational);
        pairs.sent(at(3), way(2));
        pairs.conclude(at(4));
        pairs.silent(at(4), way(2));
        assert_eq!(pairs.of(way(2)).loss(), Some(66));
        assert_eq!(pairs.of(way(2)).state(at(4)), PairState::Failed);
        assert_eq!(pairs.of(way(2)).timeout(), Duration::from_millis(200));
    }

    #[test]
    fn a_nat_that_forgets_is_reminded_more_often() {
        let (mut uplinks, local) = (Uplinks::default(), way(2).local.ip());
        let mut intervals = vec![uplinks.keepalive(local)];
        for _ in 0..6 {
            uplinks.forgotten(local);
            intervals.push(uplinks.keepalive(local));
        }
        assert!(intervals.is_sorted_by(|a, b| a >= b), "{intervals:?}");
        assert_eq!((intervals[0], intervals[6]), KEEPALIVE);
        uplinks.retain(|_| false);
        assert_eq!(uplinks.keepalive(local), KEEPALIVE.0, "another network, another NAT");
    }

    #[test]
    fn the_memory_of_pairs_is_bounded() {
        let mut pairs = Pairs::default();
        (0..=255).for_each(|n| pairs.answered(at(n.into()), way(n), None));
        assert_eq!(pairs.0.len(), MOST_PAIRS);
        assert!(pairs.get(way(255)).is_some() && pairs.get(way(0)).is_none());
    }
}
