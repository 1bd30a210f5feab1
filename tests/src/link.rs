//! What the network does to a datagram on its way from one uplink to another.

use std::time::Duration;

use bewick_ike::{Random, Time};

use crate::seed::below;

/// A probability in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chance(u32);

impl Chance {
    /// It never happens.
    pub const NEVER: Chance = Chance(0);
    /// It always happens.
    pub const ALWAYS: Chance = Chance(1_000_000);

    /// `percent` per cent, at most 100.
    pub const fn percent(percent: u32) -> Self {
        Chance(if percent > 100 { 1_000_000 } else { percent * 10_000 })
    }

    /// `parts` per million, at most a million.
    pub const fn per_million(parts: u32) -> Self {
        Chance(if parts > 1_000_000 { 1_000_000 } else { parts })
    }

    /// Throws the dice.
    pub fn happens(self, random: &mut Random) -> bool {
        // The draw is made whatever the chance is, so that turning one knob does not shift all the
        // other outcomes of the run.
        below(random, 1_000_000) < u64::from(self.0)
    }
}

/// The character of one direction between two uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// one-way delay
    pub delay: Duration,
    /// at most this much is added to `delay`, uniformly; it does not change the order
    pub jitter: Duration,
    /// how often a datagram is lost
    pub loss: Chance,
    /// how often a datagram arrives twice, the copy with a delay of its own
    pub duplicate: Chance,
    /// how often a datagram is held for `reorder_by` while later ones overtake it
    pub reorder: Chance,
    /// how long a datagram is held that is to be overtaken
    pub reorder_by: Duration,
    /// the biggest IP packet in octets; a bigger one is lost without a word, for fragments don't pass
    pub mtu: Option<usize>,
    /// everything is swallowed without a word
    pub black_hole: bool,
}

impl Link {
    /// A link that loses, doubles and reorders a good part of all datagrams.
    pub const fn bad(delay: Duration) -> Self {
        Link {
            loss: Chance::percent(20),
            duplicate: Chance::percent(10),
            reorder: Chance::percent(20),
            reorder_by: Duration::from_millis(30),
            ..Link::of_delay(delay)
        }
    }

    /// A link that only takes time.
    pub const fn of_delay(delay: Duration) -> Self {
        Link {
            delay,
            jitter: Duration::ZERO,
            loss: Chance::NEVER,
            duplicate: Chance::NEVER,
            reorder: Chance::NEVER,
            reorder_by: Duration::ZERO,
            mtu: None,
            black_hole: false,
        }
    }

    /// Whether an IP packet of `octets` octets gets through at all.
    pub(crate) fn too_big(&self, octets: usize) -> bool {
        self.mtu.is_some_and(|mtu| octets > mtu)
    }

    /// When copies of a datagram that leaves at `now` arrive: none, one or two.
    ///
    /// `last` is when the latest datagram that kept its place arrives; what keeps its place does
    /// not overtake it.
    pub(crate) fn arrivals(&self, now: Time, last: &mut Time, random: &mut Random) -> Vec<Time> {
        let lost = self.loss.happens(random);
        let held = self.reorder.happens(random);
        let twice = self.duplicate.happens(random);
        let first = self.travel(random);
        let second = self.travel(random);
        if lost || self.black_hole {
            return Vec::new();
        }
        let mut arrivals = Vec::with_capacity(2);
        if held {
            arrivals.push(now + first + self.reorder_by);
        } else {
            *last = (now + first).max(*last);
            arrivals.push(*last);
        }
        if twice {
            arrivals.push(now + second.max(first));
        }
        arrivals
    }

    fn travel(&self, random: &mut Random) -> Duration {
        let most = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        self.delay + Duration::from_micros(below(random, most.saturating_add(1)))
    }
}

impl Default for Link {
    /// 10 ms one way and nothing else.
    fn default() -> Self {
        Link::of_delay(Duration::from_millis(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::stream;

    fn count(link: Link) -> (usize, usize) {
        let mut random = stream(3, "link");
        let mut last = Time::ZERO;
        let mut lost = 0;
        let mut twice = 0;
        for _ in 0..10_000 {
            match link.arrivals(Time::ZERO, &mut last, &mut random).len() {
                0 => lost += 1,
                2 => twice += 1,
                _ => {}
            }
        }
        (lost, twice)
    }

    #[test]
    fn loss_and_duplication_are_as_frequent_as_asked() {
        let mut link = Link { loss: Chance::percent(20), ..Link::default() };
        let (lost, twice) = count(link);
        assert!((1880..2120).contains(&lost), "{lost} of 10000 at 20 %");
        assert_eq!(twice, 0);
        link.loss = Chance::NEVER;
        link.duplicate = Chance::per_million(50_000);
        let (lost, twice) = count(link);
        assert_eq!(lost, 0);
        assert!((430..570).contains(&twice), "{twice} of 10000 at 5 %");
        link.loss = Chance::ALWAYS;
        assert_eq!(count(link), (10_000, 0));
    }

    #[test]
    fn jitter_stays_in_its_range_and_keeps_the_order() {
        let link = Link { jitter: Duration::from_millis(5), ..Link::default() };
        let mut random = stream(4, "link");
        let mut last = Time::ZERO;
        let mut earlier = Time::ZERO;
        for ms in 0..1000 {
            let now = Time::from_micros(ms * 1000);
            let arrivals = link.arrivals(now, &mut last, &mut random);
            let [at] = arrivals[..] else { panic!("one arrival expected") };
            assert!(at >= earlier);
            let took = at.since(now);
            assert!(took >= link.delay && took <= link.delay + link.jitter, "{took:?}");
            earlier = at;
        }
    }

    #[test]
    fn a_held_datagram_is_overtaken() {
        let mut link = Link {
            reorder: Chance::ALWAYS,
            reorder_by: Duration::from_millis(3),
            ..Link::default()
        };
        let mut random = stream(5, "link");
        let mut last = Time::ZERO;
        let held = link.arrivals(Time::ZERO, &mut last, &mut random);
        link.reorder = Chance::NEVER;
        let next = link.arrivals(Time::from_micros(1000), &mut last, &mut random);
        assert!(next < held);
    }
}
