//! The page and the file in which a whole run is kept: what works with whom, seen from where, and how well.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::{Context, Result};
use crate::glance;
use crate::process;
use crate::report::{CaseVerdict, Move, Summary, Verdict};

/// The pages' names, beside the runner's sources.
pub const PAGE: &str = "RESULTS.md";
/// The same for programs.
pub const FILE: &str = "results.json";

/// Where and when a run was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// The day, as `2026-01-31`.
    pub date: String,
    /// The kernel of the scenarios in userspace.
    pub kernel: String,
    /// The package with the guest's kernel, and its version.
    pub guest: String,
    /// The commit of the sources, `+` behind it if they were changed since.
    pub commit: String,
}

impl Place {
    /// Asks the machine. What it can't say stays `unknown`: no scenario fails for that.
    pub fn here() -> Self {
        let says = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            let said = process::output(command.args(arguments), Duration::from_secs(10));
            said.map_or("unknown".to_owned(), |text| text.trim().to_owned())
        };
        let sources = env!("CARGO_MANIFEST_DIR");
        let git = |arguments: &[&str]| says("git", &[&["-C", sources], arguments].concat());
        // The results themselves are no change.
        let changed = git(&[
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "..",
            ":!*esults.json",
            ":!*RESULTS.md",
        ]);
        let plus = if changed.is_empty() { "" } else { "+" };
        Self {
            date: says("date", &["-u", "+%F"]),
            kernel: says("uname", &["-sr"]),
            guest: says("dpkg-query", &["-W", "-f", "${Package} ${Version}", "user-mode-linux"]),
            commit: format!("{}{plus}", git(&["rev-parse", "--short", "HEAD"])),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Whole {
    place: Place,
    #[serde(flatten)]
    summary: Summary,
}

/// Puts a verdict into the results in this folder, in the place of the one before of the same scenario; they
/// are in the order of `order`, and what is not there any more goes.
///
/// # Errors
/// The file system's own, or what is there can't be read.
pub fn keep(folder: &Path, place: &Place, order: &[String], mut verdict: Verdict) -> Result<()> {
    let path = folder.join(FILE);
    let mut kept = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str::<Whole>(&text).context(path.display())?.summary.scenarios,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context(path.display()),
    };
    let before = kept.iter().find(|one| one.name == verdict.name).map_or(0, |one| one.in_a_row);
    verdict.in_a_row = if verdict.passed { before + 1 } else { 0 };
    (verdict.date, verdict.commit) = (place.date.clone(), place.commit.clone());
    // Where it lies is of no use elsewhere.
    verdict.evidence.clear();
    kept.retain(|one| one.name != verdict.name);
    kept.push(verdict);
    let at = |one: &Verdict| order.iter().position(|name| *name == one.name);
    kept.retain(|one| at(one).is_some());
    kept.sort_by_key(at);
    let whole = Whole { place: place.clone(), summary: Summary::of(kept) };
    let json = serde_json::to_string_pretty(&whole).context("results")?;
    fs::create_dir_all(folder).context(folder.display())?;
    for (name, text) in [(PAGE, page(place, &whole.summary)), (FILE, json + "\n")] {
        let path = folder.join(name);
        fs::write(&path, text).context(path.display())?;
    }
    Ok(())
}

/// A Markdown page for people: a row for each scenario and for each tunnel that it tried.
pub fn page(place: &Place, summary: &Summary) -> String {
    let Place { kernel, guest, .. } = place;
    let mut text = format!(
        "# Interop results\n\n\
         Written by `bewick-interop run --all`, and row by row by `run NAME --results interop`. Userspace: ESP in \
         both daemons, in namespaces on {kernel}. Kernel: XFRM in a guest, Debian's {guest}. IKE and ESP are \
         what was in the captures: IKE messages that tshark opened with bewick's keys and ESP packets, all of \
         them held against the rules of the wire. Passes are those in a row, the last one at that commit.\n\n\
         {} passed, {} failed\n\n{}\n## One by one\n\n\
         | scenario | client | gateway | data plane | verdict | figures | IKE | ESP | seconds | passes | when |\n\
         | --- | --- | --- | --- | --- | --- | --: | --: | --: | --: | --- |\n",
        summary.passed,
        summary.failed,
        glance::table(&summary.scenarios)
    );
    for one in &summary.scenarios {
        text += &row(one);
        for case in &one.cases {
            text += &case_row(case);
        }
    }
    text.push_str("\n## What each shows\n\n");
    for one in &summary.scenarios {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- `{}`: {}", one.name, one.purpose);
    }
    text
}

fn word(passed: bool) -> &'static str {
    if passed { "pass" } else { "FAIL" }
}

fn row(one: &Verdict) -> String {
    let Verdict { name, client, gateway, plane, opened, esp, seconds, in_a_row, .. } = one;
    let version = |program: &String| {
        let full = one.versions.iter().find(|version| version.to_lowercase().starts_with(program));
        full.unwrap_or(program).clone()
    };
    let figures: Vec<String> = one.moves.iter().map(moved).chain(why(&one.reason)).collect();
    format!(
        "| {name} | {} | {} | {plane} | {} | {} | {opened} | {esp} | {seconds:.1} | {in_a_row} | {}, {} |\n",
        version(client),
        version(gateway),
        word(one.passed),
        figures.join("; "),
        one.date,
        one.commit,
    )
}

fn case_row(case: &CaseVerdict) -> String {
    let mut figures = Vec::new();
    if case.sent > 0 {
        figures.push(format!("{} of {} packets lost", case.lost, case.sent));
    }
    figures.extend(case.gap_ms.map(|gap| format!("{gap:.0} ms without")));
    figures.extend(case.figures.iter().cloned());
    figures.extend(why(&case.reason));
    let (name, seconds) = (&case.name, case.seconds);
    let (verdict, figures) = (word(case.reason.is_none()), figures.join(", "));
    format!("| … {name} | | | | {verdict} | {figures} | | | {seconds:.1} | | |\n")
}

fn moved(one: &Move) -> String {
    let gap = one.gap_ms.map_or("no traffic after".to_owned(), |ms| format!("{ms:.0} ms without"));
    format!("{}: {} of {} packets lost, {gap}", one.kind, one.lost, one.sent)
}

/// What a failure said, as a cell of a table can hold it.
fn why(reason: &Option<String>) -> Option<String> {
    reason.as_ref().map(|reason| reason.replace('|', "/").replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_row_for_each_tunnel_and_says_what_failed() {
        let case = |name: &str, reason: Option<&str>| CaseVerdict {
            name: name.to_owned(),
            sent: 10,
            lost: 1,
            gap_ms: Some(12.3),
            reason: reason.map(str::to_owned),
            ..CaseVerdict::default()
        };
        let verdict = Verdict {
            name: "planned".to_owned(),
            client: "strongswan".to_owned(),
            gateway: "bewick".to_owned(),
            plane: "userspace".to_owned(),
            versions: vec!["strongSwan 5.9.8".to_owned(), "bewick 0.1.0".to_owned()],
            cases: vec![case("there", None), case("back", Some("a | b\nc"))],
            ..Verdict::default()
        };
        let place = Place {
            date: "2026-01-31".to_owned(),
            kernel: "Linux 6".to_owned(),
            guest: "user-mode-linux 6.1".to_owned(),
            commit: "abcdef0".to_owned(),
        };
        let page = page(&place, &Summary::of(vec![verdict]));
        let row = "| planned | strongSwan 5.9.8 | bewick 0.1.0 | userspace | FAIL |";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("| … there | | | | pass | 1 of 10 packets lost, 12 ms without |"));
        assert!(page.contains("| … back | | | | FAIL |") && page.contains("a / b c"));
        assert!(page.contains("0 passed, 1 failed"));
        let (_, one_by_one) = page.split_once("## One by one").expect("both tables");
        let rows: Vec<&str> = one_by_one.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| row.matches('|').count() == 12), "{rows:?}");
    }

    #[test]
    fn a_run_takes_the_place_of_the_one_before_and_counts() {
        let folder = std::env::temp_dir().join(format!("bewick-results-{}", std::process::id()));
        let place = Place {
            date: "2026-01-31".to_owned(),
            kernel: "Linux 6".to_owned(),
            guest: "user-mode-linux 6.1".to_owned(),
            commit: "abcdef0".to_owned(),
        };
        let order = ["one".to_owned(), "two".to_owned()];
        for (name, passed) in [
            ("two", true),
            ("gone", true),
            ("two", true),
            ("one", true),
            ("one", false),
            ("two", true),
        ] {
            let verdict = Verdict { name: name.to_owned(), passed, ..Verdict::default() };
            keep(&folder, &place, &order, verdict).expect("kept");
        }
        let text = fs::read_to_string(folder.join(FILE)).expect("results");
        let whole: Whole = serde_json::from_str(&text).expect("whole");
        let rows: Vec<(&str, u32)> =
            whole.summary.scenarios.iter().map(|one| (one.name.as_str(), one.in_a_row)).collect();
        assert_eq!(rows, [("one", 0), ("two", 3)]);
        assert_eq!((whole.summary.passed, whole.summary.failed), (1, 1));
        assert!(
            fs::read_to_string(folder.join(PAGE))
                .expect("page")
                .contains("| 3 | 2026-01-31, abcdef0 |")
        );
        fs::write(folder.join(FILE), "broken").expect("written");
        assert!(keep(&folder, &place, &order, Verdict::default()).is_err(), "nothing is lost");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
