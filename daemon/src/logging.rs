//! The log: on stderr, for a person or as JSON lines; what of it is told, the configuration says.

use tracing_subscriber::{EnvFilter, fmt};

/// The environment variable that overrides what the configuration says.
pub const FILTER_VARIABLE: &str = "BEWICK_LOG";

/// Starts to log; `filter` is in the words of [`EnvFilter`], which the configuration has checked.
///
/// Does nothing if somebody logs already, as in tests.
pub fn start(filter: &str, json: bool) {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::builder().parse_lossy(wanted),
        _ => EnvFilter::builder().parse_lossy(filter),
    };
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // the second start of a process changes nothing
    let _ = match json {
        true => log.json().flatten_event(true).try_init(),
        false => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
}
