//! How a thread waits for packets: awake while they come quickly, asleep otherwise.
//!
//! Under load the next packets are there before a thread has gone to sleep, and waking it costs more than
//! what is done for a packet. It then lets others run first and looks again. Where packets come now and
//! then it sleeps at once, so that the scheduler wakes it at once.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// Packets that come no further apart than this come quickly.
const QUICK: Duration = Duration::from_micros(500);

/// Whether the last wait of a thread was short.
#[derive(Debug, Default)]
pub(crate) struct Eager(AtomicBool);

/// One wait.
pub(crate) struct Wait<'a> {
    eager: &'a Eager,
    since: Instant,
    /// may look once more before it sleeps
    again: bool,
}

impl Eager {
    /// Begins when there is nothing yet; ends when it is dropped, as there is something.
    pub(crate) fn wait(&self) -> Wait<'_> {
        Wait { eager: self, since: Instant::now(), again: self.0.load(Relaxed) }
    }
}

impl Wait<'_> {
    /// Whether the last wait was short.
    pub(crate) fn is_quick(&self) -> bool {
        self.eager.0.load(Relaxed)
    }

    /// Whether to look again instead of sleeping: once, after others have run.
    pub(crate) fn again(&mut self) -> bool {
        let again = std::mem::take(&mut self.again);
        if again {
            thread::yield_now();
        }
        again
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // The turn of others may have been long too: then a sleeper is served sooner.
        self.eager.0.store(self.since.elapsed() < QUICK, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_again_once_and_only_after_a_wait_that_was_short() {
        let eager = Eager::default();
        assert!(!eager.wait().again(), "at first it sleeps");
        let quick = |quick| Eager(AtomicBool::new(quick));
        let eager = quick(true);
        let mut wait = eager.wait();
        assert!(wait.again());
        assert!(!wait.again(), "then it sleeps");
        let eager = quick(true);
        let mut wait = eager.wait();
        wait.since = Instant::now().checked_sub(QUICK).unwrap();
        drop(wait);
        assert!(!eager.wait().again(), "after a long one it sleeps");
    }
}
