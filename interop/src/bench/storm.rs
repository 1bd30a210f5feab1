//! All of a gateway's clients lose their uplink at once.

use std::time::Duration;

use serde::Serialize;

use super::busy::{self, Aside};
use super::goal::{self, Bound, Goal};
use super::herd::{Herd, NETWORKS, Proofs, Storm};
use super::{Lane, Options, Outcome, median};
use crate::fail;
use crate::failure::{Context, Failure, Result};
use crate::peer::tunnel::Proof;
use crate::peer::{Peer, Program};
use crate::topology::{Loss, Node, Topology};

/// How long the clients may take to come up, and to move: a round that takes longer is not done. strongSwan has 5000
/// up in less than half a minute, and moves half of them in one.
const UP: Duration = Duration::from_secs(180);
const MOVED: Duration = Duration::from_secs(120);

/// What one program's turns gave.
#[derive(Debug, Serialize)]
pub struct RoamStorm {
    /// The program and its version.
    pub version: String,
    /// For each number of clients.
    pub storms: Vec<Figures>,
    /// Whether a round that it does not finish is its failure: a peer may be as slow as it is.
    #[serde(skip)]
    is_ours: bool,
}

/// Medians over the rounds that were done.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// How many clients lose their uplink.
    pub clients: usize,
    /// How many rounds were done.
    pub rounds: usize,
    /// Why others were not.
    pub not_done: Vec<String>,
    /// Until the last message of the last move, in seconds.
    pub last_moved_s: f64,
    /// Moved IKE_SAs a second.
    pub moved_per_second: f64,
    /// The gateway's processor time, in seconds.
    pub cpu_s: f64,
    /// What the gateway has in memory afterwards, in octets.
    pub memory: f64,
    /// IKE_SAs that are no more, or that the gateway has not at the new address, in all rounds that were done.
    pub lost: usize,
}

/// Rounds of a storm for each number of clients; the programs take turns. A round that is not done is a result as
/// any other.
///
/// # Errors
/// The networks cannot be made, or a gateway does not start.
pub fn run(options: &Options, sizes: &[usize]) -> Result<Vec<(Program, RoamStorm)>> {
    let lanes = Lane::build_all(options, "roam-storm")?;
    let _aside = Aside::step()?;
    let mut results: Vec<(Program, RoamStorm)> =
        lanes.iter().map(|lane| (lane.program, RoamStorm::new(lane.program))).collect();
    for &size in sizes {
        let mut samples: Vec<Vec<Result<Sample>>> = lanes.iter().map(|_| Vec::new()).collect();
        for round in 1..=options.times {
            for ((lane, samples), (_, result)) in lanes.iter().zip(&mut samples).zip(&mut results) {
                let one = storm(lane, size, &mut result.version).context(lane.program.name())?;
                let what = match &one {
                    Ok(done) => done.line(size),
                    Err(reason) => format!("{size} clients, not done: {reason}"),
                };
                eprintln!("{round:>3} of {}  {:<10}  {what}", options.times, lane.program.name());
                samples.push(one);
            }
        }
        for (samples, (_, result)) in samples.iter().zip(&mut results) {
            result.storms.push(Figures::of(size, samples));
        }
    }
    Ok(results)
}

#[derive(Clone, Copy)]
struct Sample {
    up: f64,
    seconds: f64,
    cpu: f64,
    memory: f64,
    lost: usize,
}

impl Sample {
    fn line(&self, size: usize) -> String {
        let Self { up, seconds, cpu, memory, lost } = self;
        let (rate, mib) = (size as f64 / seconds, memory / 1048576.0);
        format!(
            "{size} clients, up in {up:.1} s, moved in {seconds:.2} s ({rate:.0}/s), {cpu:.2} s of CPU, \
             {mib:.0} MiB, {lost} lost"
        )
    }
}

/// A round; the inner error is why it was not done, the outer one why it could not even begin.
fn storm(lane: &Lane, size: usize, version: &mut String) -> Result<Result<Sample>> {
    let tunnel = busy::crowd(&Proof::Psk, &Proof::Psk);
    let proofs = Proofs::of(&Proof::Psk, &Proof::Psk)?;
    let mut gateway = busy::gateway(lane, &tunnel)?;
    *version = gateway.version()?;
    let herd = lane.topology.within(Node::Client, move || Herd::open(size, &proofs))??;
    let sample = measured(&lane.topology, size, gateway.as_mut(), herd);
    gateway.kill();
    Ok(sample)
}

fn measured(
    topology: &Topology,
    size: usize,
    gateway: &mut dyn Peer,
    mut herd: Herd,
) -> Result<Sample> {
    let up = herd.up(UP)?;
    herd.calm_down(UP.saturating_sub(up))?;
    let before = busy::taken(gateway.pid())?;
    let [first, _] = topology.uplinks();
    topology.lose(&first, Loss::LinkDown)?;
    let storm = herd.lose_first_addresses(MOVED);
    let after = busy::taken(gateway.pid());
    // Who still moves has no time to say where all are.
    let sas = (storm.moved == size).then(|| gateway.sas().context("the gateway's IKE_SAs"));
    topology.restore(&first)?;
    drop(herd);
    let (sas, after) = (sas.ok_or_else(|| not_moved(&storm, size))??, after?);
    let there = NETWORKS[1].split('.').take(2).collect::<Vec<_>>().join(".") + ".";
    let moved = sas.iter().filter(|sa| sa.remote.to_string().starts_with(&there)).count();
    Ok(Sample {
        up: up.as_secs_f64(),
        seconds: storm.took.as_secs_f64(),
        cpu: after.cpu.saturating_sub(before.cpu).as_secs_f64(),
        memory: after.memory as f64,
        lost: (size - moved.min(size)).max(storm.closed),
    })
}

fn not_moved(storm: &Storm, size: usize) -> Failure {
    let Storm { moved, closed, .. } = storm;
    fail!(
        "{moved} of {size} clients have moved after {} s, {closed} IKE_SAs ended",
        MOVED.as_secs()
    )
}

impl RoamStorm {
    fn new(program: Program) -> Self {
        let is_ours = program == Program::Bewick;
        Self { version: program.name().to_owned(), storms: Vec::new(), is_ours }
    }
}

impl Figures {
    fn of(clients: usize, samples: &[Result<Sample>]) -> Self {
        let done: Vec<Sample> = samples.iter().flatten().copied().collect();
        let of = |value: fn(&Sample) -> f64| median(done.iter().map(value));
        let last_moved_s = of(|one| one.seconds);
        Self {
            clients,
            rounds: done.len(),
            not_done: samples
                .iter()
                .filter_map(|one| one.as_ref().err())
                .map(Failure::to_string)
                .collect(),
            last_moved_s,
            moved_per_second: if done.is_empty() { 0.0 } else { clients as f64 / last_moved_s },
            cpu_s: of(|one| one.cpu),
            memory: of(|one| one.memory),
            lost: done.iter().map(|one| one.lost).sum(),
        }
    }
}

/// bewick is to move twice as many a second, and to lose none, however many there are and in each round.
pub fn goals(results: &[(Program, RoamStorm)]) -> Vec<Goal> {
    let Some((ours, theirs)) = goal::both(results) else { return Vec::new() };
    let pairs = ours.storms.iter().zip(&theirs.storms);
    pairs.flat_map(|(ours, theirs)| compared(ours, theirs)).collect()
}

fn compared(ours: &Figures, theirs: &Figures) -> [Goal; 2] {
    let rate = |figures: &Figures| (figures.rounds > 0).then_some(figures.moved_per_second);
    // Of strongSwan what it has done is enough to compare; bewick is to finish each round.
    let whole = ours.rounds > 0 && ours.not_done.is_empty();
    let lost = whole.then_some(ours.lost as f64);
    let clients = ours.clients;
    let moved = format!("{clients} clients, moved IKE_SAs/s");
    [
        Goal::ratio(&moved, rate(ours).filter(|_| whole), rate(theirs), Bound::AtLeast(2.0)),
        Goal::figure(
            format!("{clients} clients, IKE_SAs that bewick lost"),
            lost,
            Bound::AtMost(0.0),
        ),
    ]
}

impl Outcome for RoamStorm {
    fn line(&self) -> String {
        let storms: Vec<String> = self.storms.iter().map(Figures::line).collect();
        format!("{}: {}", self.version, storms.join("; "))
    }

    fn is_whole(&self) -> bool {
        self.storms.iter().all(|one| !self.is_ours || one.not_done.is_empty())
    }
}

impl Figures {
    fn line(&self) -> String {
        let Self { clients, rounds, not_done, last_moved_s, moved_per_second, cpu_s, lost, .. } =
            self;
        let missing = match not_done.as_slice() {
            [] => String::new(),
            [.., last] => {
                let (count, all) = (not_done.len(), rounds + not_done.len());
                format!(" {count} of {all} rounds not done ({last})")
            }
        };
        if *rounds == 0 {
            return format!("{clients} clients:{missing}");
        }
        let memory = self.memory / 1048576.0;
        format!(
            "{clients} clients in {last_moved_s:.2} s ({moved_per_second:.0}/s), {cpu_s:.2} s of CPU, \
             {memory:.0} MiB, {lost} lost{missing}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(seconds: f64, lost: usize) -> Result<Sample> {
        Ok(Sample { up: 1.0, seconds, cpu: 1.0, memory: 1.0, lost })
    }

    fn not_done() -> Result<Sample> {
        Err(fail!("999 of 1000 clients are up"))
    }

    fn result(program: Program, samples: &[Result<Sample>]) -> (Program, RoamStorm) {
        let storms = vec![Figures::of(1000, samples)];
        (program, RoamStorm { storms, ..RoamStorm::new(program) })
    }

    fn met(ours: &[Result<Sample>], theirs: &[Result<Sample>]) -> Vec<bool> {
        let results = [result(Program::Bewick, ours), result(Program::Strongswan, theirs)];
        goals(&results).iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn twice_as_many_a_second_and_none_lost() {
        assert_eq!(met(&[round(1.0, 0)], &[round(2.0, 7)]), [true, true]);
        assert_eq!(met(&[round(1.1, 0)], &[round(2.0, 7)]), [false, true]);
        assert_eq!(met(&[round(1.0, 0), round(1.0, 1)], &[round(2.0, 0)]), [true, false]);
    }

    #[test]
    fn a_round_that_is_not_done_counts() {
        assert_eq!(met(&[round(9.0, 0)], &[not_done()]), [true, true]);
        assert_eq!(met(&[round(9.0, 0)], &[not_done(), round(10.0, 0)]), [false, true]);
        assert_eq!(met(&[round(1.0, 0), not_done()], &[not_done()]), [false, false]);
        assert_eq!(met(&[not_done()], &[not_done()]), [false, false]);
    }

    #[test]
    fn medians_are_of_rounds_that_were_done() {
        let figures = Figures::of(1000, &[round(2.0, 0), not_done(), round(2.0, 3)]);
        assert_eq!((figures.rounds, figures.not_done.len(), figures.lost), (2, 1, 3));
        assert_eq!((figures.last_moved_s, figures.moved_per_second), (2.0, 500.0));
        assert!(figures.line().contains("1 of 3 rounds not done (999 of 1000"));
        let (_, nothing) = result(Program::Strongswan, &[not_done()]);
        assert!(
            nothing
                .line()
                .ends_with("1000 clients: 1 of 1 rounds not done (999 of 1000 clients are up)")
        );
        assert_eq!(nothing.storms.first().map(|one| one.moved_per_second), Some(0.0));
    }

    #[test]
    fn only_bewick_has_to_finish() {
        for (program, whole) in [(Program::Bewick, false), (Program::Strongswan, true)] {
            assert_eq!(result(program, &[round(1.0, 0), not_done()]).1.is_whole(), whole);
            assert!(result(program, &[round(1.0, 0)]).1.is_whole());
        }
    }
}
