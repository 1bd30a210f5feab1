//! The interop runner: bewick and other vendors' daemons in networks made of namespaces.
//!
//! Scenarios run on this machine (ESP in userspace at both ends) or in a guest kernel that has ESP.
//! A scenario that could not run has failed.

mod bench;
mod capture;
mod cleanup;
mod ends;
mod failure;
mod flow;
mod glance;
mod life;
mod oracle;
mod peer;
mod pki;
mod place;
mod prerequisites;
mod process;
mod report;
mod results;
mod roam;
mod run;
mod scenario;
mod topology;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use bench::Bench;
use failure::{Context, Result};
use report::Summary;
use scenario::Scenario;

/// Other vendors' daemons against bewick.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Name the scenarios and what each shows
    List {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Run scenarios and judge them from both ends
    Run {
        /// The scenarios to run
        #[arg(required_unless_present_any = ["all", "quick"], conflicts_with_all = ["all", "quick"])]
        names: Vec<String>,
        /// Run every scenario that bewick can do, and write interop/RESULTS.md and interop/results.json
        #[arg(long)]
        all: bool,
        /// Run those that are done in minutes together
        #[arg(long, conflicts_with = "all")]
        quick: bool,
        /// Print one JSON object on standard output; the lines for people go to standard error
        #[arg(long)]
        json: bool,
        /// Where the evidence goes, a folder per scenario [default: interop/out]
        #[arg(long)]
        out: Option<PathBuf>,
        /// How many guests run at once, beside what runs on this machine itself; 0 for one scenario after the other
        #[arg(long, value_name = "COUNT", default_value_t = 0)]
        guests: usize,
        /// Where RESULTS.md and results.json are kept, row by row [default: interop, if all scenarios run]
        #[arg(long, value_name = "FOLDER")]
        results: Option<PathBuf>,
    },
    /// Measure, with strongSwan on the same topology in the same run
    #[command(subcommand)]
    Bench(Bench),
    /// Hold the captures of runs against the rules of the wire again
    Judge {
        /// Folders with evidence: a scenario's, or what holds several
        #[arg(required = true)]
        folders: Vec<PathBuf>,
    },
    /// Say how to get what is missing: Debian packages, a guest's kernel; status 0 if nothing is
    Check,
    #[command(name = run::IN_GUEST, hide = true)]
    InGuest { name: String, bewick: Option<PathBuf> },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Action::List { json } => list(json),
        Action::Run { names, all, quick, json, out, guests, results } => {
            let scenarios = chosen(&names, all, quick);
            let results = results.or_else(|| all.then(|| place::interop().to_owned()));
            scenarios.and_then(|scenarios| run_scenarios(scenarios, guests, json, out, results))
        }
        Action::Bench(bench) => prepare().and_then(|()| bench::run(&bench)),
        Action::Judge { folders } => judge(&folders),
        Action::Check => Ok(check()),
        Action::InGuest { name, bewick } => {
            run::run_in_guest(&name, bewick).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| {
        eprintln!("bewick-interop: {failure}");
        ExitCode::from(2)
    })
}

fn prepare() -> Result<()> {
    prerequisites::require_root()?;
    cleanup::clear_on_interrupt().context("signal handling")?;
    cleanup::sweep();
    Ok(())
}

fn evidence(out: Option<PathBuf>) -> Result<PathBuf> {
    let out = out.unwrap_or_else(|| place::interop().join("out"));
    std::path::absolute(&out).context(out.display())
}

fn list(json: bool) -> Result<ExitCode> {
    let all = scenario::all();
    let mut text = String::new();
    if json {
        let rows: Vec<_> = all
            .iter()
            .map(|scenario| {
                let [client, gateway] = scenario.programs();
                serde_json::json!({
                    "name": scenario.name(),
                    "client": client,
                    "gateway": gateway,
                    "dataplane": scenario.plane(),
                    "purpose": scenario.purpose(),
                    "ready": scenario.is_ready(),
                    "quick": scenario.is_quick(),
                })
            })
            .collect();
        text = format!("{}\n", serde_json::Value::from(rows));
    } else {
        for scenario in all {
            let ready = if scenario.is_ready() { "" } else { " (bewick cannot yet)" };
            text += &format!("{:<44} {}{ready}\n", scenario.name(), scenario.purpose());
        }
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        written => written.context("the list").map(|()| ExitCode::SUCCESS),
    }
}

fn chosen(names: &[String], all: bool, quick: bool) -> Result<Vec<Scenario>> {
    if !all && !quick {
        return names.iter().map(|name| run::find(name)).collect();
    }
    let ready = scenario::all().into_iter().filter(Scenario::is_ready);
    Ok(ready.filter(|scenario| all || scenario.is_quick()).collect())
}

fn run_scenarios(
    scenarios: Vec<Scenario>,
    guests: usize,
    json: bool,
    out: Option<PathBuf>,
    results: Option<PathBuf>,
) -> Result<ExitCode> {
    prepare()?;
    let out = evidence(out)?;
    let begun = Instant::now();
    let kept = results.map(|folder| {
        let order: Vec<String> = scenario::all().iter().map(Scenario::name).collect();
        (folder, results::Place::here(), order)
    });
    let verdicts = run::side_by_side(scenarios, guests, &out, |verdict| {
        match json {
            true => eprintln!("{}", verdict.lines()),
            false => println!("{}", verdict.lines()),
        }
        // One by one: a run that is interrupted keeps what it has.
        match &kept {
            Some((folder, place, order)) => results::keep(folder, place, order, verdict.clone()),
            None => Ok(()),
        }
    })?;
    let summary = Summary::of(verdicts);
    if json {
        println!("{}", serde_json::to_string(&summary).context("summary")?);
    }
    let say = |line: String| if json { eprintln!("{line}") } else { println!("{line}") };
    // Once more together: of a long run the end is what is looked at.
    for failed in summary.scenarios.iter().filter(|verdict| !verdict.passed) {
        say(format!("failed: {}", failed.lines()));
    }
    say(format!("all of it took {:.0} s", begun.elapsed().as_secs_f64()));
    say(format!("{} passed, {} failed", summary.passed, summary.failed));
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(folders: &[PathBuf]) -> Result<ExitCode> {
    let mut broken = 0;
    for folder in folders {
        let name = folder.display();
        match oracle::judge(folder) {
            Ok(one) => {
                println!("{name}: {} IKE messages opened, {} ESP packets", one.opened, one.esp)
            }
            Err(failure) => {
                broken += 1;
                println!("{name}: {failure}");
            }
        }
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check() -> ExitCode {
    let missing = prerequisites::missing_packages();
    let kernel = prerequisites::missing_kernel();
    if !missing.is_empty() {
        println!("{}", prerequisites::install_line(&missing));
    }
    if let Some(fetch) = &kernel {
        println!("{fetch}");
    }
    if !missing.is_empty() || kernel.is_some() {
        return ExitCode::FAILURE;
    }
    println!("everything that the scenarios need is here");
    ExitCode::SUCCESS
}
