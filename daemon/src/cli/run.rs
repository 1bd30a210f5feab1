//! `bewick run`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::json;

use crate::{
    cli::{control_path, fail},
    config, logging, runtime,
};

/// Reads the configuration and runs the daemon; with `check` only says whether it is right.
pub fn run(file: &Path, check: bool, control: Option<PathBuf>, json: bool) -> ExitCode {
    let config = match config::load(file) {
        Ok(config) => config,
        Err(problems) => {
            // in the form that editors and compilers use, for every line of it
            eprintln!("{problems}");
            let n = problems.0.len();
            let what = if n == 1 { "one mistake" } else { "mistakes" };
            let started = if check { "" } else { "; nothing was started" };
            return fail(&format!("{what} in {}{started}", file.display()), None);
        }
    };
    if check {
        let n = config.connections.len();
        if json {
            println!("{}", json!({ "ok": true, "connections": n }));
        } else {
            let what = if n == 1 { "connection" } else { "connections" };
            println!("{}: {n} {what}, no mistakes", file.display());
        }
        return ExitCode::SUCCESS;
    }
    logging::start(&config.daemon.log, json);
    let control = control_path(control, config.daemon.control.clone());
    match runtime::run(config, control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e.to_string(), e.remedy()),
    }
}
