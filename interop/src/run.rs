//! Runs scenarios, here and in guests, and keeps their evidence.

pub mod aside;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fail;
use crate::failure::{Context, Result};
use crate::oracle;
use crate::peer::{Plane, Program};
use crate::place;
use crate::prerequisites;
use crate::process;
use crate::report::Verdict;
use crate::scenario::{self, Scenario};

/// The longest that a guest may live, boot included. Where peers die it waits twice for five minutes, which none does
/// whose instructions are translated.
fn lifetime(plane: Plane) -> Duration {
    Duration::from_secs(if plane == Plane::CloudKernel { 600 } else { 1200 })
}

/// The command by which the runner calls itself in the guest.
pub const IN_GUEST: &str = "__in-guest";

const VERDICT: &str = "verdict.json";

/// Runs these scenarios in their order: those of this machine one after the other, and so many in guests of their own
/// meanwhile, and beside them as many of those that mostly wait; or all one after the other, if that is none. Gives
/// their verdicts as `told`, one by one as they come.
///
/// # Errors
/// `told` failed; no other scenario is begun then.
pub fn side_by_side(
    scenarios: Vec<Scenario>,
    guests: usize,
    out: &Path,
    told: impl Fn(&Verdict) -> Result<()> + Sync,
) -> Result<Vec<Verdict>> {
    let idle = |(_, one): &(usize, Scenario)| guests > 0 && one.waits();
    let in_guest = |(_, one): &(usize, Scenario)| guests > 0 && one.plane().is_in_kernel();
    let (idle, busy): (VecDeque<_>, VecDeque<_>) =
        scenarios.into_iter().enumerate().partition(idle);
    let (guest, here): (VecDeque<_>, VecDeque<_>) = busy.into_iter().partition(in_guest);
    let lanes = [(Mutex::new(here), 1), (Mutex::new(guest), guests), (Mutex::new(idle), guests)];
    let verdicts = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    let lane = |queue: &Mutex<VecDeque<(usize, Scenario)>>| {
        let next = || lock(queue).pop_front().filter(|_| lock(&failed).is_none());
        while let Some((number, scenario)) = next() {
            let verdict = run(scenario, out, guests > 0 && scenario.waits());
            let mut verdicts = lock(&verdicts);
            if let Err(failure) = told(&verdict) {
                lock(&failed).get_or_insert(failure);
            }
            verdicts.push((number, verdict));
        }
    };
    std::thread::scope(|scope| {
        for (queue, count) in &lanes {
            (0..*count).for_each(|_| drop(scope.spawn(|| lane(queue))));
        }
    });
    if let Some(failure) = lock(&failed).take() {
        return Err(failure);
    }
    let mut verdicts = std::mem::take(&mut *lock(&verdicts));
    verdicts.sort_by_key(|(number, _)| *number);
    Ok(verdicts.into_iter().map(|(_, verdict)| verdict).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one scenario, in a process of its own if it runs `beside` others on this machine; its evidence goes to a folder
/// of its name in `out`.
fn run(scenario: Scenario, out: &Path, beside: bool) -> Verdict {
    let start = Instant::now();
    let folder = out.join(scenario.name());
    let mut verdict = Verdict::on(&scenario);
    match attempt(scenario, &folder, &mut verdict, beside) {
        Ok(()) => match (verdict.passed, oracle::judge(&folder)) {
            (_, Ok(judged)) => verdict.note(judged),
            (true, Err(failure)) => {
                verdict.passed = false;
                verdict.reason = Some(format!("the capture: {failure}"));
            }
            // What went wrong before is the better reason.
            (false, Err(_)) => {}
        },
        Err(failure) => {
            verdict.passed = false;
            verdict.reason = Some(failure.to_string());
        }
    }
    if let Err(failure) = oracle::keep(&folder) {
        verdict.passed = false;
        verdict.reason.get_or_insert(format!("the captures cannot be kept: {failure}"));
    }
    verdict.seconds = start.elapsed().as_secs_f64();
    verdict.evidence = folder.display().to_string();
    if let Err(failure) = verdict.write(&folder.join(VERDICT)) {
        verdict.passed = false;
        verdict.reason.get_or_insert(format!("the verdict cannot be kept: {failure}"));
    }
    verdict
}

fn attempt(scenario: Scenario, folder: &Path, verdict: &mut Verdict, beside: bool) -> Result<()> {
    let programs = scenario.programs();
    prerequisites::require(&programs, scenario.plane())?;
    let bewick = match programs.contains(&Program::Bewick) {
        true => Some(place::bewick()?),
        false => None,
    };
    // Yesterday's logs beside today's verdict would mislead.
    aside::make_room(folder)?;
    fs::create_dir_all(folder).context(folder.display())?;
    match scenario.plane() {
        Plane::Userspace if beside => *verdict = in_process(scenario, folder, bewick)?,
        Plane::Userspace => scenario.judge(folder, verdict),
        Plane::Kernel | Plane::CloudKernel => *verdict = in_guest(scenario, folder, bewick)?,
    }
    Ok(())
}

/// Namespaces and the like are named after the process.
fn in_process(scenario: Scenario, folder: &Path, bewick: Option<PathBuf>) -> Result<Verdict> {
    let mut command = Command::new(std::env::current_exe().context("own path")?);
    command.current_dir(folder).arg(IN_GUEST).arg(scenario.name()).args(bewick);
    let done = process::finish(&mut command, lifetime(scenario.plane()))?;
    Verdict::read(&folder.join(VERDICT)).map_err(|error| {
        let said = process::one_line(&format!("{} {}", done.stderr, done.stdout));
        fail!("the scenario gave no verdict ({error}); {}: {said}", done.status)
    })
}

fn in_guest(scenario: Scenario, folder: &Path, bewick: Option<PathBuf>) -> Result<Verdict> {
    let launcher = place::guest(scenario.plane());
    if !launcher.is_file() {
        return Err(fail!("{} is not there", launcher.display()));
    }
    let own = std::env::current_exe().context("own path")?;
    let mut command = Command::new(launcher);
    let lifetime = lifetime(scenario.plane());
    command.env("GUEST_SECONDS", lifetime.as_secs().to_string());
    command.arg(folder).arg(own).arg(IN_GUEST).arg(scenario.name()).args(bewick);
    let done = process::finish(&mut command, lifetime + Duration::from_secs(10))?;
    Verdict::read(&folder.join(VERDICT)).map_err(|error| {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        let said = process::one_line(&format!("{} {} {log}", done.stderr, done.stdout));
        fail!("the guest gave no verdict ({error}); {}: {said}", done.status)
    })
}

/// Inside the guest: runs one scenario with the current folder as the place for evidence.
///
/// # Errors
/// The scenario is not known or the verdict cannot be written.
pub fn run_in_guest(name: &str, bewick: Option<PathBuf>) -> Result<()> {
    let scenario = find(name)?;
    if let Some(bewick) = bewick {
        place::use_bewick(bewick);
    }
    let out = std::env::current_dir().context("current folder")?;
    let mut verdict = Verdict::on(&scenario);
    scenario.judge(&out, &mut verdict);
    println!("{}", verdict.lines());
    verdict.write(&out.join(VERDICT))
}

/// The scenario of this name.
///
/// # Errors
/// There is none.
pub fn find(name: &str) -> Result<Scenario> {
    scenario::all()
        .into_iter()
        .find(|scenario| scenario.name() == name)
        .ok_or_else(|| fail!("there is no scenario {name}; `list` names them all"))
}
