//! The last moves, as `bewick moves` shows them. They outlive the IKE_SAs that made them.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use bewick_ike::{CloseReason, ConnectionId, Path, SaId};
use bewick_mobike::{Cause, Event, Tried};
use bewick_xfrm::MoveReport;

use crate::control::roaming::{MoveRecord, Outcome, TriedPath};

/// Moves that are remembered, of all connections together.
const MOST: usize = 256;

/// What a move has cost is told when it has been over for so long.
const SETTLED: Duration = Duration::from_secs(1);

/// The moves of one run of the daemon.
pub(super) struct History {
    started: Instant,
    names: Vec<String>,
    /// the oldest first
    over: VecDeque<MoveRecord>,
    /// how many there were in all: their numbers go up to this
    kept: usize,
    /// the newest of each IKE_SA that moved, and when: what it cost is seen when traffic has gone on. Only of
    /// what is in `over`, so that a storm of moves does not make this long.
    unmeasured: BTreeMap<SaId, (Instant, usize)>,
    /// one for each IKE_SA at most, gone with it
    under_way: BTreeMap<SaId, UnderWay>,
}

struct UnderWay {
    since: Instant,
    to: Path,
    record: MoveRecord,
}

impl History {
    /// Times count from `started`; `names` are the connections'.
    pub(super) fn new(started: Instant, names: Vec<String>) -> Self {
        History {
            started,
            names,
            over: VecDeque::new(),
            kept: 0,
            unmeasured: BTreeMap::new(),
            under_way: BTreeMap::new(),
        }
    }

    /// Those of a connection or of all: the oldest first, those that are under way last.
    pub(super) fn list(&self, name: Option<&str>) -> Vec<MoveRecord> {
        let under_way = self.under_way.values().map(|one| &one.record);
        let all = self.over.iter().chain(under_way);
        all.filter(|record| name.is_none_or(|name| record.connection == name)).cloned().collect()
    }

    /// The data plane has moved CHILD_SAs of this IKE_SA.
    pub(super) fn reprogrammed(&mut self, sa: SaId, children: usize, report: &MoveReport) {
        let Some(UnderWay { record, .. }) = self.under_way.get_mut(&sa) else { return };
        // A move that goes in two steps moves the same ones again.
        record.children = record.children.max(u64::try_from(children).unwrap_or(u64::MAX));
        record.requests = record.requests.saturating_add(report.requests.into());
        record.plane_ms += ms(report.took);
    }

    /// The IKE_SA that begins to move with an event that [`History::event`] does not know yet.
    pub(super) fn begins(&self, event: &Event) -> Option<SaId> {
        match event {
            Event::Moving { sa, .. } if !self.under_way.contains_key(sa) => Some(*sa),
            _ => None,
        }
    }

    /// When the next move has been over for so long that its cost can be told.
    pub(super) fn next_measure(&self) -> Option<Instant> {
        self.unmeasured.values().map(|(since, _)| *since + SETTLED).min()
    }

    /// The IKE_SAs whose last move has been over for so long by `now`.
    pub(super) fn to_measure(&self, now: Instant) -> Vec<SaId> {
        let due = |since: Instant| since + SETTLED <= now;
        self.unmeasured.iter().filter(|(_, (since, _))| due(*since)).map(|(sa, _)| *sa).collect()
    }

    /// The longest time without a packet in, and the packets that never came, since the move began.
    pub(super) fn measured(&mut self, sa: SaId, gap: Option<Duration>, lost: u64) {
        let Some((_, number)) = self.unmeasured.remove(&sa) else { return };
        let oldest = self.oldest();
        let record = number.checked_sub(oldest).and_then(|at| self.over.get_mut(at));
        if let (Some(record), Some(gap)) = (record, gap) {
            record.gap_ms = Some(ms(gap));
            record.lost_in = Some(lost);
        }
    }

    /// Keeps what an event says of a move.
    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::Moving { connection, sa, from, to, cause } => {
                self.begin(*connection, *sa, (*from, *to), *cause);
            }
            Event::Moved { sa, from, to, cause, took, tried, .. } => {
                let Some(UnderWay { mut record, .. }) = self.under_way.remove(sa) else { return };
                record.turn((*from, *to), *cause);
                record.outcome = Outcome::Moved;
                record.took_ms = Some(ms(*took));
                record.tried = tried.iter().map(tried_path).collect();
                let number = self.keep(record);
                self.unmeasured.insert(*sa, (Instant::now(), number));
            }
            Event::MoveFailed { sa, error, tried, .. } => {
                if let Some(one) = self.under_way.get_mut(sa) {
                    one.record.tried = tried.iter().map(tried_path).collect();
                }
                self.fail(*sa, error.0.clone());
            }
            Event::Stranded { sa, .. } => {
                self.fail(*sa, "no address is left that can reach the peer".into());
            }
            Event::Closed { sa, reason, .. } => {
                self.unmeasured.remove(sa);
                self.fail(*sa, reason.to_string());
            }
            // RFC 4555 §3.7: the peer has not shown that it receives where it says that it is.
            Event::Refused { path, reason: reason @ CloseReason::Unanswered(_) } => {
                let mut under_way = self.under_way.iter();
                let sa = under_way.find(|(_, one)| one.to == *path).map(|(sa, _)| *sa);
                if let Some(sa) = sa {
                    self.fail(sa, reason.to_string());
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, id: ConnectionId, sa: SaId, (from, to): (Path, Path), cause: Cause) {
        // Two moves in a row are one: it begins where traffic last was.
        if let Some(one) = self.under_way.get_mut(&sa) {
            one.to = to;
            let from = Path::new(one.record.from, one.record.remote_from);
            one.record.turn((from, to), cause);
            return;
        }
        let since = Instant::now();
        let after = since.saturating_duration_since(self.started);
        let record = MoveRecord {
            at_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
            time: rfc3339(SystemTime::now()),
            connection: self.names.get(id.0).cloned().unwrap_or_default(),
            outcome: Outcome::Moving,
            cause: cause.to_string(),
            from: from.local,
            to: to.local,
            remote_from: from.remote,
            remote_to: to.remote,
            tried: Vec::new(),
            took_ms: None,
            children: 0,
            requests: 0,
            plane_ms: 0.0,
            gap_ms: None,
            lost_in: None,
            error: None,
        };
        self.under_way.insert(sa, UnderWay { since, to, record });
    }

    fn fail(&mut self, sa: SaId, error: String) {
        let Some(UnderWay { mut record, since, .. }) = self.under_way.remove(&sa) else { return };
        record.outcome = Outcome::Failed;
        record.took_ms = Some(ms(since.elapsed()));
        record.error = Some(error);
        self.keep(record);
    }

    /// Keeps a record and gives its number.
    fn keep(&mut self, record: MoveRecord) -> usize {
        if self.over.len() >= MOST {
            self.over.pop_front();
            let oldest = self.oldest();
            self.unmeasured.retain(|_, (_, number)| *number >= oldest);
        }
        self.over.push_back(record);
        self.kept += 1;
        self.kept - 1
    }

    /// The number of the oldest record.
    fn oldest(&self) -> usize {
        self.kept - self.over.len()
    }
}

impl MoveRecord {
    fn turn(&mut self, (from, to): (Path, Path), cause: Cause) {
        (self.from, self.remote_from) = (from.local, from.remote);
        (self.to, self.remote_to) = (to.local, to.remote);
        self.cause = cause.to_string();
    }
}

fn tried_path(tried: &Tried) -> TriedPath {
    TriedPath {
        local: tried.path.local,
        remote: tried.path.remote,
        after_ms: ms(tried.after),
        answered_ms: tried.answered.map(ms),
    }
}

/// Milliseconds, with no more digits than were measured.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

/// A time of day as RFC 3339 has it, in UTC, with milliseconds.
fn rfc3339(time: SystemTime) -> String {
    let unix = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (unix.as_secs() / 86_400, unix.as_secs() % 86_400);
    // Years begin in March here, so that the day that some have more is the last one, and eras of 400
    // years on 1 March of a year that 400 divides.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let milli = unix.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use bewick_ike::ActionError;

    use super::*;

    const OFFICE: ConnectionId = ConnectionId(0);

    fn way(local: u8) -> Path {
        let socket = |last: u8| ([192, 0, 2, last], 4500).into();
        Path::new(socket(local), socket(200))
    }

    fn history() -> History {
        History::new(Instant::now(), vec!["office".into(), "lab".into()])
    }

    fn moving(connection: ConnectionId, sa: u64, from: u8, to: u8) -> Event {
        let (from, to, cause) = (way(from), way(to), Cause::Requested);
        Event::Moving { connection, sa: SaId(sa), from, to, cause }
    }

    fn moved(connection: ConnectionId, sa: u64, from: u8, to: u8) -> Event {
        let (after, answered) = (Duration::from_millis(100), Some(Duration::from_millis(7)));
        Event::Moved {
            connection,
            sa: SaId(sa),
            from: way(from),
            to: way(to),
            cause: Cause::Silence,
            took: Duration::from_micros(3_250),
            tried: vec![Tried { path: way(to), after, answered }],
        }
    }

    #[test]
    fn a_move_is_recorded_with_what_it_cost() {
        let mut history = history();
        history.event(&moving(OFFICE, 1, 1, 2));
        assert_eq!(history.list(None)[0].outcome, Outcome::Moving);
        let report = MoveReport {
            requests: 4,
            round_trips: 2,
            took: Duration::from_micros(500),
            ..MoveReport::default()
        };
        history.reprogrammed(SaId(1), 2, &report);
        history.reprogrammed(SaId(1), 2, &report);
        history.reprogrammed(SaId(9), 7, &report);
        history.event(&moved(OFFICE, 1, 1, 2));
        let list = history.list(Some("office"));
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].outcome, list[0].took_ms), (Outcome::Moved, Some(3.25)));
        assert_eq!((list[0].children, list[0].requests, list[0].plane_ms), (2, 8, 1.0));
        assert_eq!(list[0].cause, Cause::Silence.to_string());
        assert_eq!((list[0].tried[0].after_ms, list[0].tried[0].answered_ms), (100.0, Some(7.0)));
        assert!(history.list(Some("lab")).is_empty());
    }

    #[test]
    fn what_a_move_cost_is_asked_for_once_when_it_has_settled() {
        let mut history = history();
        history.event(&moving(OFFICE, 1, 1, 2));
        assert_eq!(history.next_measure(), None, "not while it is under way");
        history.event(&moved(OFFICE, 1, 1, 2));
        let due = history.next_measure().unwrap();
        assert!(history.to_measure(due - Duration::from_millis(1)).is_empty());
        assert_eq!(history.to_measure(due), [SaId(1)]);
        history.measured(SaId(1), Some(Duration::from_micros(4500)), 2);
        let record = &history.list(None)[0];
        assert_eq!((record.gap_ms, record.lost_in), (Some(4.5), Some(2)));
        assert_eq!((history.next_measure(), history.to_measure(due)), (None, Vec::new()));
    }

    #[test]
    fn of_a_storm_only_what_is_remembered_is_measured() {
        let mut history = history();
        let all = MOST as u64 + 10;
        for sa in 0..all {
            history.event(&moving(OFFICE, sa, 1, 2));
            history.event(&moved(OFFICE, sa, 1, 2));
        }
        let late = Instant::now() + SETTLED;
        let due = history.to_measure(late);
        assert_eq!(due, (10..all).map(SaId).collect::<Vec<_>>());
        // Each cost goes to its own move, though all were at the same time.
        for (number, sa) in due.into_iter().enumerate() {
            history.measured(sa, Some(SETTLED), number as u64);
        }
        let lost: Vec<_> = history.list(None).iter().map(|record| record.lost_in).collect();
        assert_eq!(lost, (0..MOST as u64).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn two_moves_in_a_row_are_one_from_where_traffic_was() {
        let mut history = history();
        assert_eq!(history.begins(&moving(OFFICE, 1, 1, 2)), Some(SaId(1)));
        history.event(&moving(OFFICE, 1, 1, 2));
        assert_eq!(history.begins(&moving(OFFICE, 1, 2, 3)), None, "the gap counts from the first");
        history.event(&moving(OFFICE, 1, 2, 3));
        let list = history.list(None);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].from, list[0].to), (way(1).local, way(3).local));
    }

    #[test]
    fn a_move_that_fails_is_recorded_with_its_reason_and_outlives_the_ike_sa() {
        let closed = |sa| Event::Closed {
            connection: Some(OFFICE),
            sa: SaId(sa),
            path: way(2),
            reason: CloseReason::Local,
        };
        let sa = |sa| SaId(sa);
        let error = ActionError("no such state".into());
        let unanswered = Event::Refused { path: way(5), reason: CloseReason::Unanswered(way(5)) };
        let ends = [
            (
                2,
                Event::MoveFailed {
                    connection: OFFICE,
                    sa: sa(1),
                    to: way(2),
                    error,
                    tried: Vec::new(),
                },
            ),
            (3, Event::Stranded { connection: OFFICE, sa: sa(1) }),
            (4, closed(1)),
            (5, unanswered),
        ];
        let mut history = history();
        for (to, end) in &ends {
            history.event(&moving(OFFICE, 1, 1, *to));
            history.event(end);
        }
        // It ends where nothing is under way.
        history.event(&closed(1));
        let list = history.list(None);
        assert_eq!(list.len(), ends.len());
        assert!(list.iter().all(|one| one.outcome == Outcome::Failed && one.error.is_some()));
        assert_eq!(list[0].error.as_deref(), Some("no such state"));
        assert!(history.under_way.is_empty());
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let mut history = history();
        for n in 0..1000_u64 {
            let connection = ConnectionId(usize::from(n.is_multiple_of(2)));
            history.event(&moving(connection, n, 1, (n % 100) as u8));
            history.event(&moved(connection, n, 1, (n % 100) as u8));
        }
        assert_eq!(history.list(None).len(), MOST);
        assert_eq!(history.list(Some("lab")).len(), MOST / 2);
        assert_eq!(history.list(None)[MOST - 1].to, way(99).local);
    }

    #[test]
    fn a_time_of_day_is_written_as_rfc_3339_has_it() {
        let at = |ms| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(951_868_800_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(at(1_795_342_272_013), "2026-11-22T10:11:12.013Z");
        assert_eq!(at(4_107_542_399_000), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
