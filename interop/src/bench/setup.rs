//! How many IKE_SAs a gateway on one processor makes in a second, and what a thousand cost it.

use std::time::Duration;

use serde::Serialize;

use super::busy::{self, Aside};
use super::goal::{self, Bound, Goal};
use super::herd::{Herd, Proofs};
use super::{Lane, Options, Outcome, median};
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::peer::tunnel::Proof;
use crate::pki::{self, Kind};
use crate::topology::Node;

/// How long all of a round may take.
const LIMIT: Duration = Duration::from_secs(240);

/// What one program's turns gave.
#[derive(Debug, Serialize)]
pub struct Setup {
    /// The program and its version.
    pub version: String,
    /// IKE_SAs with a CHILD_SA each, in each round.
    pub ike_sas: usize,
    /// With a pre-shared key at both ends.
    pub psk: Figures,
    /// With ECDSA certificates on P-256 at both ends.
    pub ecdsa: Figures,
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// How many rounds.
    pub rounds: usize,
    /// IKE_SAs a second.
    pub per_second: f64,
    /// Processor time for a thousand, in seconds.
    pub cpu_s_per_1000: f64,
}

/// Rounds of this many set-ups; the programs take turns.
///
/// # Errors
/// A gateway does not start, or not all IKE_SAs come up.
pub fn run(options: &Options, size: usize) -> Result<Vec<(Program, Setup)>> {
    let lanes = Lane::build_all(options, "setup")?;
    let _aside = Aside::step()?;
    let mut results = Vec::new();
    let mut samples: Vec<[Vec<(f64, f64)>; 2]> = lanes.iter().map(|_| Default::default()).collect();
    let mut versions = vec![String::new(); lanes.len()];
    for round in 1..=options.times {
        for (kind, way) in ["psk", "ecdsa"].into_iter().enumerate() {
            for (number, lane) in lanes.iter().enumerate() {
                let program = lane.program.name();
                let (client, gateway) = proofs(lane, kind == 1)?;
                let proofs = Proofs::of(&client, &gateway)?;
                let tunnel = busy::crowd(&client, &gateway);
                let mut peer = busy::gateway(lane, &tunnel).context(program)?;
                versions[number] = peer.version()?;
                let mut herd =
                    lane.topology.within(Node::Client, move || Herd::open(size, &proofs))??;
                let before = busy::taken(peer.pid())?;
                let took = herd.up(LIMIT).context(format!("{program}, {way}, round {round}"))?;
                let after = busy::taken(peer.pid())?;
                drop(herd);
                peer.kill();
                let rate = size as f64 / took.as_secs_f64();
                let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1000.0 / size as f64;
                eprintln!(
                    "{round:>3} of {}  {program:<10}  {way:<5}  {rate:.0} IKE_SAs/s, {cpu:.2} s of CPU for 1000",
                    options.times
                );
                samples[number][kind].push((rate, cpu));
            }
        }
    }
    for ((lane, [psk, ecdsa]), version) in lanes.iter().zip(samples).zip(versions) {
        let (psk, ecdsa) = (Figures::of(&psk), Figures::of(&ecdsa));
        results.push((lane.program, Setup { version, ike_sas: size, psk, ecdsa }));
    }
    Ok(results)
}

fn proofs(lane: &Lane, ecdsa: bool) -> Result<(Proof, Proof)> {
    if !ecdsa {
        return Ok((Proof::Psk, Proof::Psk));
    }
    let folder = lane.out.join("pki");
    let make = |node| pki::make(&folder, node, Kind::Ecdsa256, false).map(Proof::Certificate);
    Ok((make(Node::Client)?, make(Node::Gateway)?))
}

impl Figures {
    fn of(samples: &[(f64, f64)]) -> Self {
        Self {
            rounds: samples.len(),
            per_second: median(samples.iter().map(|(rate, _)| *rate)),
            cpu_s_per_1000: median(samples.iter().map(|(_, cpu)| *cpu)),
        }
    }
}

/// bewick is to make twice as many a second, however they prove who they are.
pub fn goals(results: &[(Program, Setup)]) -> Vec<Goal> {
    let Some((ours, theirs)) = goal::both(results) else { return Vec::new() };
    let rate = |figures: &Figures| (figures.rounds > 0).then_some(figures.per_second);
    [("PSK", &ours.psk, &theirs.psk), ("ECDSA", &ours.ecdsa, &theirs.ecdsa)]
        .map(|(way, ours, theirs)| {
            let what = format!("{way} IKE_SAs/s");
            Goal::ratio(&what, rate(ours), rate(theirs), Bound::AtLeast(2.0))
        })
        .into()
}

impl Outcome for Setup {
    fn line(&self) -> String {
        let figures = |name: &str, one: &Figures| {
            let (rate, cpu) = (one.per_second, one.cpu_s_per_1000);
            format!("{name} {rate:.0} IKE_SAs/s and {cpu:.2} s of CPU for 1000")
        };
        let (psk, ecdsa) = (figures("PSK", &self.psk), figures("ECDSA", &self.ecdsa));
        let Self { version, ike_sas, .. } = self;
        format!("{version}, {ike_sas} IKE_SAs, one processor: {psk}; {ecdsa}")
    }

    fn is_whole(&self) -> bool {
        self.psk.rounds > 0 && self.ecdsa.rounds > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(program: Program, psk: f64, ecdsa: f64) -> (Program, Setup) {
        let [psk, ecdsa] = [psk, ecdsa].map(|rate| Figures::of(&[(rate, 1.0)]));
        (program, Setup { version: String::new(), ike_sas: 1000, psk, ecdsa })
    }

    #[test]
    fn each_way_is_a_goal_of_its_own() {
        let theirs = || result(Program::Strongswan, 500.0, 300.0);
        let met = |psk, ecdsa| -> Vec<bool> {
            let results = [result(Program::Bewick, psk, ecdsa), theirs()];
            goals(&results).iter().map(|goal| goal.met).collect()
        };
        assert_eq!(met(1000.0, 600.0), [true, true]);
        assert_eq!(met(999.0, 600.0), [false, true]);
        assert_eq!(met(1000.0, 599.0), [true, false]);
        assert!(goals(&[theirs()]).is_empty());
    }
}
