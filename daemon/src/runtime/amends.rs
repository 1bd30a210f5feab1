//! When the data plane is compared with what is to be there: at once, but not again and again while another
//! program goes on taking things away, and once more after a comparison that failed.

use std::time::{Duration, Instant};

use tracing::warn;

use super::Daemon;

/// The least time between two comparisons: each reads all states and policies.
const PAUSE: Duration = Duration::from_secs(1);

/// When the next comparison is due.
#[derive(Debug, Default)]
pub(super) struct Amends {
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Amends {
    /// Something is not as it was left.
    pub(super) fn want(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| now.max(last + PAUSE));
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
}

impl Daemon {
    /// Compares, if it is time.
    pub(super) async fn amend(&mut self) {
        if !self.amends.begin(Instant::now()) {
            return;
        }
        if let Err(e) = self.plane.reconcile().await {
            warn!("what the data plane has is not known, and is looked at again: {e}");
            self.amends.want(Instant::now());
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
    }
}
