//! The same benchmark in the guest, whose kernel does ESP and delays packets.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Args;

use super::{EVENTS, Options, Settings};
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Plane;
use crate::place;
use crate::prerequisites;
use crate::process;

/// What a guest may take to boot and to bring tunnels up.
const BOOT: Duration = Duration::from_secs(90);
/// What it may take for each event of all programs, besides what they wait for.
const EACH: Duration = Duration::from_secs(20);

/// Where single events happen.
#[derive(Clone, Args)]
pub struct Ground {
    /// In the guest, where the kernel does ESP, with this round-trip time in milliseconds; without it here,
    /// with ESP in userspace and next to none
    #[arg(long, value_name = "MS")]
    rtt: Option<u32>,
    /// This is the guest, and here is bewick
    #[arg(long, hide = true, value_name = "BEWICK")]
    in_guest: Option<PathBuf>,
}

impl Ground {
    /// The round-trip time for which a guest is to be started; none if this is where it happens.
    pub fn elsewhere(&self) -> Option<u32> {
        self.rtt.filter(|_| self.in_guest.is_none())
    }

    /// How it happens here.
    ///
    /// # Errors
    /// As [`Settings::options`].
    pub fn options(&self, settings: &Settings) -> Result<Options> {
        let mut options = settings.options(EVENTS)?;
        if let Some(bewick) = &self.in_guest {
            place::use_bewick(bewick.clone());
            options.plane = Plane::Kernel;
        }
        options.rtt = self.rtt.unwrap_or(0);
        Ok(options)
    }
}

/// Has the benchmark `what`, with these arguments of its own, done in the guest, and prints what is said there.
/// A program waits `patience` for each event.
///
/// # Errors
/// There is no guest, or it is not done in time.
pub fn run(
    settings: &Settings,
    what: &str,
    own: &[String],
    rtt: u32,
    patience: Duration,
) -> Result<ExitCode> {
    let options = settings.options(EVENTS)?;
    let folder = options.out.join(format!("bench-{what}-rtt-{rtt}"));
    prerequisites::require(options.programs, Plane::Kernel)?;
    let mut command = Command::new(place::guest(Plane::Kernel));
    let limit = limit(options.times, options.programs.len(), patience);
    command.env("GUEST_SECONDS", limit.as_secs().to_string());
    let runner = std::env::current_exe().context("own path")?;
    command.arg(&folder).arg(runner).args(["bench", what]).args(own);
    command.arg("--rtt").arg(rtt.to_string());
    command.arg("--times").arg(options.times.to_string()).arg("--out").arg(&folder);
    command.arg("--in-guest").arg(place::bewick()?);
    command.args(settings.json.then_some("--json"));
    command.args(settings.only.iter().flat_map(|only| ["--only", only.name()]));
    let log = folder.join("log");
    // What an earlier one has said is not to be taken for this one's.
    let _ = std::fs::remove_file(&log);
    eprintln!("in the guest; {} grows meanwhile", log.display());
    let done = process::finish(&mut command, limit + BOOT)?;
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    for line in log.lines() {
        match settings.json && !line.starts_with('{') {
            true => eprintln!("{line}"),
            false => println!("{line}"),
        }
    }
    match done.status.code() {
        Some(0) => Ok(ExitCode::SUCCESS),
        // What it has printed says why.
        Some(1) if !log.is_empty() => Ok(ExitCode::FAILURE),
        _ => {
            let said = process::one_line(&format!("{} {log}", done.stderr));
            Err(fail!("in the guest: {}: {said}", done.status))
        }
    }
}

/// How long all of it may take.
fn limit(times: usize, programs: usize, patience: Duration) -> Duration {
    let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
    let each = EACH.saturating_add(patience.saturating_mul(count(programs)));
    BOOT.saturating_add(each.saturating_mul(count(times)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_may_wait_the_whole_patience_each_time() {
        let patience = Duration::from_secs(20);
        assert!(limit(20, 2, patience) > patience * 2 * 20 + BOOT);
        assert_eq!(limit(20, 2, Duration::ZERO), BOOT + EACH * 20);
    }
}
