//! The virtual clock: a queue of things to come, ordered by time and then by who asked first.

use std::collections::BTreeMap;

use bewick_ike::Time;

/// Future events of type `T` and the present moment. Two events of one time come out in the order
/// in which they were put in, so that a run depends on nothing but its inputs.
#[derive(Debug)]
pub struct Timeline<T> {
    now: Time,
    entries: BTreeMap<(Time, u64), T>,
    sequence: u64,
}

impl<T> Timeline<T> {
    /// An empty timeline that stands at [`Time::ZERO`].
    pub fn new() -> Self {
        Timeline { now: Time::ZERO, entries: BTreeMap::new(), sequence: 0 }
    }

    /// The present moment.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Puts `event` at `time`, or at the present moment if `time` is past.
    pub fn put(&mut self, time: Time, event: T) {
        self.entries.insert((time.max(self.now), self.sequence), event);
        self.sequence += 1;
    }

    /// When the next event comes.
    pub fn next_time(&self) -> Option<Time> {
        self.entries.keys().next().map(|&(time, _)| time)
    }

    /// Takes the next event not later than `until` and moves the clock to it; with none left, moves
    /// the clock to `until`.
    pub fn pop(&mut self, until: Time) -> Option<T> {
        match self.entries.first_entry() {
            Some(entry) if entry.key().0 <= until => {
                self.now = self.now.max(entry.key().0);
                Some(entry.remove())
            }
            _ => {
                self.now = self.now.max(until);
                None
            }
        }
    }

    /// How many events are to come.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is to come.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T> Default for Timeline<T> {
    fn default() -> Self {
        Timeline::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_insertion() {
        let mut line = Timeline::new();
        line.put(Time::from_micros(20), 'c');
        line.put(Time::from_micros(10), 'a');
        line.put(Time::from_micros(20), 'd');
        line.put(Time::from_micros(10), 'b');
        let end = Time::from_micros(20);
        let order: String = std::iter::from_fn(|| line.pop(end)).collect();
        assert_eq!(order, "abcd");
    }

    #[test]
    fn the_clock_never_runs_back_and_stops_where_it_is_told() {
        let mut line = Timeline::new();
        line.put(Time::from_micros(50), 1);
        assert_eq!(line.pop(Time::from_micros(40)), None);
        assert_eq!(line.now(), Time::from_micros(40));
        line.put(Time::from_micros(10), 0);
        assert_eq!(line.next_time(), Some(Time::from_micros(40)));
        assert_eq!(line.pop(Time::from_micros(5)), None);
        assert_eq!(line.pop(Time::from_micros(60)), Some(0));
        assert_eq!(line.pop(Time::from_micros(60)), Some(1));
        assert_eq!(line.now(), Time::from_micros(50));
    }
}
