//! Our own daemon, as a user would run it: `bewick run`, `up`, `status`, `down`.

mod config;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::{ChildView, Peer, Place, Plane, SaView, UP, spi};
use crate::fail;
use crate::failure::{Context, Result};
use crate::place;
use crate::process::{self, Daemon};

const SHORT: Duration = Duration::from_secs(10);

/// A running bewick.
pub struct Bewick {
    daemon: Daemon,
    program: PathBuf,
    control: PathBuf,
    plane: Plane,
    /// All connections, those that start first.
    connections: &'static [&'static str],
}

impl Bewick {
    /// Starts bewick on a host with its half of the tunnel.
    ///
    /// # Errors
    /// It is not built, does not start, or refuses the configuration.
    pub fn start(place: &Place<'_>) -> Result<Self> {
        let program = place::bewick()?;
        let configuration = place.evidence("bewick.toml");
        let control = place.scratch.join(format!("{}-bewick", place.node.name())).join("control");
        let text = config::write(place)?;
        write_secret(&configuration, &text).context(configuration.display())?;

        let mut command = place.topology.command(place.node, &program);
        command.arg("run").arg("--config").arg(&configuration);
        command.arg("--control").arg(&control);
        let daemon = Daemon::start(&mut command, &place.evidence("bewick.log"))?;
        let connections: &[&str] = match place.tunnel.mutual {
            true => &[config::STARTS, config::ANSWERS],
            false => &[config::STARTS],
        };
        let mut bewick = Self { daemon, program, control, plane: place.plane, connections };
        process::eventually(SHORT, || {
            bewick.daemon.still_runs()?;
            bewick.status().map(drop)
        })?;
        let kind = bewick.status()?.dataplane.kind;
        if kind != place.plane.word() {
            return Err(fail!("bewick runs the {kind} data plane, not {}", place.plane.word()));
        }
        Ok(bewick)
    }

    fn bewick(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut command = Command::new(&self.program);
        process::output(command.args(arguments).arg("--control").arg(&self.control), limit)
    }

    fn status(&self) -> Result<Status> {
        let said = self.bewick(&["status", "--json"], SHORT)?;
        serde_json::from_str(&said).context("bewick status --json")
    }
}

impl Peer for Bewick {
    fn version(&self) -> Result<String> {
        Ok(format!("bewick {}", self.status()?.version))
    }

    fn up(&mut self) -> Result<()> {
        self.bewick(&["up", "tunnel"], UP)?;
        process::eventually(UP, || match self.sas()?.as_slice() {
            [] => Err(fail!("bewick up has ended and no IKE_SA is established")),
            _ => Ok(()),
        })
    }

    fn down(&mut self) -> Result<()> {
        self.connections
            .iter()
            .try_for_each(|name| self.bewick(&["down", name], SHORT * 2).map(drop))
    }

    fn down_child(&mut self, _name: &str) -> Result<()> {
        Err(fail!("bewick has no word for the end of one CHILD_SA"))
    }

    fn ask_for_end(&mut self, name: &str) -> Result<()> {
        self.down_child(name)
    }

    fn ask_for_child(&mut self, _name: &str) -> Result<()> {
        // Where it waits for packets this makes all that is missing.
        self.bewick(&["up", "tunnel"], SHORT).map(drop)
    }

    fn rekey_children(&mut self) -> Result<()> {
        self.bewick(&["rekey", "tunnel"], SHORT).map(drop)
    }

    fn rekey_ike(&mut self) -> Result<()> {
        self.bewick(&["rekey", "tunnel", "--ike"], SHORT).map(drop)
    }

    fn move_to(&mut self, device: &str) -> Result<()> {
        self.bewick(&["move", "tunnel", "--to", device], SHORT).map(drop)
    }

    fn reauthenticate(&mut self) -> Result<()> {
        // It does so by itself, and knows no command for it.
        Ok(())
    }

    fn sas(&mut self) -> Result<Vec<SaView>> {
        self.daemon.still_runs()?;
        let status = self.status()?;
        let sas = status.connections.into_iter().flat_map(|connection| connection.ike_sas);
        let end = |text: &str| text.parse().context(format!("bewick status: address {text}"));
        sas.filter(|sa| sa.state == "established")
            .map(|sa| {
                let ips = sa.virtual_ips.iter();
                // With or without the prefix length: both name the address.
                let ips = ips.map(|ip| ip.split_once('/').map_or(ip.as_str(), |(ip, _)| ip));
                let children = sa.children.iter().map(|child| {
                    Ok(ChildView {
                        spi_in: spi(&child.spi_in)?,
                        spi_out: spi(&child.spi_out)?,
                        suite: child.suite.clone(),
                        beyond: None,
                    })
                });
                Ok(SaView {
                    spis: format!("{} {}", sa.spi_i, sa.spi_r),
                    local: end(&sa.local)?,
                    remote: end(&sa.remote)?,
                    virtual_ips: ips
                        .map(|ip| ip.parse().context(format!("virtual address {ip}")))
                        .collect::<Result<_>>()?,
                    dns: sa.dns.clone(),
                    suite: None,
                    children: children.collect::<Result<_>>()?,
                })
            })
            .collect()
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn stop(&mut self) -> Result<()> {
        self.daemon.stop(SHORT).context(format!("bewick ({})", self.plane.name()))
    }

    fn kill(&mut self) {
        self.daemon.kill();
    }
}

/// The part of `bewick status --json` that verdicts rest on.
#[derive(Deserialize)]
struct Status {
    version: String,
    dataplane: DataPlane,
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
struct DataPlane {
    kind: String,
}

#[derive(Deserialize)]
struct Connection {
    ike_sas: Vec<IkeSa>,
}

#[derive(Deserialize)]
struct IkeSa {
    spi_i: String,
    spi_r: String,
    state: String,
    local: String,
    remote: String,
    virtual_ips: Vec<String>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    children: Vec<Child>,
}

#[derive(Deserialize)]
struct Child {
    spi_in: String,
    spi_out: String,
    suite: String,
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
