//! `bewick demo`: a tunnel that moves, shown in network namespaces on this machine.

use std::process::ExitCode;

/// What `bewick demo` was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DemoOptions {
    /// print one JSON object in place of the timeline
    pub json: bool,
}

/// Runs the demonstration; success only if every move ended with traffic flowing.
pub fn run(_options: DemoOptions) -> ExitCode {
    eprintln!("bewick demo: not part of this build");
    ExitCode::FAILURE
}
