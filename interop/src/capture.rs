//! What passed the router, and what it shows.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fail;
use crate::failure::{Context, Result};
use crate::process::{self, Daemon};

/// A running capture of what passes the router.
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
}

/// A capture that has ended.
pub struct Captured {
    file: PathBuf,
}

impl Capture {
    /// Starts `tcpdump`, a command that runs on the router, with its file in `out`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(mut tcpdump: Command, out: &Path) -> Result<Self> {
        let file = out.join("router.pcap");
        // A capture may be short: nothing waits in a buffer.
        tcpdump
            .args(["--immediate-mode", "-i", "any", "-n", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(&file);
        let log = out.join("tcpdump.log");
        let mut daemon = Daemon::start(&mut tcpdump, &log)?;
        process::eventually(Duration::from_secs(10), || {
            daemon.still_runs()?;
            let said = std::fs::read_to_string(&log).context(log.display())?;
            if said.contains("listening on") { Ok(()) } else { Err(fail!("tcpdump is silent")) }
        })?;
        Ok(Self { daemon, file })
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// It failed or is empty.
    pub fn finish(mut self) -> Result<Captured> {
        self.daemon.stop(Duration::from_secs(5))?;
        let captured = Captured { file: self.file };
        if captured.read("udp")?.trim().is_empty() {
            return Err(fail!("the capture {} is empty", captured.file.display()));
        }
        Ok(captured)
    }
}

impl Captured {
    /// Looks for inner packets in the clear.
    ///
    /// # Errors
    /// There is one.
    pub fn none_in_the_clear(&self) -> Result<()> {
        let clear =
            self.read("net 10.1.0.0/16 or net 10.2.0.0/16 or net 10.9.0.0/24 or net fd10::/16")?;
        if clear.trim().is_empty() {
            return Ok(());
        }
        let clear = process::one_line(&clear);
        Err(fail!("an inner packet passed the router in the clear: {clear}"))
    }

    /// Fails unless a packet matches the filter.
    ///
    /// # Errors
    /// None does; the reason is that `what` was not seen.
    pub fn shows(&self, what: &str, filter: &str) -> Result<()> {
        if self.read(filter)?.trim().is_empty() {
            return Err(fail!("{what}: no such packet in {}", self.file.display()));
        }
        Ok(())
    }

    /// The first packet that matches the filter, or nothing.
    fn read(&self, filter: &str) -> Result<String> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-c", "1", "-r"]).arg(&self.file).arg(filter);
        process::output(&mut command, Duration::from_secs(20))
    }
}
