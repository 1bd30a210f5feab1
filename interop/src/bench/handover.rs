//! How long traffic stays away when the current uplink is lost.

use std::time::Duration;

use serde::Serialize;

use super::{Gap, Lane, Options, Outcome};
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::report::Move;
use crate::topology::Loss;

/// Between two numbered packets in each direction: 1000 a second.
const SPACING: Duration = Duration::from_millis(1);

/// What one program's moves gave.
#[derive(Debug, Serialize)]
pub struct Handover {
    /// The program and its version.
    pub version: String,
    /// How often the uplink was lost.
    pub moves: usize,
    /// In the worse direction of each move.
    pub gap_ms: Option<Gap>,
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
