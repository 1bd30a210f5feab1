//! ESP packets that are there before their CHILD_SA.
//!
//! Who answers may send on a new CHILD_SA as soon as the answer is out (RFC 7296 §2.8), and the first packets come
//! while the answer is still being dealt with. They wait here for a moment.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

use bewick_ike::{EspSpi, Path};

/// Packets that wait at most, all peers' together. Whoever sends more of unknown SPIs has the rest dropped, at
/// no more cost than a look.
const MOST: usize = 64;

/// How long one waits.
const LONGEST: Duration = Duration::from_millis(500);

/// A packet that waits.
pub(super) struct Waiting {
    spi: EspSpi,
    since: Duration,
    pub(super) path: Path,
    pub(super) class: u8,
    pub(super) octets: Vec<u8>,
}

/// The packets that wait, oldest first.
#[derive(Default)]
pub(super) struct Early(Mutex<VecDeque<Waiting>>);

impl Early {
    /// Keeps a copy, if there is room; tells whether it did. Nobody waits for another thread here.
    pub(super) fn keep(
        &self,
        now: Duration,
        spi: EspSpi,
        (path, class): (Path, u8),
        octets: &[u8],
    ) -> bool {
        let Ok(mut waiting) = self.0.try_lock() else { return false };
        while waiting.front().is_some_and(|one| now.saturating_sub(one.since) > LONGEST) {
            waiting.pop_front();
        }
        let room = waiting.len() < MOST;
        if room {
            let octets = octets.to_vec();
            waiting.push_back(Waiting { spi, since: now, path, class, octets });
        }
        room
    }

    /// Takes those of this SPI that have not waited too long.
    pub(super) fn take(&self, now: Duration, spi: EspSpi) -> Vec<Waiting> {
        let Ok(mut waiting) = self.0.lock() else { return Vec::new() };
        let (taken, left): (VecDeque<_>, _) = waiting.drain(..).partition(|one| one.spi == spi);
        *waiting = left;
        taken.into_iter().filter(|one| now.saturating_sub(one.since) <= LONGEST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> Path {
        Path::new("192.0.2.1:4500".parse().unwrap(), "198.51.100.2:4500".parse().unwrap())
    }

    #[test]
    fn few_wait_and_not_for_long() {
        let early = Early::default();
        let at = Duration::from_millis;
        for number in 0..100 {
            let kept = early.keep(at(number), EspSpi(7), (path(), 0), &[1; 100]);
            assert_eq!(kept, number < MOST as u64);
        }
        assert!(early.take(at(100), EspSpi(8)).is_empty());
        // Those of the first ten milliseconds are too old.
        assert_eq!(early.take(at(510), EspSpi(7)).len(), MOST - 10);
        assert!(early.take(at(510), EspSpi(7)).is_empty());
        assert!(early.keep(at(2000), EspSpi(7), (path(), 0), &[1]));
        for number in 0..MOST as u64 - 1 {
            assert!(early.keep(at(2000 + number), EspSpi(9), (path(), 0), &[1]));
        }
        assert!(!early.keep(at(2100), EspSpi(9), (path(), 0), &[1]));
        assert!(early.keep(at(2501), EspSpi(9), (path(), 0), &[1]), "the first one has gone");
    }
}
