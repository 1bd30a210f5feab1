//! All scenarios at a glance: a row for each topic, a column for who began and where ESP was.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::report::Verdict;

/// Who begins, with whom, and on which plane, as the scenarios' names end.
const COLUMNS: [(&str, &str); 4] = [
    ("bewick-to-strongswan-userspace", "bewick begins, userspace"),
    ("strongswan-to-bewick-userspace", "strongSwan begins, userspace"),
    ("bewick-to-strongswan-kernel", "bewick begins, kernel"),
    ("strongswan-to-bewick-kernel", "strongSwan begins, kernel"),
];

/// A table in Markdown. A cell tells how often a scenario has passed in a row, or that it failed; nothing where there
/// is no such scenario or none that was run. Kernels of both guests count as one column.
pub fn table(scenarios: &[Verdict]) -> String {
    let mut topics: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<(&str, usize), String> = BTreeMap::new();
    for one in scenarios {
        let Some((topic, column)) = place(&one.name) else { continue };
        if !topics.contains(&topic) {
            topics.push(topic);
        }
        let cell = cells.entry((topic, column)).or_default();
        if !cell.is_empty() {
            cell.push_str(", ");
        }
        let _ = match one.passed {
            true => write!(cell, "pass × {}", one.in_a_row),
            false => write!(cell, "FAIL"),
        };
    }
    let mut text = String::from("| topic |");
    for (_, title) in COLUMNS {
        let _ = write!(text, " {title} |");
    }
    text.push_str("\n| --- |");
    text.push_str(&" --- |".repeat(COLUMNS.len()));
    for topic in topics {
        let _ = write!(text, "\n| {topic} |");
        for column in 0..COLUMNS.len() {
            let cell = cells.get(&(topic, column)).map_or("", String::as_str);
            let _ = write!(text, " {cell} |");
        }
    }
    text.push('\n');
    text
}

/// The topic of a scenario and its column.
fn place(name: &str) -> Option<(&str, usize)> {
    COLUMNS.iter().enumerate().find_map(|(column, (ending, _))| {
        let (pair, plane) = ending.rsplit_once('-')?;
        let before = name.strip_suffix(plane)?.trim_end_matches('-');
        let before = if plane == "kernel" { before.trim_end_matches("-cloud") } else { before };
        Some((before.strip_suffix(pair)?.trim_end_matches('-'), column))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scenario_has_its_cell() {
        let verdict = |name: &str, passed: bool, in_a_row: u32| Verdict {
            name: name.to_owned(),
            passed,
            in_a_row,
            ..Verdict::default()
        };
        let table = table(&[
            verdict("rekey-ike-bewick-to-strongswan-userspace", true, 3),
            verdict("rekey-ike-strongswan-to-bewick-kernel", false, 0),
            verdict("leaks-bewick-to-strongswan-cloud-kernel", true, 2),
            verdict("psk-bewick-to-bewick-kernel", true, 1),
        ]);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            ["| rekey-ike | pass × 3 |  |  | FAIL |", "| leaks |  |  | pass × 2 |  |"]
        );
        assert!(table.lines().all(|line| line.matches('|').count() == 6), "{table}");
    }
}
