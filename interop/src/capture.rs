//! What passed the router, and what it shows.

mod pcap;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fail;
use crate::failure::{Context, Result};
use crate::process::{self, Daemon};
use crate::topology::GATEWAYS;
use pcap::Kind;

/// What tcpdump writes.
pub const FILE: &str = "router.pcap";
/// What it writes on the NAT, where there is one.
const AT_NAT: &str = "nat.pcap";

/// What is said through tunnels alone.
const INNER: &str = "(net 10.1.0.0/16 or net 10.2.0.0/15 or net 10.9.0.0/24 or net fd10::/16)";

/// The exchange that shows who an end is (RFC 7296 §3.1).
pub const IKE_AUTH: u8 = 35;
/// The one that begins an IKE_SA.
pub const IKE_SA_INIT: u8 = 34;
/// The one that makes SAs.
pub const CREATE_CHILD_SA: u8 = 36;
/// The one for all else.
pub const INFORMATIONAL: u8 = 37;

/// How long tcpdump may take to read a capture.
const READ: Duration = Duration::from_secs(20);

/// A message that came to the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told {
    /// Who says it.
    pub from: IpAddr,
    /// Who is told.
    pub to: IpAddr,
    /// The exchange type (RFC 7296 §3.1).
    pub exchange: u8,
    /// The SPI of who has initiated the IKE_SA.
    pub spi_i: [u8; 8],
    /// Whether it answers.
    pub is_response: bool,
    /// Its Message ID.
    pub message_id: u32,
}

/// The requests that have come to the router so far, as [`told_so_far`].
///
/// # Errors
/// The file system's own.
pub fn asked_so_far(out: &Path) -> Result<Vec<Told>> {
    let mut asked = told_so_far(out)?;
    asked.retain(|one| !one.is_response);
    Ok(asked)
}

/// The IKE messages that have come to the router so far, each as often as it did; the capture with its file in
/// `out` may be running.
///
/// # Errors
/// The file system's own.
pub fn told_so_far(out: &Path) -> Result<Vec<Told>> {
    let file = out.join(FILE);
    let octets = std::fs::read(&file).context(file.display())?;
    let told = |packet: pcap::Packet| match packet.kind {
        Kind::Ike { is_response, exchange, spi_i, message_id, .. } => {
            let (from, to) = (packet.from, packet.to);
            Some(Told { from, to, exchange, spi_i, is_response, message_id })
        }
        _ => None,
    };
    Ok(pcap::packets(&octets).filter_map(told).collect())
}

/// A running capture of what passes the router.
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
    at_nat: Option<(Daemon, PathBuf)>,
}

/// A capture that has ended.
pub struct Captured {
    file: PathBuf,
    at_nat: Option<PathBuf>,
}

impl Capture {
    /// Starts `tcpdump`, a command that runs on the router, with its file in `out`, of what the filter lets pass.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(tcpdump: Command, out: &Path, filter: &str) -> Result<Self> {
        let file = out.join(FILE);
        let daemon = listen(tcpdump, &file, &out.join("tcpdump.log"), filter)?;
        Ok(Self { daemon, file, at_nat: None })
    }

    /// Listens on the NAT too, with a command that runs there, for inner packets in the clear alone: those that it
    /// gives its own address the router does not know as such.
    ///
    /// # Errors
    /// It does not start.
    pub fn and_at_nat(mut self, tcpdump: Command, out: &Path) -> Result<Self> {
        let file = out.join(AT_NAT);
        let daemon = listen(tcpdump, &file, &out.join("nat-tcpdump.log"), INNER)?;
        self.at_nat = Some((daemon, file));
        Ok(self)
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// It failed or is empty.
    pub fn finish(mut self) -> Result<Captured> {
        self.daemon.stop(Duration::from_secs(5))?;
        let mut captured = Captured { file: self.file, at_nat: None };
        if let Some((mut daemon, file)) = self.at_nat {
            daemon.stop(Duration::from_secs(5))?;
            captured.at_nat = Some(file);
        }
        if captured.read("udp")?.trim().is_empty() {
            return Err(fail!("the capture {} is empty", captured.file.display()));
        }
        Ok(captured)
    }
}

/// Starts a capture, and waits until it has begun.
fn listen(mut tcpdump: Command, file: &Path, log: &Path, filter: &str) -> Result<Daemon> {
    // A capture may be short: nothing waits in a buffer. The buffer has room for as many packets as it has
    // for as long as they may be: 2048 octets, and none is dropped.
    tcpdump
        .args(["--immediate-mode", "-i", "any", "-n", "-U", "-s", "2048", "-B", "16384"])
        .args(["-Z", "root", "-w"])
        .arg(file)
        .args(Some(filter).filter(|filter| !filter.is_empty()));
    let mut daemon = Daemon::start(&mut tcpdump, log)?;
    process::eventually(Duration::from_secs(10), || {
        daemon.still_runs()?;
        let said = std::fs::read_to_string(log).context(log.display())?;
        if said.contains("listening on") { Ok(()) } else { Err(fail!("tcpdump is silent")) }
    })?;
    Ok(daemon)
}

impl Captured {
    /// Looks for inner packets in the clear. Those of the network `excused` are counted, and given.
    ///
    /// # Errors
    /// There is one of another source.
    pub fn none_in_the_clear(&self, excused: Option<&str>) -> Result<usize> {
        if let Some(file) = &self.at_nat {
            // It was written by the filter that is asked for here.
            let clear = process::output(reader(file).args(["-c", "1"]), READ)?;
            if !clear.trim().is_empty() {
                let clear = process::one_line(&clear);
                return Err(fail!("an inner packet passed the NAT in the clear: {clear}"));
            }
        }
        let (theirs, ours) = match excused {
            Some(network) => {
                let source = format!("src net {network}");
                let theirs =
                    process::output(self.reader().arg(format!("{INNER} and {source}")), READ)?;
                (theirs.lines().count(), format!("{INNER} and not {source}"))
            }
            None => (0, INNER.to_owned()),
        };
        let clear = self.read(&ours)?;
        if clear.trim().is_empty() {
            return Ok(theirs);
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

    /// Fails if a packet matches the filter.
    ///
    /// # Errors
    /// One does: `what` was seen.
    pub fn lacks(&self, what: &str, filter: &str) -> Result<()> {
        match self.read(filter)?.trim() {
            "" => Ok(()),
            seen => Err(fail!("{what}: {}", process::one_line(seen))),
        }
    }

    /// The most requests of one end in one IKE_SA that were under way at the same time, of those that
    /// followed IKE_SA_INIT over IPv4 on port 4500.
    ///
    /// # Errors
    /// What `tcpdump` said.
    pub fn requests_at_once(&self) -> Result<usize> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-x", "-r"]).arg(&self.file);
        command.arg("udp port 4500 and udp[8:4] = 0");
        Ok(most_at_once(&process::output(&mut command, Duration::from_secs(20))?))
    }

    /// Fails if a request behind IKE_AUTH has not been answered.
    ///
    /// # Errors
    /// One has not.
    pub fn all_answered(&self) -> Result<()> {
        let octets = std::fs::read(&self.file).context(self.file.display())?;
        let mut asked = BTreeMap::new();
        for packet in pcap::packets(&octets) {
            let Kind::Ike { is_response, exchange, spi_i, by_initiator, message_id } = packet.kind
            else {
                continue;
            };
            if [CREATE_CHILD_SA, INFORMATIONAL].contains(&exchange) {
                let question = (spi_i, by_initiator != is_response, message_id);
                *asked.entry(question).or_insert(false) |= is_response;
            }
        }
        match asked.iter().find(|(_, answered)| !**answered) {
            Some(((_, by_initiator, message_id), _)) => {
                let who = if *by_initiator { "initiator" } else { "responder" };
                Err(fail!("the {who}'s request {message_id} was never answered"))
            }
            None => Ok(()),
        }
    }

    /// Looks for ESP from the gateway to an address that nothing had come from before: if `answered`, not an
    /// answer, nor an IKE_AUTH, which answers for its sender too, for it knows what IKE_SA_INIT was answered.
    ///
    /// # Errors
    /// There is some.
    pub fn esp_only_where_heard(&self, answered: bool) -> Result<()> {
        let octets = std::fs::read(&self.file).context(self.file.display())?;
        if octets.get(20..22) != Some(&pcap::LINK_TYPE.to_ne_bytes()) {
            return Err(fail!("{} has another link type", self.file.display()));
        }
        let mut heard = BTreeSet::new();
        let mut seen = 0;
        for packet in pcap::packets(&octets) {
            match packet.kind {
                Kind::Ike { is_response, exchange, .. } if !GATEWAYS.contains(&packet.from) => {
                    if !answered || is_response || exchange == IKE_AUTH {
                        heard.insert(packet.from);
                    }
                }
                // strongSwan follows ESP, when it takes that for a NAT's new mapping.
                Kind::Esp if !answered && !GATEWAYS.contains(&packet.from) => {
                    heard.insert(packet.from);
                }
                // A TCP handshake shows that an address answers (RFC 9329 §7.1).
                Kind::Stream if !GATEWAYS.contains(&packet.from) => drop(heard.insert(packet.from)),
                Kind::Esp | Kind::Stream if GATEWAYS.contains(&packet.from) => {
                    seen += 1;
                    if !heard.contains(&packet.to) {
                        let to = packet.to;
                        return Err(fail!("ESP went to {to} before that had answered"));
                    }
                }
                Kind::Ike { .. } | Kind::Esp | Kind::Stream => {}
            }
        }
        if seen == 0 { Err(fail!("no ESP from the gateway was seen")) } else { Ok(()) }
    }

    /// The first packet that matches the filter, or nothing.
    fn read(&self, filter: &str) -> Result<String> {
        process::output(self.reader().args(["-c", "1"]).arg(filter), READ)
    }

    fn reader(&self) -> Command {
        reader(&self.file)
    }
}

fn reader(file: &Path) -> Command {
    let mut command = Command::new("tcpdump");
    command.args(["-n", "-r"]).arg(file);
    command
}

/// Reads IKE headers out of what `tcpdump -x` printed (RFC 7296 §3.1).
fn most_at_once(text: &str) -> usize {
    let mut packets: Vec<Vec<u8>> = Vec::new();
    for line in text.lines() {
        match line.trim().strip_prefix("0x").and_then(|rest| rest.split_once(':')) {
            None => packets.push(Vec::new()),
            Some((_, digits)) => {
                let digits: Vec<char> = digits.split_whitespace().flat_map(str::chars).collect();
                let octets = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
                let octets = octets.filter_map(|octet| u8::from_str_radix(&octet, 16).ok());
                packets.last_mut().into_iter().for_each(|packet| packet.extend(octets.clone()));
            }
        }
    }
    // By IKE_SA and who asks, what was asked; true once it is answered.
    let mut asked: BTreeMap<(Vec<u8>, bool), BTreeMap<u32, bool>> = BTreeMap::new();
    let mut most = 0;
    for packet in &packets {
        let Some(header) = ike_header(packet) else { continue };
        let [.., flags, a, b, c, d] = *header;
        let (is_response, by_initiator) = (flags & 0x20 != 0, flags & 0x08 != 0);
        let message_id = u32::from_be_bytes([a, b, c, d]);
        let spis = header.iter().take(16).copied().collect();
        let requests = asked.entry((spis, by_initiator != is_response)).or_default();
        // The router shows each packet twice, and it may be one that is sent again.
        *requests.entry(message_id).or_default() |= is_response;
        most = most.max(requests.values().filter(|answered| !**answered).count());
    }
    most
}

/// The IKE header up to the Message ID: behind IP, UDP and four zero octets (RFC 7296 §2.23).
fn ike_header(packet: &[u8]) -> Option<&[u8; 24]> {
    let ip = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(ip + 12..)?.first_chunk()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IP, UDP, four zero octets and a header, as `tcpdump -x` prints them.
    fn printed(flags: u8, message_id: u32) -> String {
        let mut packet = vec![0x45; 20];
        packet.extend([0; 12]);
        packet.extend([7; 16]);
        packet.extend([46, 0x20, 36, flags]);
        packet.extend(message_id.to_be_bytes());
        let words = packet.chunks(2).map(|two| two.iter().map(|o| format!("{o:02x}")).collect());
        let words: Vec<String> = words.collect();
        let lines = words.chunks(8).enumerate();
        let lines = lines.map(|(at, line)| format!("\t0x{:04x}:  {}\n", at * 16, line.join(" ")));
        format!(
            "12:00:00.000000 c1 In IP 1.2.3.4.4500 > 5.6.7.8.4500\n{}",
            lines.collect::<String>()
        )
    }

    const ASKS: u8 = 0x08;
    const ANSWERS: u8 = 0x20;

    #[test]
    fn requests_one_after_the_other_are_one_at_once() {
        let flow = [(ASKS, 1), (ASKS, 1), (ANSWERS, 1), (ASKS, 1), (ASKS, 2), (ANSWERS, 2)];
        let text: String = flow.map(|(flags, id)| printed(flags, id)).concat();
        assert_eq!(most_at_once(&text), 1);
    }

    #[test]
    fn requests_side_by_side_are_counted_for_each_end() {
        let text = [(ASKS, 1), (0, 0), (ASKS, 2), (ANSWERS, 1), (ASKS, 3)];
        let text: String = text.map(|(flags, id)| printed(flags, id)).concat();
        assert_eq!(most_at_once(&text), 2);
    }
}
