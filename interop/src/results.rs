//! The page and the file in which a whole run is kept: what works with whom, seen from where, and how well.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::failure::{Context, Result};
use crate::process;
use crate::report::{CaseVerdict, Move, Summary, Verdict};

/// The pages' names, beside the runner's sources.
pub const PAGE: &str = "RESULTS.md";
/// The same for programs.
pub const FILE: &str = "results.json";

/// Where and when a run was.
#[derive(Debug, Clone, Serialize)]
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

#[derive(Serialize)]
struct Whole<'a> {
    place: &'a Place,
    #[serde(flatten)]
    summary: &'a Summary,
}

/// Writes both into this folder.
///
/// # Errors
/// The file system's own.
pub fn write(folder: &Path, place: &Place, summary: &Summary) -> Result<()> {
    let json = serde_json::to_string_pretty(&Whole { place, summary }).context("results")?;
    fs::create_dir_all(folder).context(folder.display())?;
    for (name, text) in [(PAGE, page(place, summary)), (FILE, json + "\n")] {
        let path = folder.join(name);
        fs::write(&path, text).context(path.display())?;
    }
    Ok(())
}

/// A Markdown page for people: a row for each scenario and for each tunnel that it tried.
pub fn page(place: &Place, summary: &Summary) -> String {
    let Place { date, kernel, guest, commit } = place;
    let mut text = format!(
        "# Interop results\n\n\
         Written by `bewick-interop run --all` on {date}, commit {commit}. Userspace: ESP in both daemons, in \
         namespaces on {kernel}. Kernel: XFRM in a guest, Debian's {guest}. IKE and ESP are what was in the \
         captures: IKE messages that tshark opened with bewick's keys and ESP packets, all of them held against \
         the rules of the wire.\n\n\
         {} passed, {} failed\n\n\
         | scenario | client | gateway | data plane | verdict | figures | IKE | ESP | seconds |\n\
         | --- | --- | --- | --- | --- | --- | --: | --: | --: |\n",
        summary.passed, summary.failed
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
    let Verdict { name, client, gateway, plane, opened, esp, seconds, .. } = one;
    let version = |program: &String| {
        let full = one.versions.iter().find(|version| version.to_lowercase().starts_with(program));
        full.unwrap_or(program).clone()
    };
    let figures: Vec<String> = one.moves.iter().map(moved).chain(why(&one.reason)).collect();
    format!(
        "| {name} | {} | {} | {plane} | {} | {} | {opened} | {esp} | {seconds:.1} |\n",
        version(client),
        version(gateway),
        word(one.passed),
        figures.join("; "),
    )
}

fn case_row(case: &CaseVerdict) -> String {
    let mut figures = Vec::new();
    if case.sent > 0 {
        figures.push(format!("{} of {} packets lost", case.lost, case.sent));
    }
    figures.extend(case.gap_ms.map(|gap| format!("{gap:.0} ms without")));
    figures.extend(why(&case.reason));
    let (name, seconds) = (&case.name, case.seconds);
    let (verdict, figures) = (word(case.reason.is_none()), figures.join(", "));
    format!("| … {name} | | | | {verdict} | {figures} | | | {seconds:.1} |\n")
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
        let rows: Vec<&str> = page.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| row.matches('|').count() == 10), "{rows:?}");
    }
}
