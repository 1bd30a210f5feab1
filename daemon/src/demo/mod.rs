//! `bewick demo`: a tunnel that moves, on this machine alone.
//!
//! It makes a client with two uplinks, a router and a gateway as network namespaces, runs the real
//! daemon in both, sends numbered packets through the tunnel and moves it while they flow.

mod agent;
mod footing;
mod lab;
mod leak;
mod netns;
mod report;
mod story;
mod traffic;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

use agent::{Exit, make_directory};
use footing::Footing;
use report::{Narrator, Report};
use story::{MOVES, Story, StoryError};

/// How the demo is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct DemoOptions {
    /// print one JSON object instead of the timeline
    pub json: bool,
    /// leave the configuration files and logs where they are
    pub keep: bool,
}

/// Runs the demo. Successful only if every move ended with traffic flowing.
///
/// To be called while the process has one thread, see [`footing::obtain`].
pub fn run(options: DemoOptions) -> ExitCode {
    let early = |why: String| {
        finish(options, &Report { error: Some(why), ..Report::default() });
        ExitCode::from(2)
    };
    let footing = match footing::obtain() {
        Ok(footing) => footing,
        Err(refusal) => return early(refusal.to_string()),
    };
    let directory = match Scratch::make() {
        Ok(directory) => directory,
        Err(error) => return early(error.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return early(format!("no runtime: {error}")),
    };
    let code = runtime.block_on(perform(options, footing, directory));
    // Some work inside a namespace may still wait for an answer that does not matter any more.
    runtime.shutdown_timeout(Duration::from_millis(100));
    code
}

/// How the story ended.
enum End {
    Told(Result<(), StoryError>),
    Died(Exit),
    Interrupted { name: &'static str, code: u8 },
}

async fn perform(options: DemoOptions, footing: Footing, mut directory: Scratch) -> ExitCode {
    let mut signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => {
            let error = Some(format!("can't watch for signals: {error}"));
            finish(options, &Report { error, ..Report::default() });
            return ExitCode::from(2);
        }
    };
    let (exits, mut exited) = mpsc::unbounded_channel();
    let mut story = Story::new(Narrator::new(options.json), directory.path.clone(), exits);
    let end = tokio::select! {
        end = story.run(footing) => End::Told(end),
        Some(exit) = exited.recv() => End::Died(exit),
        end = signals.next() => end,
    };
    // A daemon that died makes everything else fail, and is the better reason.
    let end = match end {
        End::Told(Err(error)) => match timeout(Duration::from_millis(100), exited.recv()).await {
            Ok(Some(exit)) => End::Died(exit),
            Ok(None) | Err(_) => End::Told(Err(error)),
        },
        end => end,
    };
    if matches!(end, End::Told(Err(_)) | End::Died(_)) {
        story.tell_events();
    }
    // Who is in a hurry interrupts once more: the daemons die with us in any case.
    let killed = tokio::select! {
        killed = story.stop() => killed,
        _ = signals.next() => Vec::new(),
    };

    let mut code = ExitCode::FAILURE;
    story.report.error = match end {
        End::Told(Ok(())) => None,
        End::Told(Err(error)) => Some(error.to_string()),
        End::Died(exit) => Some(match footing::missing_tun() {
            Some(remedy) => format!("{}\n{remedy}", exit.describe()),
            None => exit.describe(),
        }),
        End::Interrupted { name, code: number } => {
            code = ExitCode::from(number);
            Some(format!("interrupted by {name}"))
        }
    };
    let interrupted = code != ExitCode::FAILURE;
    if !killed.is_empty() && story.report.error.is_none() {
        let names = killed.join(", ");
        story.report.error = Some(format!("a daemon did not end when asked to: {names}"));
    }
    let ok = story.report.ok(MOVES.len());
    directory.keep = options.keep || !(ok || interrupted);
    finish(options, &story.report);
    if directory.keep {
        // Not on the standard output, which in JSON holds one object only.
        eprintln!("configuration files and logs: {}", directory.path.display());
    }
    if ok { ExitCode::SUCCESS } else { code }
}

/// Says how it ended.
fn finish(options: DemoOptions, report: &Report) {
    if let Some(error) = &report.error {
        eprintln!("bewick demo: {error}");
    }
    let last = if options.json {
        report.json(MOVES.len())
    } else if report.error.is_some() {
        return;
    } else if report.ok(MOVES.len()) {
        "\nThe tunnel moved each time, traffic flowed on, and none of it was seen in the clear."
            .to_owned()
    } else {
        "\nNot every move ended with traffic flowing.".to_owned()
    };
    // A reader that has left is no reason to stop: the exit status still tells.
    let _ = writeln!(io::stdout().lock(), "{last}");
}

/// The signals that end the demo.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> End {
        let (name, kind) = tokio::select! {
            _ = self.interrupt.recv() => ("Ctrl-C", SignalKind::interrupt()),
            _ = self.terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = self.hangup.recv() => ("the end of the terminal", SignalKind::hangup()),
        };
        // What a shell reports for a program that died of the signal.
        End::Interrupted { name, code: 128 + u8::try_from(kind.as_raw_value()).unwrap_or(0) }
    }
}

/// A directory of our own, gone with this value unless it is to be kept.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn make() -> Result<Self, agent::AgentError> {
        let mut parent = std::env::temp_dir();
        // The path of a Unix socket has at most 107 octets, of which the rest takes about 60.
        if parent.as_os_str().len() > 45 {
            parent = Path::new("/tmp").to_owned();
        }
        let path = parent.join(format!("bewick-demo-{}", std::process::id()));
        // Left behind by a demo that was killed, long ago, with the same number.
        let _ = fs::remove_dir_all(&path);
        make_directory(&path)?;
        Ok(Scratch { path, keep: false })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            // Someone else may have tidied up.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}
