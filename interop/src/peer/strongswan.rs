//! Debian's strongSwan: `charon-systemd` with a configuration, a control socket and a log of its
//! own, told what to do by `swanctl`.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{CLIENT_ID, GATEWAY_ID, PSK, Peer, Place, Plane, SaView, UP};
use crate::failure::{Context, Result};
use crate::process::{self, Daemon};
use crate::topology::{GATEWAY, INNER_NETWORK, Node, POOL};

/// The daemon. It needs no systemd around it and, unlike `charon`, has no fixed pid file.
pub const DAEMON: &str = "/usr/sbin/charon-systemd";

const SHORT: Duration = Duration::from_secs(10);

/// A running charon.
pub struct Strongswan {
    daemon: Daemon,
    settings: PathBuf,
    socket: String,
}

impl Strongswan {
    /// Starts charon on a host and loads its half of the tunnel.
    ///
    /// # Errors
    /// It does not start or refuses the configuration.
    pub fn start(place: &Place<'_>) -> Result<Self> {
        let settings = place.evidence("strongswan.conf");
        let connections = place.evidence("swanctl.conf");
        let log = place.evidence("strongswan.log");
        let socket = place.scratch.join(format!("{}.vici", place.node.name()));
        let socket = format!("unix://{}", socket.display());
        let kernel = match place.plane {
            // kernel-netlink still does addresses and routes.
            Plane::Userspace => "kernel-libipsec kernel-netlink",
            Plane::Kernel => "kernel-netlink",
        };
        let daemon_settings = DAEMON_SETTINGS
            .replace("@kernel@", kernel)
            .replace("@socket@", &socket)
            .replace("@log@", &log.display().to_string());
        fs::write(&settings, daemon_settings).context(settings.display())?;
        let tunnel = match place.node {
            Node::Client => CLIENT.replace("@gateway@", &GATEWAY.to_string()),
            _ => GATEWAY_SIDE.replace("@gateway@", &GATEWAY.to_string()).replace("@pool@", POOL),
        };
        let tunnel = tunnel
            .replace("@client_id@", CLIENT_ID)
            .replace("@gateway_id@", GATEWAY_ID)
            .replace("@inner@", INNER_NETWORK)
            .replace("@encap@", if place.plane == Plane::Userspace { "yes" } else { "no" })
            .replace("@psk@", PSK);
        fs::write(&connections, tunnel).context(connections.display())?;

        let mut command = place.topology.command(place.node, DAEMON);
        command.env("STRONGSWAN_CONF", &settings);
        let mut daemon = Daemon::start(&mut command, &place.evidence("strongswan.stderr"))?;
        process::eventually(SHORT, || {
            daemon.still_runs()?;
            swanctl(&settings, &socket, &["--version"], SHORT)
        })?;
        let file = connections.display().to_string();
        swanctl(&settings, &socket, &["--load-all", "--file", &file], SHORT)?;
        Ok(Self { daemon, settings, socket })
    }

    fn swanctl(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        swanctl(&self.settings, &self.socket, arguments, limit)
    }
}

fn swanctl(settings: &PathBuf, socket: &str, args: &[&str], limit: Duration) -> Result<String> {
    let mut command = Command::new("swanctl");
    command.env("STRONGSWAN_CONF", settings).args(args);
    if args.first() == Some(&"--version") {
        command.arg("--daemon");
    }
    process::output(command.args(["--uri", socket]), limit)
}

impl Peer for Strongswan {
    fn version(&self) -> Result<String> {
        let said = self.swanctl(&["--version"], SHORT)?;
        let version =
            said.split([',', ' ']).find(|word| word.starts_with(|c: char| c.is_numeric()));
        Ok(format!("strongSwan {}", version.unwrap_or("of unknown version")))
    }

    fn up(&mut self) -> Result<()> {
        let seconds = UP.as_secs().to_string();
        let limit = UP + Duration::from_secs(5);
        self.swanctl(&["--initiate", "--child", "net", "--timeout", &seconds], limit).map(drop)
    }

    fn down(&mut self) -> Result<()> {
        self.swanctl(&["--terminate", "--ike", "tunnel", "--timeout", "10"], SHORT * 2).map(drop)
    }

    fn sas(&mut self) -> Result<Vec<SaView>> {
        self.daemon.still_runs()?;
        sas_in(&self.swanctl(&["--list-sas", "--pretty"], SHORT)?)
    }

    fn stop(&mut self) -> Result<()> {
        self.daemon.stop(SHORT)
    }
}

/// Reads `swanctl --list-sas --pretty`: a section opens with `name {`, a list with `name = [`,
/// each closes on a line of its own.
fn sas_in(text: &str) -> Result<Vec<SaView>> {
    #[derive(Default)]
    struct Raw {
        established: bool,
        local: (String, String),
        remote: (String, String),
        virtual_ips: Vec<IpAddr>,
        children: usize,
    }
    let mut found = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    let mut raw = Raw::default();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_suffix('{').or_else(|| line.strip_suffix("= [")) {
            path.push(name.trim());
            if path.len() == 2 {
                raw = Raw::default();
            }
        } else if line == "}" || line == "]" {
            if path.len() == 2 && raw.established {
                let end = |(host, port): &(String, String)| -> Result<SocketAddr> {
                    let host: IpAddr = host.parse().context(format!("address {host}"))?;
                    let port = port.parse().context(format!("port {port}"))?;
                    Ok(SocketAddr::new(host, port))
                };
                found.push(SaView {
                    local: end(&raw.local)?,
                    remote: end(&raw.remote)?,
                    virtual_ips: std::mem::take(&mut raw.virtual_ips),
                    children: raw.children,
                });
            }
            path.pop();
        } else if let Some((key, value)) = line.split_once(" = ") {
            match (path.len(), key) {
                (2, "state") => raw.established = value == "ESTABLISHED",
                (2, "local-host") => raw.local.0 = value.to_owned(),
                (2, "local-port") => raw.local.1 = value.to_owned(),
                (2, "remote-host") => raw.remote.0 = value.to_owned(),
                (2, "remote-port") => raw.remote.1 = value.to_owned(),
                (4, "state") if value == "INSTALLED" => raw.children += 1,
                _ => {}
            }
        } else if matches!(path.get(2), Some(&"local-vips" | &"remote-vips")) {
            raw.virtual_ips.extend(line.parse::<IpAddr>());
        }
    }
    Ok(found)
}

const DAEMON_SETTINGS: &str = "\
charon-systemd {
    load = random nonce openssl kdf @kernel@ socket-default vici
    load_modular = no
    plugins {
        vici { socket = @socket@ }
        kernel-libipsec { allow_peer_ts = yes }
    }
    filelog {
        main {
            path = @log@
            time_format = %H:%M:%S
            time_add_ms = yes
            flush_line = yes
            default = 1
            ike = 2
            knl = 2
            enc = 2
            cfg = 2
        }
    }
    journal { default = -1 }
}
swanctl { load = random openssl }
";

const CLIENT: &str = "\
connections {
    tunnel {
        version = 2
        remote_addrs = @gateway@
        vips = 0.0.0.0
        proposals = aes256gcm16-prfsha256-x25519
        encap = @encap@
        mobike = yes
        local { auth = psk
            id = @client_id@ }
        remote { auth = psk
            id = @gateway_id@ }
        children {
            net { remote_ts = @inner@
                esp_proposals = aes256gcm16 }
        }
    }
}
secrets {
    ike-1 { id-a = @client_id@
        id-b = @gateway_id@
        secret = \"@psk@\" }
}
";

const GATEWAY_SIDE: &str = "\
connections {
    tunnel {
        version = 2
        local_addrs = @gateway@
        pools = clients
        proposals = aes256gcm16-prfsha256-x25519
        encap = @encap@
        mobike = yes
        local { auth = psk
            id = @gateway_id@ }
        remote { auth = psk
            id = *@example.com }
        children {
            net { local_ts = @inner@
                esp_proposals = aes256gcm16 }
        }
    }
}
pools {
    clients { addrs = @pool@ }
}
secrets {
    ike-1 { id-a = @client_id@
        id-b = @gateway_id@
        secret = \"@psk@\" }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
list-sa event {
  tunnel {
    uniqueid = 1
    state = ESTABLISHED
    local-host = 192.0.2.1
    local-port = 4500
    local-id = vpn.example.com
    remote-host = 203.0.113.9
    remote-port = 21908
    remote-vips = [
      10.9.0.1
    ]
    child-sas {
      net-1 {
        name = net
        state = DELETED
        local-ts = [
          10.1.0.0/16
        ]
      }
      net-3 {
        name = net
        state = INSTALLED
        remote-ts = [
          10.9.0.1/32
        ]
      }
    }
  }
}
list-sa event {
  tunnel {
    state = CONNECTING
    local-host = 192.0.2.1
    child-sas {
    }
  }
}
list-sas reply {
}
";

    #[test]
    fn only_established_sas_and_installed_children_count() {
        let sas = sas_in(LISTED).unwrap_or_default();
        let expected = SaView {
            local: SocketAddr::from(([192, 0, 2, 1], 4500)),
            remote: SocketAddr::from(([203, 0, 113, 9], 21908)),
            virtual_ips: vec![IpAddr::from([10, 9, 0, 1])],
            children: 1,
        };
        assert_eq!(sas, [expected]);
    }

    #[test]
    fn no_sas_is_an_empty_list() {
        assert_eq!(sas_in("list-sas reply {\n}\n").map(|sas| sas.len()).ok(), Some(0));
    }
}
