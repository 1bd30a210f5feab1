//! Other programs of the machine's that the daemon has things done by: `nft`, `resolvectl`, `resolvconf`.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// How long a program may take: longer than any machine needs, and no reason to hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a program has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// there is no such program, nor the package of that name
    #[error("the program {0} is missing")]
    Missing(&'static str),
    /// it could not be run
    #[error("run {0}: {1}")]
    Run(String, io::Error),
    /// it took too long
    #[error("{0} has not ended in {PATIENCE:?}")]
    Slow(String),
    /// its own words, the first line of them
    #[error("{0}")]
    Failed(String),
}

/// Where programs are: `PATH`, and the folders for administrators, which a service's path often lacks.
pub fn path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    // a folder with a colon in its name can't be in it
    std::env::join_paths(std::env::split_paths(&path).chain(usual)).unwrap_or(path)
}

/// Where in this path the program of that name is.
pub fn find(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Runs a program to its end with this standard input, and says what it has written to its output.
///
/// # Errors
/// It can't be run, is too slow, or ends with another status than 0.
pub async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let name = || program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let run = async {
        let mut command = Command::new(program);
        // SAFETY: umask is one system call, and async-signal-safe (signal-safety(7)).
        unsafe {
            // What it writes is for all programs; the daemon's own files are not.
            command.pre_exec(|| {
                rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
                Ok(())
            });
        }
        let mut child = command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // one that has ended already says why itself
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output: Output = match timeout(PATIENCE, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(e)) => return Err(ToolError::Run(name(), e)),
        Err(_) => return Err(ToolError::Slow(name())),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let status = output.status;
        let said = said.lines().find(|line| !line.trim().is_empty());
        let said = said.map_or(format!("{} ended with {status}", name()), str::to_owned);
        return Err(ToolError::Failed(said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
