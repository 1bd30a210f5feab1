//! When the data plane is compared with what is to be there: at once, but not again and again while another
//! program goes on taking things away, and once more after a comparison that failed.

use std::time::{Duration, Instant};

use tracing::warn;

use super::Daemon;

/// The least time between two comparisons: each reads all states and policies. It doubles with each that
/// fails, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// When the next comparison is due.
#[derive(Debug, Default)]
pub(super) struct Amends {
    last: Option<Instant>,
    /// in a row
    failures: u32,
    due: Option<Instant>,
}

impl Amends {
    /// Something is not as it was left.
    pub(super) fn want(&mut self, now: Instant) {
        let pause = PAUSE.0.saturating_mul(1 << self.failures.min(6)).min(PAUSE.1);
        let earliest = self.last.map_or(now, |last| now.max(last + pause));
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is time, which then is noted.
    fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            (self.last, self.due) = (Some(now), None);
        }
        is_due
    }

    /// It has been done, or could not be.
    fn end(&mut self, now: Instant, done: bool) {
        self.failures = if done { 0 } else { self.failures.saturating_add(1) };
        if !done {
            self.want(now);
        }
    }
}

impl Daemon {
    /// Compares, if it is time.
    pub(super) async fn amend(&mut self) {
        if !self.amends.begin(Instant::now()) {
            return;
        }
        let result = self.plane.reconcile().await;
        self.amends.end(Instant::now(), result.is_ok());
        if let Err(e) = result {
            warn!("what the data plane has is not known, and is looked at again: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_compared_at_once_and_then_after_a_pause() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut amends = Amends::default();
        assert!(!amends.begin(at(0)), "nothing has happened");
        amends.want(at(0));
        assert_eq!(amends.due(), Some(at(0)));
        assert!(amends.begin(at(0)));
        assert_eq!(amends.due(), None);
        for again in [10, 20, 30] {
            amends.want(at(again));
        }
        assert_eq!(amends.due(), Some(at(1000)));
        assert!(!amends.begin(at(999)));
        assert!(amends.begin(at(1000)) && !amends.begin(at(1000)), "once");
        amends.want(at(5000));
        assert!(amends.begin(at(5000)), "after quiet times at once");
        let mut now = 5000;
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            amends.end(at(now), false);
            now += seconds * 1000;
            assert_eq!(amends.due(), Some(at(now)));
            assert!(amends.begin(at(now)));
        }
        amends.end(at(now), true);
        assert_eq!(amends.due(), None);
        amends.want(at(now));
        assert_eq!(amends.due(), Some(at(now + 1000)));
    }
}
