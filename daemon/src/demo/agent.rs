//! The real daemons of the demo, each a child process in its namespace, and what they say.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::{
    process::Command,
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{netns::Netns, traffic::Clock};
use crate::control::{
    Client, ClientError, EventRecord, Reply, Request, Status, protocol::IkeSaStatus,
};

/// How long a daemon may take to answer on its control socket after its start.
const START: Duration = Duration::from_secs(10);
/// How long a daemon may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(3);
/// How long a daemon may take to carry out a command.
const ANSWER: Duration = Duration::from_secs(15);
/// How many of a log's last lines are shown.
const LAST_LINES: usize = 12;

/// Why a daemon could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A file or process could not be made.
    #[error("{what}: {error}")]
    Io {
        /// what was tried
        what: String,
        /// the system's word on it
        error: io::Error,
    },
    /// A command of the control socket failed or was not understood.
    #[error("`bewick {command}` for the {name}: {why}")]
    Control {
        /// whose daemon
        name: &'static str,
        /// the command
        command: String,
        /// what it said
        why: String,
    },
}

impl AgentError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| AgentError::Io { what, error }
    }
}

/// A daemon that ended, though nobody asked it to.
#[derive(Debug)]
pub struct Exit {
    /// whose daemon
    pub name: &'static str,
    /// how it ended
    pub status: Option<ExitStatus>,
    /// where its log is
    pub log: PathBuf,
}

impl Exit {
    /// One sentence on it, and the log's last lines.
    pub fn describe(&self) -> String {
        let how = match self.status {
            Some(status) if status.signal().is_some() || status.code().is_some() => {
                status.to_string()
            }
            _ => "nobody knows how".to_owned(),
        };
        format!("the {}'s daemon ended ({how}){}", self.name, last_lines(&self.log))
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Agent {
    name: &'static str,
    pid: Pid,
    control: PathBuf,
    exited: watch::Receiver<bool>,
    events: Arc<Mutex<Events>>,
    clock: Clock,
}

#[derive(Debug, Default)]
struct Events {
    list: Vec<EventRecord>,
    /// When the daemon began on the demo's clock: the earliest that its events allow.
    began: Option<Duration>,
}

impl Agent {
    /// Starts `bewick run` inside `netns` with this configuration, in `directory`, which is made,
    /// and waits until it answers. Its end, unless by [`Agent::stop`], is told to `exits`.
    pub async fn start(
        netns: &Netns,
        directory: &Path,
        configuration: &str,
        clock: Clock,
        exits: mpsc::UnboundedSender<Exit>,
    ) -> Result<Self, AgentError> {
        let name = netns.name();
        make_directory(directory)?;
        let config = directory.join("bewick.toml");
        write_private(&config, configuration)?;
        let log = directory.join("log");
        let output = File::create(&log).map_err(AgentError::io("make a log"))?;
        let errors = output.try_clone().map_err(AgentError::io("make a log"))?;
        let control = directory.join("run").join("control.sock");
        make_directory(&directory.join("run"))?;

        let mut command = bewick(Some(netns.as_fd()));
        command.arg("run").arg("--config").arg(&config).arg("--control").arg(&control);
        command.stdout(output).stderr(errors);
        let mut child =
            command.spawn().map_err(AgentError::io(format!("start the {name}'s daemon")))?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(pid) = pid else {
            return Err(AgentError::io("start a daemon")(io::Error::other("it has no number")));
        };
        let (ended, exited) = watch::channel(false);
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            ended.send_replace(true);
            // Nobody listens once the demo is over.
            let _ = exits.send(Exit { name, status, log });
        });
        let agent = Agent { name, pid, control, exited, events: Arc::default(), clock };
        agent.answers().await?;
        Ok(agent)
    }

    /// Whose daemon it is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Asks the daemon for its state.
    pub async fn status(&self) -> Result<Status, AgentError> {
        match self.ask(Request::Status {}).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.failed(&Request::Status {}, format!("it answered {other:?}"))),
        }
    }

    /// Sends the daemon a command and waits for its last answer.
    pub async fn ask(&self, request: Request) -> Result<Reply, AgentError> {
        let (control, asked) = (self.control.clone(), request.clone());
        let last = spawn_blocking(move || {
            let mut client = Client::ask(&control, &asked)?;
            loop {
                let reply = client.reply()?;
                if reply.is_last() {
                    return Ok::<_, ClientError>(reply);
                }
            }
        });
        let failed = |why: String| self.failed(&request, why);
        match timeout(ANSWER, last).await {
            Ok(Ok(Ok(Reply::Error { text, remedy: Some(remedy) }))) => {
                Err(failed(format!("{text}: {remedy}")))
            }
            Ok(Ok(Ok(Reply::Error { text, remedy: None }))) => Err(failed(text)),
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(error))) => Err(failed(error.to_string())),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    fn failed(&self, request: &Request, why: String) -> AgentError {
        let command = match request {
            Request::Up { name } => format!("up {name}"),
            Request::Down { name } => format!("down {name}"),
            Request::Status {} => "status".to_owned(),
            Request::Paths { .. } => "paths".to_owned(),
            Request::Moves { .. } => "moves".to_owned(),
            Request::Move { name, to } => format!("move {name} --to {to}"),
            Request::Rekey { name, .. } => format!("rekey {name}"),
            Request::Events {} => "events".to_owned(),
        };
        AgentError::Control { name: self.name, command, why }
    }

    /// What the daemon did between two marks of the demo's clock, in order.
    pub fn events(&self, from: Duration, until: Duration) -> Vec<(Duration, EventRecord)> {
        let events = lock(&self.events);
        let began = events.began.unwrap_or_default();
        let mut list: Vec<_> = events
            .list
            .iter()
            .map(|event| (began + Duration::from_millis(event.at_ms), event.clone()))
            .filter(|(at, _)| (from..until).contains(at))
            .collect();
        list.sort_by_key(|(at, _)| *at);
        list
    }

    /// Ends the daemon as an administrator would, and without mercy if that is in vain. Returns
    /// whether it went by itself.
    pub async fn stop(&mut self) -> bool {
        if *self.exited.borrow() {
            return true;
        }
        // It may have ended this very moment.
        let _ = kill_process(self.pid, Signal::TERM);
        let gone = timeout(STOP, self.exited.wait_for(|exited| *exited)).await.is_ok();
        if !gone {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = timeout(STOP, self.exited.wait_for(|exited| *exited)).await;
        }
        gone
    }

    /// Waits until the daemon tells its events. If it ends instead, `exits` tells, and this goes on to wait.
    async fn answers(&self) -> Result<(), AgentError> {
        let deadline = self.clock.now() + START;
        loop {
            match self.listen() {
                Ok(()) => return Ok(()),
                Err(error) if self.clock.now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// Reads the daemon's events for as long as it lives.
    fn listen(&self) -> Result<(), AgentError> {
        let mut client = Client::ask(&self.control, &Request::Events {})
            .map_err(|error| self.failed(&Request::Events {}, error.to_string()))?;
        let (events, clock) = (self.events.clone(), self.clock);
        thread::Builder::new()
            .name(format!("{}-events", self.name))
            .spawn(move || {
                // The end of the stream is that of the daemon, which is told elsewhere.
                while let Ok(reply) = client.reply() {
                    if let Reply::Event(event) = reply {
                        lock(&events).add(event, clock.now());
                    }
                }
            })
            .map_err(AgentError::io("start a thread"))?;
        Ok(())
    }
}

impl Events {
    fn add(&mut self, event: EventRecord, now: Duration) {
        let began = now.saturating_sub(Duration::from_millis(event.at_ms));
        self.began = Some(self.began.map_or(began, |before| before.min(began)));
        self.list.push(event);
    }
}

/// The IKE_SA that carries the tunnel, if it stands.
pub fn tunnel(status: &Status) -> Option<&IkeSaStatus> {
    status.connections.iter().flat_map(|c| &c.ike_sas).find(|sa| !sa.children.is_empty())
}

/// This program once more, in `netns` or where we are. It dies with us, whatever ends us.
fn bewick(netns: Option<BorrowedFd<'_>>) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("bewick").stdin(Stdio::null()).kill_on_drop(true);
    // Ctrl-C is for us alone: we end the daemons in order.
    command.process_group(0);
    let us = getpid();
    let netns = netns.map(|netns| netns.as_raw_fd());
    // SAFETY: between fork and exec only system calls are made, no memory is allocated and no lock
    // taken, and the descriptor is open as long as the `Netns` it is borrowed from, which the
    // caller keeps until after `spawn`.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before the call above.
            if getppid() != Some(us) {
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            if let Some(netns) = netns {
                let netns = BorrowedFd::borrow_raw(netns);
                move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            }
            Ok(())
        });
    }
    command
}

/// Makes a directory that only this user may enter.
pub fn make_directory(path: &Path) -> Result<(), AgentError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(AgentError::io(format!("make {}", path.display())))
}

/// Writes a file that only this user may read.
pub fn write_private(path: &Path, text: &str) -> Result<(), AgentError> {
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    };
    write().map_err(AgentError::io(format!("write {}", path.display())))
}

/// The last lines of a log, as the end of an error message.
pub fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
    if last.is_empty() {
        return "; its log is empty".to_owned();
    }
    format!("; the end of its log:\n  | {}", last.join("\n  | "))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_placed_by_the_one_that_came_fastest() {
        let mut events = Events::default();
        let now = Duration::from_millis;
        let event = |at_ms| EventRecord {
            at_ms,
            event: "moved".to_owned(),
            connection: None,
            fields: serde_json::Map::new(),
            text: "moved".to_owned(),
        };
        // The first was sent late.
        events.add(event(5), now(1400));
        events.add(event(400), now(1402));
        assert_eq!(events.began, Some(now(1002)));
    }
}
