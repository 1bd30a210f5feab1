//! Other programs: short ones that are waited for, and daemons with a log.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cleanup::{self, Guard};
use crate::fail;
use crate::failure::{Context, Failure, Result};

/// How long a program that should answer at once may take.
const AT_ONCE: Duration = Duration::from_secs(20);

/// What a program printed and how it ended.
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// Runs a program to its end.
///
/// # Errors
/// It could not be started, or took longer than `limit` and was killed.
pub fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let line = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context(&line)?;
    let guard = Guard::tree(child.id());
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, limit).context(&line)?;
    // The process is reaped: its id may belong to another one soon.
    if status.is_some() {
        guard.forget();
    } else {
        drop(guard);
        let _ = child.wait();
    }
    let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
    match status {
        Some(status) => Ok(Finished { status, stdout, stderr }),
        None => Err(fail!(
            "{line}: not done after {} s; it said: {}",
            limit.as_secs(),
            one_line(&format!("{stdout} {stderr}"))
        )),
    }
}

/// Runs a program that must succeed, and gives what it printed.
///
/// # Errors
/// It could not be started, took too long, or ended with another status than 0.
pub fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let line = shown(command);
    let done = finish(command, limit)?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = format!("{} {}", done.stderr.trim(), done.stdout.trim());
    Err(fail!("{line}: {}: {}", done.status, one_line(&said)))
}

/// Runs a command line of plain words (no quoting), which must succeed.
///
/// # Errors
/// As [`output`].
pub fn words(line: &str) -> Result<String> {
    let mut parts = line.split_whitespace();
    let mut command = Command::new(parts.next().unwrap_or_default());
    output(command.args(parts), AT_ONCE)
}

/// A program that runs until it is stopped; what it prints goes to a file.
pub struct Daemon {
    child: Child,
    guard: Option<Guard>,
    name: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, with standard output and standard error in `log`.
    ///
    /// # Errors
    /// The log cannot be made or the program not be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let line = shown(command);
        let program = line.split(' ').next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default().to_owned();
        let file = File::create(log).context(log.display())?;
        let twin = file.try_clone().context(log.display())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(twin)
            .process_group(0)
            .spawn()
            .context(&name)?;
        let guard = Some(Guard::tree(child.id()));
        Ok(Self { child, guard, name, log: log.to_owned() })
    }

    /// Its process: `ip netns exec` becomes what it runs.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// It has ended; the reason has the last line that it printed.
    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait().context(&self.name)? {
            None => Ok(()),
            Some(status) => {
                self.reaped();
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
                let reason =
                    format!("{} ended by itself ({status}), it last said: {last}", self.name);
                Err(Failure::of_no_return(reason))
            }
        }
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// It did not end within `limit` (it is killed then) or with another status than 0.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.still_runs()?;
        cleanup::terminate(self.child.id());
        let status = wait(&mut self.child, limit).context(&self.name)?;
        if status.is_some() {
            self.reaped();
        }
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(fail!("{}: {status} after SIGTERM", self.name)),
            None => Err(fail!("{}: still there {} s after SIGTERM", self.name, limit.as_secs())),
        }
    }

    /// Kills it with all that it started, and waits.
    pub fn kill(&mut self) {
        drop(self.guard.take());
        let _ = self.child.wait();
    }

    fn reaped(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.forget();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tries until it works.
///
/// # Errors
/// The last one, after `limit`; one that trying again cannot mend at once.
pub fn eventually<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let end = begun + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if error.is_final() => return Err(error),
            Err(error) if Instant::now() >= end => {
                return Err(fail!("after {:.1} s: {error}", limit.as_secs_f64()));
            }
            // What takes long is not asked for so often: each question is a program to start.
            Err(_) if begun.elapsed() > Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// The text on one line, shortened to what a verdict can hold.
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push('…');
    }
    line
}

fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy()));
    // Every reader knows where a program runs from the step; its own name is what helps.
    match words.get(..3) {
        Some([ip, netns, exec]) if ip == "ip" && netns == "netns" && exec == "exec" => {
            words.drain(..words.len().min(4));
        }
        _ => {}
    }
    words.join(" ")
}
