//! All of a gateway's clients lose their uplink at once.

use std::time::Duration;

use serde::Serialize;

use super::busy::{self, Aside};
use super::goal::{self, Bound, Goal};
use super::herd::{Herd, NETWORKS, Proofs};
use super::{Lane, Options, Outcome, median};
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::peer::tunnel::Proof;
use crate::topology::{Loss, Node};

/// How long the clients may take to come up, and to move.
const UP: Duration = Duration::from_secs(300);
const MOVED: Duration = Duration::from_secs(120);

/// What one program's turns gave.
#[derive(Debug, Serialize)]
pub struct RoamStorm {
    /// The program and its version.
    pub version: String,
    /// For each number of clients.
    pub storms: Vec<Figures>,
}

/// Medians over the rounds.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// How many clients lose their uplink.
    pub clients: usize,
    /// How many rounds.
    pub rounds: usize,
    /// Until the last message of the last move, in seconds.
    pub last_moved_s: f64,
    /// Moved IKE_SAs a second.
    pub moved_per_second: f64,
    /// The gateway's processor time, in seconds.
    pub cpu_s: f64,
    /// What the gateway has in memory afterwards, in octets.
    pub memory: f64,
    /// IKE_SAs that are no more, or that the gateway has not at the new address, in all rounds.
    pub lost: usize,
}

/// Rounds of a storm for each number of clients; the programs take turns.
///
/// # Errors
/// A gateway does not start, or its clients do not come up.
pub fn run(options: &Options, sizes: &[usize]) -> Result<Vec<(Program, RoamStorm)>> {
    let lanes = Lane::build_all(options, "roam-storm")?;
    let _aside = Aside::step()?;
    let mut results: Vec<(Program, RoamStorm)> = lanes
        .iter()
        .map(|lane| (lane.program, RoamStorm { version: String::new(), storms: Vec::new() }))
        .collect();
    for &size in sizes {
        let mut samples: Vec<Vec<Sample>> = lanes.iter().map(|_| Vec::new()).collect();
        for round in 1..=options.times {
            for ((lane, samples), (_, result)) in lanes.iter().zip(&mut samples).zip(&mut results) {
                let name = lane.program.name();
                let what = format!("{name}, {size} clients, round {round}");
                let (one, version) = storm(lane, size).context(what)?;
                let Sample { seconds, cpu, memory, lost } = one;
                let (rate, mib) = (size as f64 / seconds, memory / 1048576.0);
                eprintln!(
                    "{round:>3} of {}  {name:<10}  {size} clients moved in {seconds:.2} s \
                     ({rate:.0}/s), {cpu:.2} s of CPU, {mib:.0} MiB, {lost} lost",
                    options.times
                );
                samples.push(one);
                result.version = version;
            }
        }
        for (samples, (_, result)) in samples.iter().zip(&mut results) {
            result.storms.push(Figures::of(size, samples));
        }
    }
    Ok(results)
}

struct Sample {
    seconds: f64,
    cpu: f64,
    memory: f64,
    lost: usize,
}

fn storm(lane: &Lane, size: usize) -> Result<(Sample, String)> {
    let tunnel = busy::crowd(&Proof::Psk, &Proof::Psk);
    let proofs = Proofs::of(&Proof::Psk, &Proof::Psk)?;
    let topology = &lane.topology;
    let mut gateway = busy::gateway(lane, &tunnel)?;
    let version = gateway.version()?;
    let mut herd = topology.within(Node::Client, move || Herd::open(size, &proofs))??;
    herd.up(UP)?;
    herd.calm_down();
    let before = busy::taken(gateway.pid())?;
    let [first, _] = topology.uplinks();
    topology.lose(&first, Loss::LinkDown)?;
    let storm = herd.lose_first_addresses(MOVED);
    let after = busy::taken(gateway.pid())?;
    let sas = gateway.sas().context("the gateway's IKE_SAs")?;
    topology.restore(&first)?;
    drop(herd);
    gateway.kill();
    let there = NETWORKS[1].split('.').take(2).collect::<Vec<_>>().join(".") + ".";
    let moved = sas.iter().filter(|sa| sa.remote.to_string().starts_with(&there)).count();
    let sample = Sample {
        seconds: storm.took.as_secs_f64(),
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
        memory: after.memory as f64,
        lost: (size - moved.min(size).min(storm.moved)).max(storm.closed),
    };
    Ok((sample, version))
}

impl Figures {
    fn of(clients: usize, samples: &[Sample]) -> Self {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
        let last_moved_s = of(|one| one.seconds);
        Self {
            clients,
            rounds: samples.len(),
            last_moved_s,
            moved_per_second: clients as f64 / last_moved_s,
            cpu_s: of(|one| one.cpu),
            memory: of(|one| one.memory),
            lost: samples.iter().map(|one| one.lost).sum(),
        }
    }
}

/// bewick is to move twice as many a second, and to lose none, however many there are.
pub fn goals(results: &[(Program, RoamStorm)]) -> Vec<Goal> {
    let Some((ours, theirs)) = goal::both(results) else { return Vec::new() };
    let pairs = ours.storms.iter().zip(&theirs.storms);
    pairs.flat_map(|(ours, theirs)| compared(ours, theirs)).collect()
}

fn compared(ours: &Figures, theirs: &Figures) -> [Goal; 2] {
    let rate = |figures: &Figures| (figures.rounds > 0).then_some(figures.moved_per_second);
    let lost = (ours.rounds > 0).then_some(ours.lost as f64);
    let clients = ours.clients;
    let moved = format!("{clients} clients, moved IKE_SAs/s");
    [
        Goal::ratio(&moved, rate(ours), rate(theirs), Bound::AtLeast(2.0)),
        Goal::figure(
            format!("{clients} clients, IKE_SAs that bewick lost"),
            lost,
            Bound::AtMost(0.0),
        ),
    ]
}

impl Outcome for RoamStorm {
    fn line(&self) -> String {
        let storms: Vec<String> = self
            .storms
            .iter()
            .map(|one| {
                let Figures { clients, last_moved_s, moved_per_second, cpu_s, lost, .. } = one;
                format!(
                    "{clients} clients in {last_moved_s:.2} s ({moved_per_second:.0}/s), \
                     {cpu_s:.2} s of CPU, {:.0} MiB, {lost} lost",
                    one.memory / 1048576.0
                )
            })
            .collect();
        format!("{}: {}", self.version, storms.join("; "))
    }

    fn is_whole(&self) -> bool {
        self.storms.iter().all(|one| one.rounds > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(seconds: f64, lost: usize) -> Sample {
        Sample { seconds, cpu: 1.0, memory: 1.0, lost }
    }

    fn met(ours: &[Sample], theirs: &[Sample]) -> Vec<bool> {
        let result = |samples: &[Sample]| {
            let storms = vec![Figures::of(1000, samples)];
            RoamStorm { version: String::new(), storms }
        };
        let results = [(Program::Bewick, result(ours)), (Program::Strongswan, result(theirs))];
        goals(&results).iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn twice_as_many_a_second_and_none_lost() {
        assert_eq!(met(&[round(1.0, 0)], &[round(2.0, 7)]), [true, true]);
        assert_eq!(met(&[round(1.1, 0)], &[round(2.0, 7)]), [false, true]);
        assert_eq!(met(&[round(1.0, 0), round(1.0, 1)], &[round(2.0, 0)]), [true, false]);
    }
}
