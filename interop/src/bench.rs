//! Benchmarks, with strongSwan on the same topology in the same run.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::cleanup::{self, Guard};
use crate::ends::Ends;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::peer::{self, Place, Plane, Program};
use crate::place;
use crate::prerequisites;
use crate::report::Move;
use crate::topology::{Loss, Node, Topology};

/// Between two numbered packets in each direction: 1000 a second.
const SPACING: Duration = Duration::from_millis(1);

/// Times without traffic, in milliseconds.
#[derive(Debug, Serialize)]
pub struct Gap {
    /// The median.
    pub p50: f64,
    /// What 95 of 100 stay within.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

impl Gap {
    fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        // Nearest rank, so that each figure is one that was measured.
        let rank = |share: f64| {
            let rank = (share * samples.len() as f64).ceil() as usize;
            samples.get(rank.saturating_sub(1)).copied()
        };
        Some(Self { p50: rank(0.5)?, p95: rank(0.95)?, max: rank(1.0)? })
    }
}

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

struct Lane {
    program: Program,
    topology: Topology,
    out: std::path::PathBuf,
    scratch: std::path::PathBuf,
    _guard: Guard,
}

/// The current uplink is lost again and again; the programs take turns, move by move.
///
/// # Errors
/// A tunnel does not come up, or does not reach the other uplink.
pub fn handover(
    programs: &[Program],
    moves: usize,
    out: &Path,
) -> Result<Vec<(Program, Handover)>> {
    prerequisites::require(programs, Plane::Userspace)?;
    if programs.contains(&Program::Bewick) {
        place::bewick()?;
    }
    let lanes = programs
        .iter()
        .map(|&program| {
            let part = format!("handover-{}", program.name());
            let out = out.join(format!("bench-{part}"));
            std::fs::create_dir_all(&out).context(out.display())?;
            let (scratch, guard) = cleanup::scratch_folder(&part).context("scratch folder")?;
            let topology = Topology::build(program.name(), false)?;
            Ok(Lane { program, topology, out, scratch, _guard: guard })
        })
        .collect::<Result<Vec<Lane>>>()?;
    let tunnel = Tunnel::default();
    let mut running = Vec::new();
    for lane in &lanes {
        let Lane { program, topology, out, scratch, .. } = lane;
        let place =
            |node| Place { topology, node, plane: Plane::Userspace, out, scratch, tunnel: &tunnel };
        let up = || -> Result<(Ends<'_>, String)> {
            let gateway = peer::start(*program, &place(Node::Gateway))?;
            let mut client = peer::start(*program, &place(Node::Client))?;
            client.up()?;
            let version = client.version()?;
            Ok((Ends { client, gateway, topology }, version))
        };
        let (ends, version) = up().context(program.name())?;
        eprintln!("{version}: tunnel up");
        running.push((*program, ends, version, Vec::new()));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let gap = Gap::of((1..=20).rev().map(f64::from).collect()).map(|g| (g.p50, g.p95, g.max));
        assert_eq!(gap, Some((10.0, 19.0, 20.0)));
        assert!(Gap::of(Vec::new()).is_none());
    }
}
