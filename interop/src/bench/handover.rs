//! How long traffic stays away when the current uplink is lost.

use std::time::Duration;

use serde::Serialize;

use super::goal::{self, Bound, Goal};
use super::{Gap, Lane, Options, Outcome};
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::report::Move;
use crate::topology::Loss;

/// Between two numbered packets in each direction: 1000 a second.
const SPACING: Duration = Duration::from_millis(1);
/// From this round-trip time on, in milliseconds, it is the path that takes most of the time.
const LONG: u32 = 20;

/// What one program's moves gave.
#[derive(Debug, Serialize)]
pub struct Handover {
    /// The program and its version.
    pub version: String,
    /// How often the uplink was lost.
    pub moves: usize,
    /// In the worse direction of each move.
    pub gap_ms: Option<Gap>,
    /// Each of them; none where packets did not come back.
    pub gap_ms_all: Vec<Option<f64>>,
    /// Towards the gateway only.
    pub to_gateway_ms: Option<Gap>,
    /// Towards the client only.
    pub to_client_ms: Option<Gap>,
    /// Packets sent, both directions together.
    pub sent: u64,
    /// How many never arrived.
    pub lost: u64,
    /// Moves after which packets did not come back.
    pub failed: usize,
}

impl Handover {
    fn of(version: String, moves: &[Move]) -> Self {
        let gap = |of: fn(&Move) -> Option<f64>| Gap::of(moves.iter().filter_map(of).collect());
        Self {
            version,
            moves: moves.len(),
            gap_ms: gap(|one| one.gap_ms),
            gap_ms_all: moves.iter().map(|one| one.gap_ms).collect(),
            to_gateway_ms: gap(|one| one.to_gateway_ms),
            to_client_ms: gap(|one| one.to_client_ms),
            sent: moves.iter().map(|one| one.sent).sum(),
            lost: moves.iter().map(|one| one.lost).sum(),
            failed: moves.iter().filter(|one| one.gap_ms.is_none()).count(),
        }
    }
}

/// The current uplink is lost again and again; the programs take turns, move by move.
///
/// # Errors
/// A tunnel does not come up, or does not reach the other uplink.
pub fn run(options: &Options) -> Result<Vec<(Program, Handover)>> {
    let moves = options.times;
    let lanes = Lane::build_all(options, "handover")?;
    let tunnel = Tunnel::default();
    let mut running = Vec::new();
    for lane in &lanes {
        let (ends, version) = lane.up(&tunnel)?;
        running.push((lane.program, ends, version, Vec::new()));
    }
    std::thread::sleep(Duration::from_secs(1));
    for number in 1..=moves {
        for (program, ends, _, done) in &mut running {
            let one = ends
                .lose_current(Loss::LinkDown, SPACING)
                .context(format!("{}, move {number}", program.name()))?;
            let gap = one.gap_ms.map_or("no traffic after".to_owned(), |ms| format!("{ms:.1} ms"));
            let (name, lost, sent) = (program.name(), one.lost, one.sent);
            eprintln!("{number:>3} of {moves}  {name:<10}  {gap}, {lost} of {sent} lost");
            done.push(one);
        }
    }
    Ok(running
        .into_iter()
        .map(|(program, _, version, done)| (program, Handover::of(version, &done)))
        .collect())
}

/// bewick is to be back in a fifth of strongSwan's time. On a long path, where both have to ask and wait for the
/// answer, half of it is the goal.
pub fn goals(results: &[(Program, Handover)], rtt: u32) -> Vec<Goal> {
    let p50 = |one: &Handover| one.gap_ms.as_ref().map(|gap| gap.p50);
    let bound = Bound::AtMost(if rtt >= LONG { 0.5 } else { 0.2 });
    let both = goal::both(results);
    both.map(|(ours, theirs)| Goal::ratio("gap p50", p50(ours), p50(theirs), bound))
        .into_iter()
        .collect()
}

impl Outcome for Handover {
    fn line(&self) -> String {
        let Self { version, moves, lost, sent, .. } = self;
        match &self.gap_ms {
            Some(gap) => format!("{version}: {moves} moves, gap {gap}, {lost} of {sent} lost"),
            None => format!("{version}: packets never came back"),
        }
    }

    fn is_whole(&self) -> bool {
        self.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(program: Program, gap: Option<f64>) -> (Program, Handover) {
        let one = Move {
            kind: String::new(),
            from: String::new(),
            to: String::new(),
            gap_ms: gap,
            to_gateway_ms: gap,
            to_client_ms: gap,
            sent: 100,
            lost: 10,
        };
        (program, Handover::of(String::new(), &[one]))
    }

    fn met(ours: Option<f64>, theirs: Option<f64>, rtt: u32) -> bool {
        let results = [result(Program::Bewick, ours), result(Program::Strongswan, theirs)];
        goals(&results, rtt).iter().all(|goal| goal.met)
    }

    #[test]
    fn a_long_path_leaves_more_to_both() {
        assert!(met(Some(20.0), Some(100.0), 0));
        assert!(!met(Some(21.0), Some(100.0), 0));
        assert!(met(Some(50.0), Some(100.0), 50));
        assert!(!met(Some(51.0), Some(100.0), 50));
    }

    #[test]
    fn one_that_is_not_back_is_worse_than_any() {
        assert!(!met(None, Some(100.0), 0));
        assert!(met(Some(500.0), None, 0));
        assert!(goals(&[result(Program::Bewick, Some(500.0))], 0).is_empty());
        assert_eq!(result(Program::Bewick, None).1.gap_ms_all, [None]);
    }
}
