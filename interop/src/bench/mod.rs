//! Benchmarks, with strongSwan on the same topology in the same run.

mod busy;
mod goal;
mod guest;
mod handover;
mod herd;
mod planned;
mod pump;
mod setup;
mod silent;
mod storm;
mod throughput;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use self::goal::Goal;
use self::guest::Ground;
use crate::cleanup::{self, Guard};
use crate::ends::Ends;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::peer::{self, Place, Plane, Program};
use crate::place;
use crate::prerequisites;
use crate::topology::{Node, Topology};

/// What can be measured.
#[derive(Clone, Subcommand)]
pub enum Bench {
    /// The current uplink is lost: time without traffic
    Handover {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        ground: Ground,
    },
    /// The current path swallows all packets: time without traffic
    Silent {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        ground: Ground,
        /// How many seconds a program gets each time to find another path
        #[arg(long, default_value_t = 20)]
        patience: u64,
    },
    /// Many clients come at once: IKE_SAs a second and processor time, the gateway on one processor
    Setup {
        #[command(flatten)]
        settings: Settings,
        /// How many in each round
        #[arg(long, default_value_t = 1000)]
        clients: usize,
    },
    /// All clients lose their uplink at once: time until the last has moved
    ///
    /// A round has three minutes for the clients to come up and two for them to move, then it is not done, and the
    /// next one begins: with the defaults 90 minutes if none is ever done, and ten if it is only 5000 that a peer does
    /// not move.
    RoamStorm {
        #[command(flatten)]
        settings: Settings,
        /// How many clients
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 5000])]
        clients: Vec<usize>,
    },
    /// The client is asked to move to its other uplink, again and again: packets lost of 5000 a second
    /// each way (bewick only)
    Planned {
        #[command(flatten)]
        settings: Settings,
    },
    /// One TCP flow and small UDP packets, beside the same network without a tunnel
    Throughput {
        #[command(flatten)]
        settings: Settings,
    },
}

/// What every benchmark can be told.
#[derive(Clone, Args)]
pub struct Settings {
    /// Print one JSON object on standard output; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// How often [default: 20 single events, 3 rounds of many]
    #[arg(long, alias = "moves")]
    times: Option<usize>,
    /// Only this program
    #[arg(long)]
    only: Option<Only>,
    /// Where the logs and what came of it, as JSON, go [default: interop/out]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Bewick,
    Strongswan,
}

impl Only {
    fn name(&self) -> &'static str {
        match self {
            Only::Bewick => "bewick",
            Only::Strongswan => "strongswan",
        }
    }
}

/// How often, unless it is said: what is a single event, and what is a round of many.
const EVENTS: usize = 20;
const ROUNDS: usize = 3;

/// How a benchmark runs.
pub struct Options {
    /// Who takes part.
    programs: &'static [Program],
    /// How many samples of each.
    times: usize,
    /// Where logs go.
    out: PathBuf,
    /// Who handles ESP.
    plane: Plane,
    /// What the way to the gateway and back takes, in milliseconds.
    rtt: u32,
}

/// What one program's turns gave.
trait Outcome: Serialize {
    /// A line for people.
    fn line(&self) -> String;
    /// Whether all that was to be measured was.
    fn is_whole(&self) -> bool;
}

/// What a result is of.
trait Name {
    fn name(&self) -> &'static str;
}

impl Name for Program {
    fn name(&self) -> &'static str {
        Program::name(*self)
    }
}

impl Name for &'static str {
    fn name(&self) -> &'static str {
        self
    }
}

/// Measures, and prints what came of it.
///
/// # Errors
/// Something could not be measured.
pub fn run(bench: &Bench) -> Result<ExitCode> {
    match bench {
        Bench::Handover { settings, ground } => {
            if let Some(rtt) = ground.elsewhere() {
                return guest::run(settings, "handover", &[], rtt, Duration::ZERO);
            }
            let options = ground.options(settings)?;
            let results = handover::run(&options)?;
            settings.print("handover", &results, &handover::goals(&results, options.rtt))
        }
        Bench::Silent { settings, ground, patience } => {
            let waits = Duration::from_secs(*patience);
            if let Some(rtt) = ground.elsewhere() {
                let own = ["--patience".to_owned(), patience.to_string()];
                return guest::run(settings, "silent", &own, rtt, waits);
            }
            let results = silent::run(&ground.options(settings)?, waits)?;
            settings.print("silent", &results, &silent::goals(&results))
        }
        Bench::Setup { settings, clients } => {
            let options = settings.options(ROUNDS)?;
            let results = setup::run(&options, checked(*clients)?)?;
            settings.print("setup", &results, &setup::goals(&results))
        }
        Bench::RoamStorm { settings, clients } => {
            let options = settings.options(ROUNDS)?;
            clients.iter().try_for_each(|clients| checked(*clients).map(drop))?;
            let results = storm::run(&options, clients)?;
            settings.print("roam-storm", &results, &storm::goals(&results))
        }
        Bench::Planned { settings } => {
            let options = settings.options(EVENTS)?;
            settings.print("planned", &planned::run(&options)?, &[])
        }
        Bench::Throughput { settings } => {
            let options = settings.options(ROUNDS)?;
            settings.print("throughput", &throughput::run(&options)?, &[])
        }
    }
}

fn checked(clients: usize) -> Result<usize> {
    match clients {
        1..=herd::MOST => Ok(clients),
        _ => Err(fail!("--clients takes 1 to {}", herd::MOST)),
    }
}

impl Settings {
    fn out(&self) -> Result<PathBuf> {
        let out = self.out.clone().unwrap_or_else(|| place::interop().join("out"));
        std::path::absolute(&out).context(out.display())
    }

    fn options(&self, times: usize) -> Result<Options> {
        Ok(Options {
            programs: match self.only {
                None => &[Program::Bewick, Program::Strongswan],
                Some(Only::Bewick) => &[Program::Bewick],
                Some(Only::Strongswan) => &[Program::Strongswan],
            },
            times: self.times.unwrap_or(times).max(1),
            out: self.out()?,
            plane: Plane::Userspace,
            rtt: 0,
        })
    }

    /// Prints what came of it, and keeps it as JSON beside the logs; failure if something is missing or a goal missed.
    fn print<N: Name, T: Outcome>(
        &self,
        what: &str,
        results: &[(N, T)],
        goals: &[Goal],
    ) -> Result<ExitCode> {
        let mut object: serde_json::Map<String, serde_json::Value> = results
            .iter()
            .map(|(of, one)| Ok((of.name().to_owned(), serde_json::to_value(one)?)))
            .collect::<serde_json::Result<_>>()
            .context("result")?;
        object.insert("goals".to_owned(), serde_json::to_value(goals).context("goals")?);
        let object = serde_json::Value::from(object);
        if self.json {
            println!("{object}");
        } else {
            results.iter().for_each(|(_, one)| println!("{}", one.line()));
            goals.iter().for_each(|goal| println!("{goal}"));
        }
        let kept = self.out()?.join(format!("bench-{what}.json"));
        std::fs::write(&kept, format!("{object:#}\n")).context(kept.display())?;
        let whole = results.iter().all(|(_, one)| one.is_whole());
        let whole = whole && goals.iter().all(|goal| goal.met);
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

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

/// The middle one; 0 of none.
fn median(samples: impl Iterator<Item = f64>) -> f64 {
    Gap::of(samples.collect()).map_or(0.0, |gap| gap.p50)
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p95, max } = self;
        write!(f, "p50 {p50:.1} ms, p95 {p95:.1} ms, max {max:.1} ms")
    }
}

/// A program and a network of its own.
struct Lane {
    program: Program,
    plane: Plane,
    topology: Topology,
    out: PathBuf,
    scratch: PathBuf,
    _guard: Guard,
}

impl Lane {
    fn build_all(options: &Options, what: &str) -> Result<Vec<Self>> {
        prerequisites::require(options.programs, options.plane)?;
        if options.programs.contains(&Program::Bewick) {
            place::bewick()?;
        }
        options.programs.iter().map(|&program| Self::build(program, options, what)).collect()
    }

    fn build(program: Program, options: &Options, what: &str) -> Result<Self> {
        let part = format!("{what}-{}", program.name());
        let out = options.out.join(format!("bench-{part}"));
        std::fs::create_dir_all(&out).context(out.display())?;
        let (scratch, guard) = cleanup::scratch_folder(&part).context("scratch folder")?;
        let topology = Topology::build(program.name(), false)?;
        if options.rtt > 0 {
            topology.delay(options.rtt)?;
        }
        Ok(Self { program, plane: options.plane, topology, out, scratch, _guard: guard })
    }

    /// Starts both ends and brings the tunnel up; also gives the version.
    fn up(&self, tunnel: &Tunnel) -> Result<(Ends<'_>, String)> {
        let start = |node| peer::start(self.program, &self.place(node, tunnel));
        let up = || -> Result<(Ends<'_>, String)> {
            let gateway = start(Node::Gateway)?;
            let mut client = start(Node::Client)?;
            client.up()?;
            let version = client.version()?;
            Ok((Ends { client, gateway, topology: &self.topology, site: &[] }, version))
        };
        let (ends, version) = up().context(self.program.name())?;
        eprintln!("{version}: tunnel up");
        Ok((ends, version))
    }

    fn place<'a>(&'a self, node: Node, tunnel: &'a Tunnel) -> Place<'a> {
        let Self { topology, out, scratch, plane, .. } = self;
        Place { topology, node, plane: *plane, out, scratch, tunnel }
    }
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
