//! The time of day, for certificates: told by the driver, and carried on by the machines' own clock.

use super::UnixSeconds;
use crate::time::Time;

/// What the time of day was at one moment of the driver's clock. The driver gives a new one when the
/// time of day is set, since the monotonic clock does not see that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WallClock {
    at: Time,
    unix: UnixSeconds,
}

impl WallClock {
    /// It was `unix` at the moment `at`.
    pub fn new(at: Time, unix: UnixSeconds) -> Self {
        WallClock { at, unix }
    }

    /// The time of day at the moment `now`.
    pub fn at(&self, now: Time) -> UnixSeconds {
        let UnixSeconds(unix) = self.unix;
        let (later, earlier) = (now.since(self.at).as_secs(), self.at.since(now).as_secs());
        UnixSeconds(unix.saturating_add(later).saturating_sub(earlier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_day_goes_on_with_the_clock() {
        let second = |n: u64| Time::from_micros(n * 1_000_000);
        let clock = WallClock::new(second(100), UnixSeconds(1_800_000_000));
        assert_eq!(clock.at(second(100)), UnixSeconds(1_800_000_000));
        assert_eq!(clock.at(second(160)), UnixSeconds(1_800_000_060));
        assert_eq!(clock.at(second(40)), UnixSeconds(1_799_999_940));
        assert_eq!(WallClock::new(second(9), UnixSeconds(0)).at(Time::ZERO), UnixSeconds(0));
    }
}
