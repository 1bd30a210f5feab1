//! One tunnel: what both ends are told, what is done to it, and how it is judged.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Life;
use super::act::Act;
use super::meeting;
use super::seen::{self, Seen};
use super::stranger;
use super::trap;
use super::travel::Travel;
use crate::ends::Ends;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::peer::{self, Peer, Place, Plane, Program, SaView};
use crate::process;
use crate::report::CaseVerdict;
use crate::topology::{FIRST_UPLINK, Node, Topology};

/// How long the first answer through a new tunnel may take.
const FIRST: Duration = Duration::from_secs(3);

/// How long a client may take to see that it is refused.
const REFUSED: Duration = Duration::from_secs(3);

/// One tunnel to try.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is, and its folder's name.
    pub name: String,
    /// What both ends are told.
    pub tunnel: Tunnel,
    /// What is done once it stands.
    pub act: Act,
    /// The IKE and ESP algorithms that both ends must show.
    pub agreed: Option<(&'static str, &'static str)>,
    /// What must follow the ESP algorithms, at first and after new keys for the CHILD_SAs, where the
    /// daemon says it: the key exchange and `esn`.
    pub beyond: Option<[&'static str; 2]>,
    /// Whether the ends come together.
    pub outcome: Outcome,
    /// How many numbered packets may be lost one after the other.
    pub lost_in_a_row: usize,
    /// What must have passed the router.
    pub seen: Vec<Seen>,
    /// What must not have.
    pub unseen: Vec<Seen>,
    /// What a program's log must hold, in this order.
    pub said: Vec<(Program, &'static [&'static str])>,
    /// The virtual address that the client must have.
    pub given: Option<IpAddr>,
    /// How many requests of an end may have been under way at once.
    pub at_once: Option<usize>,
}

/// What comes of a client's wish for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It stands.
    Up,
    /// There is no IKE_SA.
    NoIkeSa,
    /// There is an IKE_SA without a CHILD_SA (RFC 7296 §2.21.2).
    NoChildSa,
}

/// Where cases run, one after the other.
pub struct Stage<'a> {
    /// Who takes part.
    pub life: Life,
    /// The network.
    pub topology: &'a Topology,
    /// Where sockets are.
    pub scratch: &'a Path,
}

/// A case under way.
pub struct Running<'a> {
    /// Both daemons.
    pub ends: Ends<'a>,
    /// What they were told, and what is asked of them.
    pub case: &'a Case,
    /// Numbered packets sent so far, both directions together.
    pub sent: u64,
    /// How many of them never arrived.
    pub lost: u64,
    /// The longest time without a packet, if the tunnel moved.
    pub gap: Option<Duration>,
    /// What else was found out.
    pub figures: Vec<String>,
    /// Where it runs.
    pub stage: &'a Stage<'a>,
    /// Where its evidence goes.
    pub out: PathBuf,
}

impl Case {
    /// A tunnel that is only brought up, used, and taken down.
    pub fn new(name: impl Into<String>, tunnel: Tunnel) -> Self {
        Self {
            name: name.into(),
            tunnel,
            act: Act::Nothing,
            agreed: None,
            beyond: None,
            outcome: Outcome::Up,
            lost_in_a_row: 0,
            seen: Vec::new(),
            unseen: Vec::new(),
            said: Vec::new(),
            given: None,
            at_once: None,
        }
    }

    /// Runs it; its evidence goes to `out`.
    ///
    /// # Errors
    /// What was not passed, and why.
    pub fn run(
        &self,
        stage: &Stage<'_>,
        out: &Path,
        versions: &mut Vec<String>,
        verdict: &mut CaseVerdict,
    ) -> Result<()> {
        fs::create_dir_all(out).context(out.display())?;
        let capture = match self.act {
            Act::Travel(Travel::Transfer) => stage.topology.capture_some(out)?,
            _ => stage.topology.capture(out)?,
        };
        if matches!(self.act, Act::Meet { .. }) {
            // Lifted once both have started.
            stage.topology.silence(&stage.topology.uplink_of(FIRST_UPLINK.into())?)?;
        }
        let gateway = stage.start(Node::Gateway, &self.tunnel, out).context("start the gateway")?;
        let client = stage.start(Node::Client, &self.tunnel, out).context("start the client")?;
        let ends = Ends { client, gateway, topology: stage.topology, site: self.tunnel.site };
        if versions.is_empty() {
            *versions = ends.versions()?;
        }
        let out = out.to_owned();
        let figures = Vec::new();
        let mut running =
            Running { ends, case: self, sent: 0, lost: 0, gap: None, figures, stage, out };
        let lived = self.interfaces(stage.topology, true).and_then(|()| self.live(&mut running));
        (verdict.sent, verdict.lost) = (running.sent, running.lost);
        verdict.figures = std::mem::take(&mut running.figures);
        verdict.gap_ms = running.gap.map(|gap| gap.as_secs_f64() * 1000.0);
        let out = &running.out;
        if lived.is_err() {
            running.ends.write_states(out);
            // The next case finds none.
            let _ = self.interfaces(stage.topology, false);
        }
        lived?;
        if !self.act.ends_the_client() {
            running.ends.client.stop().context("end of the client")?;
        }
        running.ends.gateway.stop().context("end of the gateway")?;
        let captured = capture.finish()?;
        let excused = match self.act {
            Act::Meet { late: true } => meeting::strongswans_network(stage.life),
            _ => None,
        };
        match captured.none_in_the_clear(excused)? {
            0 => {}
            count => verdict.figures.push(format!("{count} packets of strongSwan's in the clear")),
        }
        self.interfaces(stage.topology, false)?;
        if self.act == Act::Trap {
            trap::would_be_seen(stage, self, out).context("after the end of both")?;
        }
        if let Act::Travel(Travel::Outstanding(_)) = self.act {
            captured.all_answered()?;
        }
        if let Act::Travel(_) = self.act {
            // strongSwan does not ask whether an address answers before traffic goes there.
            captured.esp_only_where_heard(stage.life.gateway == Program::Bewick)?;
        }
        self.seen.iter().try_for_each(|seen| captured.shows(seen.what, &seen.filter))?;
        self.unseen.iter().try_for_each(|seen| captured.lacks(seen.what, &seen.filter))?;
        for (program, words) in &self.said {
            let node = if stage.life.client == *program { Node::Client } else { Node::Gateway };
            let log = out.join(format!("{}-{}.log", node.name(), program.name()));
            let text = fs::read_to_string(&log).context(log.display())?;
            let text = seen::renumbered(&text);
            let mut rest = text.as_str();
            for words in *words {
                rest = match rest.split_once(words) {
                    Some((_, rest)) => rest,
                    None => return Err(fail!("{} lacks {words:?} in its place", log.display())),
                };
            }
        }
        match (self.at_once, captured.requests_at_once()?) {
            (Some(most), seen) if seen > most => {
                Err(fail!("{seen} requests of one end were under way at once, not {most}"))
            }
            (Some(_), 0) => Err(fail!("no request was seen")),
            _ => Ok(()),
        }
    }

    /// Makes the XFRM interfaces of ends that have some, as their operators would; or takes them away.
    fn interfaces(&self, topology: &Topology, there: bool) -> Result<()> {
        for node in [Node::Client, Node::Gateway] {
            let Some(if_id) = self.tunnel.side(node).if_id else { continue };
            if there {
                topology.ip(node, &format!("link add ipsec0 type xfrm dev lo if_id {if_id}"))?;
                topology.ip(node, "link set ipsec0 up")?;
            } else {
                topology.ip(node, "link delete ipsec0")?;
            }
        }
        Ok(())
    }

    /// Fails unless packets have passed the XFRM interfaces both ways, by states of their number.
    fn interfaces_are_used(&self, topology: &Topology) -> Result<()> {
        for node in [Node::Client, Node::Gateway] {
            let Some(if_id) = self.tunnel.side(node).if_id else { continue };
            let shown = |arguments: &[&str]| {
                process::output(
                    topology.command(node, "ip").args(arguments),
                    Duration::from_secs(10),
                )
            };
            let states = shown(&["xfrm", "state", "list", "nokeys"])?;
            if !states.contains(&format!("if_id {if_id:#x}")) {
                return Err(fail!("no state of the {} has if_id {if_id}", node.name()));
            }
            for direction in ["rx", "tx"] {
                let name = format!("/sys/class/net/ipsec0/statistics/{direction}_packets");
                let count = process::output(
                    topology.command(node, "cat").arg(&name),
                    Duration::from_secs(10),
                )?;
                if count.trim().parse::<u64>().ok().is_none_or(|count| count == 0) {
                    return Err(fail!("{}: {name}: {}", node.name(), count.trim()));
                }
            }
        }
        Ok(())
    }

    fn live(&self, running: &mut Running<'_>) -> Result<()> {
        if self.tunnel.gateway.cookies {
            stranger::ask(running.stage.topology)?;
        }
        if self.outcome != Outcome::Up {
            let start = Instant::now();
            if running.ends.client.up().is_ok() {
                return Err(fail!("the tunnel came up, and it must not"));
            }
            if start.elapsed() > REFUSED {
                let seconds = start.elapsed().as_secs_f64();
                return Err(fail!("the client learned of the refusal only after {seconds:.1} s"));
            }
            if self.outcome == Outcome::NoChildSa {
                running.ends.agree(0).context("after the refusal")?;
                running.ends.client.down().context("IKE_SA down")?;
            }
            return running.ends.both_have_none().context("after the refusal");
        }
        match self.act {
            Act::Trap => return trap::live(running),
            Act::Meet { late } => return meeting::live(running, late),
            Act::Unknown(unknown) => {
                let is_client = running.stage.life.client == Program::Bewick;
                let bewick = if is_client { Node::Client } else { Node::Gateway };
                return unknown.live(running, bewick);
            }
            _ => {}
        }
        self.act.before(running).context("before the tunnel")?;
        running.ends.client.up().context("tunnel up")?;
        let [client, gateway] = running.works().context("the new tunnel")?;
        if client.local.is_ipv6() != self.tunnel.over_ipv6 {
            return Err(fail!("the outer packets go from {}", client.local));
        }
        if let Some((ike, esp)) = self.agreed {
            for (end, sa) in [("client", &client), ("gateway", &gateway)] {
                shows(sa, ike, esp).context(end)?;
            }
        }
        for (end, sa) in [("client", &client), ("gateway", &gateway)] {
            if self.given.is_some_and(|address| sa.virtual_ips != [address]) {
                return Err(fail!("the {end} shows the virtual addresses {:?}", sa.virtual_ips));
            }
        }
        self.dns_is_known(running, &client)?;
        let sas = [client, gateway];
        self.shown_by(running, &sas, false)?;
        self.modes_are(running, &sas)?;
        self.act.perform(running)?;
        if self.wants_transport() && !self.act.ends_the_tunnel() {
            let now = running.ends.agree(self.tunnel.children.len())?;
            self.modes_are(running, &now)?;
        }
        self.interfaces_are_used(running.stage.topology)?;
        if self.act.ends_the_tunnel() {
            return Ok(());
        }
        running.ends.client.down().context("tunnel down")?;
        running.ends.both_have_none().context("after the client's DELETE")?;
        self.dns_is_forgotten(running)
    }

    /// Looks whether the client asks all DNS servers: they are in the file that names them. bewick also
    /// says so.
    fn dns_is_known(&self, running: &Running<'_>, client: &SaView) -> Result<()> {
        let path = running.out.join("client-resolv.conf");
        let bewick = running.stage.life.client == Program::Bewick;
        process::eventually(FIRST, || {
            let written = fs::read_to_string(&path).unwrap_or_default();
            let named = |server: &str| {
                let mut lines = written.lines().filter_map(|line| line.strip_prefix("nameserver "));
                lines.any(|rest| rest.split_whitespace().next() == Some(server))
            };
            for server in self.tunnel.dns {
                let said = client.dns.iter().any(|known| known.to_string() == *server);
                if !named(server) || bewick && !said {
                    return Err(fail!("the client does not ask the DNS server {server}"));
                }
            }
            Ok(())
        })
    }

    /// Looks whether the client asks no DNS server of the tunnel's any more: bewick puts back what there
    /// was, which is no file.
    fn dns_is_forgotten(&self, running: &Running<'_>) -> Result<()> {
        let path = running.out.join("client-resolv.conf");
        if running.stage.life.client != Program::Bewick {
            return Ok(());
        }
        process::eventually(FIRST, || match path.exists() {
            true => Err(fail!("{} is still there", path.display())),
            false => Ok(()),
        })
    }

    fn wants_transport(&self) -> bool {
        self.tunnel.client.transport || self.tunnel.gateway.transport
    }

    /// Looks whether both kernels have their states in the mode that both ends want, or else in tunnel mode.
    fn modes_are(&self, running: &Running<'_>, sas: &[SaView; 2]) -> Result<()> {
        if !self.wants_transport() {
            return Ok(());
        }
        let both = self.tunnel.client.transport && self.tunnel.gateway.transport;
        let mode = if both { "transport" } else { "tunnel" };
        for (node, sa) in [Node::Client, Node::Gateway].into_iter().zip(sas) {
            for state in states_of(running.stage.topology, node, sa)? {
                if !state.contains(&format!("mode {mode}")) {
                    let state = process::one_line(&state);
                    return Err(fail!(
                        "the {}'s state is not in {mode} mode: {state}",
                        node.name()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Looks at what must follow the ESP algorithms; `renewed` once the CHILD_SAs have new keys.
    ///
    /// # Errors
    /// A daemon or a kernel shows something else.
    pub fn shown_by(&self, running: &Running<'_>, sas: &[SaView; 2], renewed: bool) -> Result<()> {
        let Some([at_first, then]) = self.beyond else { return Ok(()) };
        let expected = if renewed { then } else { at_first };
        for (node, sa) in [Node::Client, Node::Gateway].into_iter().zip(sas) {
            for child in &sa.children {
                if let Some(shown) = child.beyond.as_ref().filter(|shown| *shown != expected) {
                    let end = node.name();
                    return Err(fail!("the {end}'s CHILD_SA has {shown:?}, not {expected:?}"));
                }
            }
            if running.stage.life.plane.is_in_kernel() {
                let esn = expected.ends_with("esn");
                kernel_has(running.stage.topology, node, sa, esn)?;
            }
        }
        Ok(())
    }
}

/// What the kernel of this host says of the states of an IKE_SA, one a line.
fn states_of(topology: &Topology, node: Node, sa: &SaView) -> Result<Vec<String>> {
    let mut command = topology.command(node, "ip");
    command.args(["-o", "xfrm", "state", "list", "nokeys"]);
    let states = process::output(&mut command, Duration::from_secs(10))?;
    let spis = sa.children.iter().flat_map(|child| [child.spi_in, child.spi_out]);
    spis.map(|spi| {
        let spi = format!("spi {spi:#010x} ");
        let state = states.lines().find(|line| line.contains(&spi));
        let missing = || fail!("the {}'s kernel has no state with {spi}", node.name());
        state.map(str::to_owned).ok_or_else(missing)
    })
    .collect()
}

/// Asks the kernel of this host whether it counts in 64 bits.
fn kernel_has(topology: &Topology, node: Node, sa: &SaView, esn: bool) -> Result<()> {
    for state in states_of(topology, node, sa)? {
        // `-o` puts a backslash where a line would end; the state's keys are not for the verdict.
        let mut parts = state.split('\\');
        let flags = parts.find_map(|part| part.split_once(" flag ")).map_or("", |(_, flags)| flags);
        if flags.split_whitespace().any(|flag| flag == "esn") != esn {
            let end = node.name();
            return Err(fail!("the {end}'s kernel has a state with the flags {flags:?}"));
        }
    }
    Ok(())
}

fn shows(sa: &SaView, ike: &str, esp: &str) -> Result<()> {
    if let Some(shown) = sa.suite.as_ref().filter(|shown| *shown != ike) {
        return Err(fail!("the IKE_SA has {shown}, not {ike}"));
    }
    match sa.children.iter().find(|child| child.suite != esp) {
        Some(child) => Err(fail!("the CHILD_SA has {}, not {esp}", child.suite)),
        None => Ok(()),
    }
}

impl Stage<'_> {
    /// What stands on this host.
    pub fn program(&self, node: Node) -> Program {
        if node.is_client() { self.life.client } else { self.life.gateway }
    }

    /// Starts the daemon of this host, with its half of a tunnel.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self, node: Node, tunnel: &Tunnel, out: &Path) -> Result<Box<dyn Peer>> {
        let (topology, plane, scratch) = (self.topology, self.life.plane, self.scratch);
        let place = Place { topology, node, plane, out, scratch, tunnel };
        peer::start(self.program(node), &place)
    }
}

impl Running<'_> {
    /// Waits until both ends agree on the tunnel, then pings both ways through each part of it.
    ///
    /// # Errors
    /// They do not agree, or a packet was lost.
    pub fn works(&mut self) -> Result<[SaView; 2]> {
        let agreed = self.ends.agree(self.case.tunnel.children.len())?;
        // Where each instruction is translated, all takes as many times as long.
        let slow = self.stage.life.plane == Plane::CloudKernel;
        let first = if slow { 5 * FIRST } else { FIRST };
        for network in self.case.tunnel.networks() {
            self.ends.ping_both_ways(network.host, first)?;
        }
        Ok(agreed)
    }

    /// Starts a daemon again, whose evidence so far is kept.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self, node: Node) -> Result<()> {
        let out = self.out.join("started-again");
        fs::create_dir_all(&out).context(out.display())?;
        let daemon = self.stage.start(node, &self.case.tunnel, &out).context("started again")?;
        match node {
            Node::Client => self.ends.client = daemon,
            _ => self.ends.gateway = daemon,
        }
        Ok(())
    }
}
