//! Debian's strongSwan: `charon-systemd` with a configuration, a control socket and a log of its
//! own, told what to do by `swanctl`.

mod config;
mod list;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Peer, Place, SaView, UP};
use crate::fail;
use crate::failure::{Context, Result};
use crate::process::{self, Daemon};

/// The daemon. It needs no systemd around it and, unlike `charon`, has no fixed pid file.
pub const DAEMON: &str = "/usr/sbin/charon-systemd";

const SHORT: Duration = Duration::from_secs(10);
/// How long it may take to name all its IKE_SAs: of thousands, more than a moment.
const LIST: Duration = Duration::from_secs(60);

/// A running charon.
pub struct Strongswan {
    daemon: Daemon,
    control: Control,
    children: Vec<&'static str>,
}

/// How it is told what to do.
struct Control {
    settings: PathBuf,
    folder: PathBuf,
    socket: String,
}

impl Strongswan {
    /// Starts charon on a host and loads its half of the tunnel.
    ///
    /// # Errors
    /// It does not start or refuses the configuration.
    pub fn start(place: &Place<'_>) -> Result<Self> {
        let settings = place.evidence("strongswan.conf");
        let folder = place.evidence("swanctl");
        let socket = place.scratch.join(format!("{}.vici", place.node.name()));
        let socket = format!("unix://{}", socket.display());
        fs::write(&settings, config::daemon(place, &socket)).context(settings.display())?;
        config::connections(place, &folder)?;

        let mut command = place.topology.command(place.node, DAEMON);
        command.env("STRONGSWAN_CONF", &settings);
        let mut daemon = Daemon::start(&mut command, &place.evidence("strongswan.stderr"))?;
        let control = Control { settings, folder, socket };
        process::eventually(SHORT, || {
            daemon.still_runs()?;
            control.swanctl(&["--version"], SHORT)
        })?;
        control.swanctl(&["--load-all"], SHORT)?;
        let children = place.tunnel.children.iter().map(|child| child.name).collect();
        Ok(Self { daemon, control, children })
    }
}

impl Control {
    fn swanctl(&self, args: &[&str], limit: Duration) -> Result<String> {
        let mut command = Command::new("swanctl");
        command.env("STRONGSWAN_CONF", &self.settings).env("SWANCTL_DIR", &self.folder);
        command.args(args);
        if args.first() == Some(&"--version") {
            command.arg("--daemon");
        }
        process::output(command.args(["--uri", &self.socket]), limit)
    }
}

impl Peer for Strongswan {
    fn version(&self) -> Result<String> {
        let said = self.control.swanctl(&["--version"], SHORT)?;
        let version =
            said.split([',', ' ']).find(|word| word.starts_with(|c: char| c.is_numeric()));
        Ok(format!("strongSwan {}", version.unwrap_or("of unknown version")))
    }

    fn up(&mut self) -> Result<()> {
        let seconds = UP.as_secs().to_string();
        let limit = UP + Duration::from_secs(5);
        for child in &self.children {
            let command = ["--initiate", "--child", child, "--timeout", &seconds];
            self.control.swanctl(&command, limit)?;
        }
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        let command = ["--terminate", "--ike", "tunnel", "--timeout", "10"];
        self.control.swanctl(&command, SHORT * 2).map(drop)
    }

    fn down_child(&mut self, name: &str) -> Result<()> {
        let command = ["--terminate", "--child", name, "--timeout", "10"];
        self.control.swanctl(&command, SHORT * 2).map(drop)
    }

    fn ask_for_end(&mut self, name: &str) -> Result<()> {
        let command = ["--terminate", "--child", name, "--timeout", "-1"];
        self.control.swanctl(&command, SHORT).map(drop)
    }

    fn ask_for_child(&mut self, name: &str) -> Result<()> {
        let command = ["--initiate", "--child", name, "--timeout", "-1"];
        self.control.swanctl(&command, SHORT).map(drop)
    }

    fn rekey_children(&mut self) -> Result<()> {
        for child in &self.children {
            self.control.swanctl(&["--rekey", "--child", child], SHORT)?;
        }
        Ok(())
    }

    fn rekey_ike(&mut self) -> Result<()> {
        self.control.swanctl(&["--rekey", "--ike", "tunnel"], SHORT).map(drop)
    }

    fn move_to(&mut self, _device: &str) -> Result<()> {
        Err(fail!("strongSwan has no word for a move"))
    }

    fn reauthenticate(&mut self) -> Result<()> {
        let command = ["--rekey", "--ike", "tunnel", "--reauth"];
        self.control.swanctl(&command, SHORT).map(drop)
    }

    fn sas(&mut self) -> Result<Vec<SaView>> {
        self.daemon.still_runs()?;
        list::sas_in(&self.control.swanctl(&["--list-sas", "--pretty"], LIST)?)
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn stop(&mut self) -> Result<()> {
        self.daemon.stop(SHORT)
    }

    fn kill(&mut self) {
        self.daemon.kill();
    }
}
