//! `tests/CONFORMANCE.md` against the tests that exist: no rule without its test, no test of a rule
//! that the list does not know, and no requirement of MOBIKE's without a test that is named after it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").into()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names of all functions under `#[test]` or `#[tokio::test]`, also inside `proptest!`.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in ["ike/src", "mobike/src", "xfrm/src", "daemon/src", "tests/src", "tests/tests"] {
        sources(&root().join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                marked = true;
            } else if let Some(name) = line
                .strip_prefix("async ")
                .unwrap_or(line)
                .strip_prefix("fn ")
                .filter(|_| marked)
                .and_then(|rest| rest.split('(').next())
            {
                names.insert(name.to_owned());
                marked = false;
            } else if !line.starts_with("#[") && !line.starts_with("//") && !line.is_empty() {
                marked = false;
            }
        }
    }
    names
}

/// The tests that the list names, row by row.
fn listed() -> Vec<String> {
    let text = fs::read_to_string(root().join("tests/CONFORMANCE.md")).expect("the list");
    text.lines()
        .filter(|line| line.starts_with("| RFC ") && !line.starts_with("| RFC |"))
        .flat_map(|line| {
            let cell = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default().to_owned();
            assert!(cell.contains('`'), "a row without a test: {line}");
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a test is named for a rule: `m_3_5_16_…`, `k_2_1_1_…`, `x_10_…`.
fn is_of_a_rule(name: &str) -> bool {
    ["m_", "k_", "x_"].iter().any(|kind| {
        name.strip_prefix(kind)
            .and_then(|rest| rest.chars().next())
            .is_some_and(|c| c.is_ascii_digit() || (c == 'a' && name.starts_with("m_a_")))
    })
}

#[test]
fn every_rule_of_the_list_has_its_test() {
    let tests = tests();
    let missing: Vec<String> = listed().into_iter().filter(|name| !tests.contains(name)).collect();
    assert!(missing.is_empty(), "tests/CONFORMANCE.md names tests that do not exist: {missing:#?}");
}

#[test]
fn every_test_of_a_rule_is_on_the_list() {
    let listed: BTreeSet<String> = listed().into_iter().collect();
    let missing: Vec<String> =
        tests().into_iter().filter(|n| is_of_a_rule(n) && !listed.contains(n)).collect();
    assert!(missing.is_empty(), "tests/CONFORMANCE.md lacks these tests: {missing:#?}");
}

/// Every requirement of RFC 4555 that was read out of it (M), by section, and every case that it leaves to
/// the implementer (X).
const MOBIKE: [&str; 114] = [
    "M-1.2-1",
    "M-1.2-2",
    "M-1.2-3",
    "M-1.2-4",
    "M-1.3-1",
    "M-2.3-1",
    "M-3.1-1",
    "M-3.2-1",
    "M-3.2-2",
    "M-4.2.1-1",
    "M-4.2.1-2",
    "M-3.3-1",
    "M-3.3-2",
    "M-3.3-3",
    "M-3.4-1",
    "M-3.4-2",
    "M-3.4-3",
    "M-3.4-4",
    "M-3.4-5",
    "M-3.5-1",
    "M-3.5-2",
    "M-3.5-3",
    "M-3.5-4",
    "M-3.5-5",
    "M-3.5-6",
    "M-3.5-7",
    "M-3.5-8",
    "M-3.5-9",
    "M-3.5-10",
    "M-3.5-11",
    "M-3.5-12",
    "M-3.5-13",
    "M-4.2.4-1",
    "M-3.5-14",
    "M-3.5-15",
    "M-3.5-16",
    "M-3.5-17",
    "M-3.5-18",
    "M-3.5-19",
    "M-3.5-20",
    "M-3.5-21",
    "M-3.5-22",
    "M-3.5-23",
    "M-3.5-24",
    "M-3.5-25",
    "M-4.1.1-1",
    "M-3.6-1",
    "M-3.6-2",
    "M-3.6-3",
    "M-3.6-4",
    "M-3.6-5",
    "M-3.6-6",
    "M-3.6-7",
    "M-3.6-8",
    "M-3.6-9",
    "M-3.6-10",
    "M-3.7-1",
    "M-3.7-2",
    "M-3.7-3",
    "M-3.7-4",
    "M-3.7-5",
    "M-3.7-6",
    "M-3.7-7",
    "M-3.7-8",
    "M-3.7-9",
    "M-3.7-10",
    "M-4.2.5-1",
    "M-5.3-1",
    "M-5.3-2",
    "M-3.8-1",
    "M-3.8-2",
    "M-3.8-3",
    "M-3.8-4",
    "M-3.8-5",
    "M-3.8-6",
    "M-3.8-7",
    "M-3.8-8",
    "M-3.9-1",
    "M-3.9-2",
    "M-3.9-3",
    "M-3.9-4",
    "M-3.9-5",
    "M-3.10-1",
    "M-3.11-1",
    "M-3.12-1",
    "M-3.12-2",
    "M-3.12-3",
    "M-5.2-1",
    "M-5.5-1",
    "M-A.1-1",
    "M-A.2-1",
    "X-1",
    "X-2",
    "X-3",
    "X-4",
    "X-5",
    "X-6",
    "X-7",
    "X-8",
    "X-9",
    "X-10",
    "X-11",
    "X-12",
    "X-13",
    "X-14",
    "X-15",
    "X-16",
    "X-17",
    "X-18",
    "X-18b",
    "X-19",
    "X-20",
    "X-21",
    "X-22",
];

/// Those without a test of their name, and why.
const WITHOUT: [(&str, &str); 0] = [];

/// Those of which a test shows a part, and what is left.
const PARTLY: [(&str, &str); 2] = [
    ("M-3.2-1", "EAP is not built, so that IKE_AUTH has two messages"),
    (
        "M-3.12-1",
        "the simulator's plane looks at the addresses; the others do so in tests of their own",
    ),
];

/// What the names of its tests begin with: `m_3_5_16_`.
fn prefix(id: &str) -> String {
    format!("{}_", id.to_lowercase().replace(['-', '.'], "_"))
}

#[test]
fn every_requirement_of_mobike_has_a_test_of_its_name() {
    let tests = tests();
    let has = |id: &str| tests.iter().any(|name| name.starts_with(&prefix(id)));
    let excepted: BTreeSet<&str> = WITHOUT.iter().map(|(id, _)| *id).collect();
    let missing: Vec<&&str> =
        MOBIKE.iter().filter(|id| !has(id) && !excepted.contains(*id)).collect();
    assert!(missing.is_empty(), "requirements without a test of their name: {missing:?}");
    let ids = BTreeSet::from(MOBIKE);
    assert_eq!(ids.len(), MOBIKE.len(), "each is there once");
    for (id, why) in WITHOUT {
        assert!(ids.contains(id) && !why.is_empty(), "{id} is no requirement");
        assert!(!has(id), "{id} has a test by now: strike it off");
    }
    for (id, why) in PARTLY {
        assert!(ids.contains(id) && !why.is_empty(), "{id} is no requirement");
        assert!(has(id), "{id} has no test at all");
    }
}

#[test]
fn every_test_of_mobike_s_is_named_after_a_requirement() {
    let is_named = |name: &String| MOBIKE.iter().any(|id| name.starts_with(&prefix(id)));
    let of_mobike = |name: &String| is_of_a_rule(name) && !name.starts_with("k_");
    let tests = tests();
    let others: Vec<&String> = tests.iter().filter(|n| of_mobike(n) && !is_named(n)).collect();
    // An older name, of the section as a whole.
    assert_eq!(others, ["m_3_12_a_packet_from_another_path_is_accepted_and_reported"]);
}
