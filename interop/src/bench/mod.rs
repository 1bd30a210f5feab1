//! Benchmarks, with strongSwan on the same topology in the same run.

mod handover;
mod throughput;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cleanup::{self, Guard};
use crate::ends::Ends;
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
    Handover(Settings),
    /// One TCP flow and small UDP packets, beside the same network without a tunnel
    Throughput(Settings),
}

/// What every benchmark can be told.
#[derive(Clone, Args)]
pub struct Settings {
    /// Print one JSON object on standard output; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// How often [default: 20; throughput: 3]
    #[arg(long, alias = "moves")]
    times: Option<usize>,
    /// Only this program
    #[arg(long)]
    only: Option<Only>,
    /// Where the logs go [default: interop/out]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Bewick,
    Strongswan,
}

/// How a benchmark runs.
pub struct Options {
    /// Who takes part.
    programs: &'static [Program],
    /// How many samples of each.
    times: usize,
    /// Where logs go.
    out: PathBuf,
}

/// What one program's turns gave.
trait Outcome: Serialize {
    /// A line for people.
    fn line(&self) -> String;
    /// Whether all that was to be measured was.
    fn is_whole(&self) -> bool;
}

/// What results are of.
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
        Bench::Handover(settings) => {
            let options = settings.options(20)?;
            settings.print(&handover::run(&options)?)
        }
        Bench::Throughput(settings) => {
            let options = settings.options(3)?;
            settings.print(&throughput::run(&options)?)
        }
    }
}

impl Settings {
    fn options(&self, times: usize) -> Result<Options> {
        let out = self.out.clone().unwrap_or_else(|| place::interop().join("out"));
        Ok(Options {
            programs: match self.only {
                None => &[Program::Bewick, Program::Strongswan],
                Some(Only::Bewick) => &[Program::Bewick],
                Some(Only::Strongswan) => &[Program::Strongswan],
            },
            times: self.times.unwrap_or(times),
            out: std::path::absolute(&out).context(out.display())?,
        })
    }

    fn print<N: Name, T: Outcome>(&self, results: &[(N, T)]) -> Result<ExitCode> {
        if self.json {
            let object: serde_json::Map<String, serde_json::Value> = results
                .iter()
                .map(|(of, one)| Ok((of.name().to_owned(), serde_json::to_value(one)?)))
                .collect::<serde_json::Result<_>>()
                .context("result")?;
            println!("{}", serde_json::Value::from(object));
        } else {
            results.iter().for_each(|(_, one)| println!("{}", one.line()));
        }
        let whole = results.iter().all(|(_, one)| one.is_whole());
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

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p95, max } = self;
        write!(f, "p50 {p50:.1} ms, p95 {p95:.1} ms, max {max:.1} ms")
    }
}

/// A program and a network of its own.
struct Lane {
    program: Program,
    topology: Topology,
    out: PathBuf,
    scratch: PathBuf,
    _guard: Guard,
}

impl Lane {
    fn build_all(options: &Options, what: &str) -> Result<Vec<Self>> {
        prerequisites::require(options.programs, Plane::Userspace)?;
        if options.programs.contains(&Program::Bewick) {
            place::bewick()?;
        }
        options.programs.iter().map(|&program| Self::build(program, &options.out, what)).collect()
    }

    fn build(program: Program, out: &Path, what: &str) -> Result<Self> {
        Self::build_named(program, program.name(), out, what)
    }

    /// One that has another name than its program.
    fn build_named(program: Program, name: &str, out: &Path, what: &str) -> Result<Self> {
        let part = format!("{what}-{name}");
        let out = out.join(format!("bench-{part}"));
        std::fs::create_dir_all(&out).context(out.display())?;
        let (scratch, guard) = cleanup::scratch_folder(&part).context("scratch folder")?;
        let topology = Topology::build(name, false)?;
        Ok(Self { program, topology, out, scratch, _guard: guard })
    }

    /// Starts both ends and brings the tunnel up; also gives the version.
    fn up(&self, tunnel: &Tunnel) -> Result<(Ends<'_>, String)> {
        let start = |node| peer::start(self.program, &self.place(node, tunnel));
        let up = || -> Result<(Ends<'_>, String)> {
            let gateway = start(Node::Gateway)?;
            let mut client = start(Node::Client)?;
            client.up()?;
            let version = client.version()?;
            Ok((Ends { client, gateway, topology: &self.topology }, version))
        };
        let (ends, version) = up().context(self.program.name())?;
        eprintln!("{version}: tunnel up");
        Ok((ends, version))
    }

    fn place<'a>(&'a self, node: Node, tunnel: &'a Tunnel) -> Place<'a> {
        let Self { topology, out, scratch, .. } = self;
        Place { topology, node, plane: Plane::Userspace, out, scratch, tunnel }
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
