//! The anti-replay window and the sequence number's unsent half (RFC 4303 §3.4.3, Appendix A).

use bewick_ike::REPLAY_WINDOWS;

/// Which sequence numbers have been accepted: the highest, and those of the `size` up to it.
///
/// The bitmap is a ring of words, one more than the window needs, so that the window moves by
/// clearing whole words instead of shifting.
pub(super) struct ReplayWindow {
    words: Box<[u64]>,
    size: u64,
    top: u64,
    /// how many have been accepted
    accepted: u64,
    esn: bool,
}

impl ReplayWindow {
    /// A window of `size` packets, kept within [`REPLAY_WINDOWS`]; none has been accepted.
    pub(super) fn new(size: u32, esn: bool) -> Self {
        let size = size.clamp(*REPLAY_WINDOWS.start(), *REPLAY_WINDOWS.end());
        let words = vec![0; size.div_ceil(64) as usize + 1].into_boxed_slice();
        ReplayWindow { words, size: u64::from(size), top: 0, accepted: 0, esn }
    }

    /// The whole sequence number of a packet that shows `low` (RFC 4303 Appendix A2.2).
    ///
    /// With extended sequence numbers it is a guess that the integrity check has to confirm.
    pub(super) fn whole(&self, low: u32) -> u64 {
        if !self.esn {
            return u64::from(low);
        }
        let (top_high, top_low) = (self.top >> 32, self.top as u32);
        let bottom = top_low.wrapping_sub(self.size as u32 - 1);
        let high = if u64::from(top_low) >= self.size - 1 {
            // The window lies within one high half; below it means the next one.
            if low >= bottom { top_high } else { top_high.saturating_add(1) }
        } else if low >= bottom {
            // The window straddles two; at its start there is nothing below zero.
            top_high.saturating_sub(1)
        } else {
            top_high
        };
        // The last high half has no next: the packet then fails its integrity check.
        (high & u64::from(u32::MAX)) << 32 | u64::from(low)
    }

    /// Whether `sequence` may still be accepted.
    pub(super) fn is_fresh(&self, sequence: u64) -> bool {
        if sequence == 0 {
            // RFC 4303 §2.2: the first packet has number 1.
            return false;
        }
        if sequence > self.top {
            return true;
        }
        if self.top - sequence >= self.size {
            return false;
        }
        let (word, bit) = self.place(sequence);
        self.words.get(word).is_some_and(|word| word & bit == 0)
    }

    /// Accepts `sequence` once its packet has passed the integrity check; false if it is not fresh.
    pub(super) fn accept(&mut self, sequence: u64) -> bool {
        if !self.is_fresh(sequence) {
            return false;
        }
        if sequence > self.top {
            let count = self.words.len() as u64;
            let steps = (sequence / 64 - self.top / 64).min(count);
            for step in 1..=steps {
                let word = ((self.top / 64 + step) % count) as usize;
                if let Some(word) = self.words.get_mut(word) {
                    *word = 0;
                }
            }
            self.top = sequence;
        }
        let (word, bit) = self.place(sequence);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
        self.accepted += 1;
        true
    }

    /// How many sequence numbers up to the highest accepted one have not been accepted.
    pub(super) fn missing(&self) -> u64 {
        self.top.saturating_sub(self.accepted)
    }

    fn place(&self, sequence: u64) -> (usize, u64) {
        ((sequence / 64 % self.words.len() as u64) as usize, 1 << (sequence % 64))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_is_never_accepted_and_one_is() {
        for esn in [false, true] {
            let mut window = ReplayWindow::new(64, esn);
            assert!(!window.accept(0));
            assert!(window.accept(1));
            assert!(!window.accept(1));
        }
    }

    #[test]
    fn the_lower_edge_is_exact() {
        for size in [64, 65, 100, 1024, 4096] {
            let mut window = ReplayWindow::new(size, false);
            let top = 1_000_000;
            assert!(window.accept(top));
            assert!(!window.accept(top - u64::from(size)));
            assert!(window.accept(top - u64::from(size) + 1));
            assert!(!window.accept(top - u64::from(size) + 1));
        }
    }

    #[test]
    fn far_jumps_forget_everything_below() {
        let mut window = ReplayWindow::new(128, false);
        for sequence in 1..=500 {
            assert!(window.accept(sequence));
        }
        assert!(window.accept(u64::from(u32::MAX)));
        for sequence in 0..=127 {
            assert_eq!(window.accept(u64::from(u32::MAX) - sequence), sequence != 0);
        }
        assert!(!window.accept(500));
    }

    #[test]
    fn what_is_missing_is_what_lies_below_and_never_came() {
        let mut window = ReplayWindow::new(64, false);
        assert_eq!(window.missing(), 0);
        let mut accept = |sequence| {
            window.accept(sequence);
            window.missing()
        };
        assert_eq!([1, 2, 5, 5, 3].map(&mut accept), [0, 0, 2, 2, 1]);
        assert_eq!(accept(1000), 995, "4 and 6 to 999");
        assert_eq!(accept(4), 995, "too late");
        assert_eq!(accept(999), 994);
    }

    #[test]
    fn sizes_are_kept_in_bounds() {
        assert_eq!(ReplayWindow::new(0, false).size, 64);
        assert_eq!(ReplayWindow::new(u32::MAX, false).size, 4096);
    }

    #[test]
    fn the_high_half_is_inferred_around_a_wrap() {
        let mut window = ReplayWindow::new(64, true);
        assert_eq!(window.whole(1), 1);
        assert_eq!(window.whole(u32::MAX), 0xffff_ffff);
        assert!(window.accept(0xffff_fff0));
        assert_eq!(window.whole(0xffff_fff8), 0xffff_fff8);
        assert_eq!(window.whole(5), 0x1_0000_0005);
        assert!(window.accept(0x1_0000_0005));
        assert_eq!(window.whole(0xffff_fff8), 0xffff_fff8);
        assert!(window.accept(0xffff_fff8));
        assert!(!window.accept(0xffff_fff0));
        assert_eq!(window.whole(0x1000), 0x1_0000_1000);
        let mut last = ReplayWindow::new(64, true);
        assert!(last.accept(u64::MAX));
        assert_eq!(last.whole(3), 3);
        assert!(!last.is_fresh(3));
    }

    proptest! {
        /// Against a model that remembers everything.
        #[test]
        fn the_window_does_as_a_set_does(
            size in 64u32..300,
            steps in prop::collection::vec((0u64..400, prop::bool::weighted(0.05)), 1..400),
        ) {
            let mut window = ReplayWindow::new(size, false);
            let mut seen = BTreeSet::new();
            let mut base = 1u64;
            for (offset, jump) in steps {
                base += if jump { 700 } else { 3 };
                let sequence = base + offset;
                let top = seen.last().copied().unwrap_or(0);
                let fresh = !seen.contains(&sequence) && sequence + u64::from(size) > top;
                prop_assert_eq!(window.accept(sequence), fresh);
                if fresh {
                    seen.insert(sequence);
                }
            }
        }

        /// Whatever is within the window or less than half the space ahead is inferred rightly.
        #[test]
        fn the_inferred_number_is_the_true_one(top in 1u64..1 << 48, ahead in -63i64..1 << 31) {
            let mut window = ReplayWindow::new(64, true);
            prop_assume!(window.accept(top));
            if let Some(sequence) = top.checked_add_signed(ahead).filter(|s| *s > 0) {
                prop_assert_eq!(window.whole(sequence as u32), sequence);
            }
        }
    }
}
