//! The evidence of a run that failed, which the next run must not take away: it may be all that shows a rare fault.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::VERDICT;
use crate::failure::{Context, Result};
use crate::report::Verdict;

/// What stands between a scenario's name and the number of a run of its that failed.
const FAILED: &str = ".failed-";

/// How many runs of a scenario that failed are kept.
const KEPT: u32 = 5;

/// Makes room for a run: removes the evidence of one that passed; of one that failed, or has left no verdict, it gets
/// another name. Of too many the oldest goes.
///
/// # Errors
/// The file system's own.
pub fn make_room(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let passed = Verdict::read(&folder.join(VERDICT)).is_ok_and(|verdict| verdict.passed);
    if passed {
        return fs::remove_dir_all(folder).context(folder.display());
    }
    let mut names: Vec<PathBuf> = (1..=KEPT).map(|number| name(folder, number)).collect();
    let free = names.iter().position(|name| !name.exists());
    let at = free.unwrap_or_else(|| {
        let ages = names.iter().map(|name| age(name)).enumerate();
        ages.min_by_key(|(_, age)| *age).map_or(0, |(at, _)| at)
    });
    let name = names.swap_remove(at);
    if name.exists() {
        fs::remove_dir_all(&name).context(name.display())?;
    }
    fs::rename(folder, &name).context(name.display())
}

/// Whether this is such evidence, set aside.
pub fn is_aside(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().contains(FAILED))
}

fn name(folder: &Path, number: u32) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(format!("{FAILED}{number}"));
    name.into()
}

/// When its verdict was written, or else what came last into it.
fn age(folder: &Path) -> SystemTime {
    let written = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    written(&folder.join(VERDICT)).or_else(|_| written(folder)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    /// Leaves behind what a run does, at this time of some clock.
    fn run(folder: &Path, passed: Option<bool>, time: u64) {
        fs::create_dir_all(folder).expect("a folder");
        fs::write(folder.join("log"), time.to_string()).expect("a log");
        let Some(passed) = passed else { return };
        let path = folder.join(VERDICT);
        Verdict { passed, ..Verdict::default() }.write(&path).expect("a verdict");
        let file = File::options().write(true).open(&path).expect("a verdict");
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(time)).expect("a time");
    }

    #[test]
    fn a_failure_outlives_the_next_run_and_what_passed_does_not() {
        let out = std::env::temp_dir().join(format!("bewick-aside-{}", std::process::id()));
        let folder = out.join("psk");
        let log = |number| fs::read_to_string(name(&folder, number).join("log")).ok();
        make_room(&folder).expect("there is nothing");
        run(&folder, Some(true), 1);
        make_room(&folder).expect("room");
        assert!(!folder.exists() && log(1).is_none(), "it had passed");
        run(&folder, Some(false), 2);
        make_room(&folder).expect("room");
        run(&folder, None, 3);
        make_room(&folder).expect("room");
        assert!(!folder.exists() && is_aside(&name(&folder, 1)) && !is_aside(&folder));
        assert_eq!([log(1), log(2), log(3)], [Some("2".into()), Some("3".into()), None]);
        for time in 4..=7 {
            run(&folder, Some(false), time);
            make_room(&folder).expect("room");
        }
        // The oldest has gone.
        assert_eq!(log(1).as_deref(), Some("7"));
        assert_eq!(log(5).as_deref(), Some("6"));
        assert_eq!(fs::read_dir(&out).expect("the folder").count(), 5);
        fs::remove_dir_all(&out).expect("removed");
    }
}
