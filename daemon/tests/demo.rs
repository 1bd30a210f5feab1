//! `bewick demo` as a user runs it. Where this user may make no namespaces there is nothing to test.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The exit status of a demo that could not begin.
const FORBIDDEN: i32 = 2;

/// Starts a demo whose files go to a directory of its own.
fn start(name: &str) -> (Child, PathBuf) {
    let directory = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir(&directory).expect("a directory");
    let demo = Command::new(env!("CARGO_BIN_EXE_bewick"))
        .args(["demo", "--json"])
        .env("TMPDIR", &directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the demo starts");
    (demo, directory)
}

/// Waits for the demo; `None` if it may not run here. Nothing of it must be left.
fn end(demo: Child, directory: &Path) -> Option<(Output, Value)> {
    let output = demo.wait_with_output().expect("an end");
    assert_eq!(fs::read_dir(directory).expect("the directory").count(), 0, "files are left");
    fs::remove_dir(directory).expect("the directory");
    assert_eq!(processes(directory), 0, "daemons are left");
    if output.status.code() == Some(FORBIDDEN) {
        eprintln!("not tested, since no namespaces can be made");
        return None;
    }
    let object = serde_json::from_slice(&output.stdout).expect("one JSON object");
    Some((output, object))
}

/// How many processes name the directory in their command line.
fn processes(directory: &Path) -> usize {
    let name = directory.to_str().expect("a name");
    let entries = fs::read_dir("/proc").expect("the processes").flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(name)).count()
}

#[test]
fn the_demo_moves_each_time_and_loses_nothing_when_asked_to() {
    let (demo, directory) = start("demo");
    let Some((output, object)) = end(demo, &directory) else { return };
    assert!(output.status.success(), "{object}");
    assert_eq!(object["ok"], true, "{object}");
    assert!(object["setup_ms"].is_u64(), "{object}");
    let moves = object["moves"].as_array().expect("moves");
    let kinds: Vec<&Value> = moves.iter().map(|step| &step["kind"]).collect();
    // Without nft there is no NAT, and nothing that it could forget.
    let known = if object["skipped"].is_array() { 3 } else { 4 };
    assert_eq!(kinds, ["uplink-lost", "planned", "silent", "nat-rebind"][..known]);
    for step in moves {
        assert_eq!(step["ok"], true, "{step}");
        assert_eq!(step["from"] == step["to"], step["kind"] == "nat-rebind", "{step}");
        assert_ne!(step["seen_from"], step["seen_to"], "{step}");
        assert!(step["gap_ms"].is_u64(), "{step}");
    }
    assert!(moves[1]["sent"].as_u64() >= Some(5000), "{object}");
    if object["dataplane"] == "userspace" {
        assert_eq!(moves[1]["lost"], 0, "{object}");
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let (mut demo, directory) = start("demo-interrupted");
    let began = Instant::now();
    // Both daemons, and so everything that there is to clean up.
    while processes(&directory) < 2 {
        assert!(began.elapsed() < Duration::from_secs(20), "the daemons do not start");
        if demo.try_wait().expect("a state").is_some() {
            end(demo, &directory);
            return;
        }
        sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_raw(demo.id().cast_signed()).expect("a number");
    kill_process(pid, Signal::INT).expect("a signal");
    let Some((output, object)) = end(demo, &directory) else { return };
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(output.status.signal(), None);
    assert_eq!(object["ok"], false);
    assert_eq!(object["error"], "interrupted by Ctrl-C");
}
