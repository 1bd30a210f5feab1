//! `tests/CONFORMANCE.md` against the tests that exist: no rule without its test, no test of a rule
//! that the list does not know.

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
