//! The scenarios, and the steps that each must pass.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cleanup;
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::Flow;
use crate::peer::{self, Peer, Place, Plane, Program, SaView};
use crate::report::{Move, Verdict};
use crate::topology::{INSIDE, Loss, Node, Topology, Traces};

/// How long traffic may stay away after an uplink is lost.
const BACK: Duration = Duration::from_secs(10);
/// How long the ends may take to agree on where the tunnel is, once traffic flows.
const AGREED: Duration = Duration::from_secs(5);
/// How long the daemons get to take note of an uplink that came back.
const SETTLED: Duration = Duration::from_secs(1);
/// How long nobody asks the daemons anything after a loss.
const UNASKED: Duration = Duration::from_millis(500);
/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(2);

/// A road warrior with PSK and virtual address that loses one uplink, then the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Who initiates.
    pub client: Program,
    /// Who responds.
    pub gateway: Program,
    /// Who handles ESP; the kernel's is the guest's.
    pub plane: Plane,
}

/// All scenarios, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    use Program::{Bewick, Strongswan};
    let pairs =
        [(Strongswan, Strongswan), (Bewick, Bewick), (Bewick, Strongswan), (Strongswan, Bewick)];
    [Plane::Userspace, Plane::Kernel]
        .into_iter()
        .flat_map(|plane| pairs.map(|(client, gateway)| Scenario { client, gateway, plane }))
        .collect()
}

impl Scenario {
    /// `psk-bewick-to-strongswan-userspace`: authentication, who initiates to whom, data plane.
    pub fn name(&self) -> String {
        let (client, gateway) = (self.client.name(), self.gateway.name());
        format!("psk-{client}-to-{gateway}-{}", self.plane.name())
    }

    /// What it shows, in one line.
    pub fn purpose(&self) -> String {
        let purpose = match (self.client, self.gateway) {
            (Program::Strongswan, Program::Strongswan) => "the laboratory itself works",
            (Program::Bewick, Program::Bewick) => "we understand ourselves",
            (Program::Bewick, Program::Strongswan) => "we roam on their gateway",
            (Program::Strongswan, Program::Bewick) => "they roam on our gateway",
        };
        let place = match self.plane {
            Plane::Userspace => "userspace ESP on this machine",
            Plane::Kernel => "kernel XFRM in the guest",
        };
        format!("{purpose}: PSK, virtual address, {place}")
    }

    /// Runs it here, whichever kernel this is, and fills in the verdict.
    pub fn judge(&self, out: &Path, verdict: &mut Verdict) {
        let result = self.steps(out, verdict);
        verdict.passed = result.is_ok();
        verdict.reason = result.err().map(|failure| failure.to_string());
    }

    fn steps(&self, out: &Path, verdict: &mut Verdict) -> Result<()> {
        let (scratch, _guard) = cleanup::scratch_folder(&self.name()).context("scratch folder")?;
        let topology =
            verdict.step("build the network", || Topology::build(self.plane.name(), true))?;
        let before = [topology.traces(Node::Client)?, topology.traces(Node::Gateway)?];
        let capture = verdict.step("capture on the router", || topology.capture(out))?;
        let place =
            |node| Place { topology: &topology, node, plane: self.plane, out, scratch: &scratch };
        let mut ends = verdict.step("start both daemons", || {
            let gateway = peer::start(self.gateway, &place(Node::Gateway))?;
            let client = peer::start(self.client, &place(Node::Client))?;
            Ok(Ends { client, gateway, topology: &topology })
        })?;
        verdict.versions = vec![ends.client.version()?, ends.gateway.version()?];
        verdict.versions.dedup();

        let lived = ends.live(verdict);
        // Both ends' last words are part of the evidence, whatever went wrong.
        if lived.is_err() {
            ends.write_states(out);
        }
        lived?;
        verdict.step("both daemons end on SIGTERM", || {
            ends.client.stop()?;
            ends.gateway.stop()
        })?;
        verdict.step("no inner packet in the clear outside", || capture.finish())?;
        verdict.step("nothing is left behind", || {
            let [client, gateway] = &before;
            for (program, node, before) in
                [(self.client, Node::Client, client), (self.gateway, Node::Gateway, gateway)]
            {
                if program == Program::Bewick {
                    nothing_left(&topology, node, before)?;
                }
            }
            Ok(())
        })
    }
}

fn nothing_left(topology: &Topology, node: Node, before: &Traces) -> Result<()> {
    let now = topology.traces(node)?;
    match now.added_since(before).as_slice() {
        [] => Ok(()),
        left => Err(fail!("left on the {}: {}", node.name(), left.join("; "))),
    }
}

/// Both ends of a tunnel.
pub struct Ends<'a> {
    /// Who initiates.
    pub client: Box<dyn Peer>,
    /// Who responds.
    pub gateway: Box<dyn Peer>,
    /// Where they are.
    pub topology: &'a Topology,
}

impl Ends<'_> {
    fn live(&mut self, verdict: &mut Verdict) -> Result<()> {
        verdict.step("tunnel up", || self.client.up())?;
        verdict.step("ping both ways", || self.ping_both_ways(Duration::from_secs(3)))?;
        for loss in [Loss::LinkDown, Loss::AddressDeleted] {
            let one = verdict.step(loss.name(), || self.lose_current(loss, SPACING))?;
            let gap = one.gap_ms;
            verdict.moves.push(one);
            if gap.is_none() {
                return Err(fail!("{}: numbered packets did not come back", loss.name()));
            }
            verdict.step("ping both ways after the move", || self.ping_both_ways(BACK))?;
        }
        verdict.step("tunnel down", || {
            self.client.down()?;
            crate::process::eventually(AGREED, || {
                match (self.client.sas()?.as_slice(), self.gateway.sas()?.as_slice()) {
                    ([], []) => Ok(()),
                    _ => Err(fail!("an IKE_SA outlives the end of the tunnel")),
                }
            })
        })
    }

    /// The client's virtual address.
    ///
    /// # Errors
    /// No tunnel, or one without.
    pub fn virtual_ip(&mut self) -> Result<IpAddr> {
        let sa = only(self.client.sas()?).context("client")?;
        sa.virtual_ips.first().copied().ok_or_else(|| fail!("the client has no virtual address"))
    }

    fn ping_both_ways(&mut self, limit: Duration) -> Result<()> {
        let virtual_ip = self.virtual_ip()?;
        self.topology.ping(Node::Client, virtual_ip, INSIDE.into(), limit)?;
        self.topology.ping(Node::Gateway, INSIDE.into(), virtual_ip, limit)
    }

    /// A flow of numbered packets in each direction: to the gateway, to the client.
    ///
    /// # Errors
    /// A socket could not be made.
    pub fn flows(&mut self, spacing: Duration) -> Result<[Flow; 2]> {
        let virtual_ip = self.virtual_ip()?;
        let socket =
            |node, address: IpAddr, port| self.topology.udp_socket(node, (address, port).into());
        let inside = IpAddr::from(INSIDE);
        let out = socket(Node::Client, virtual_ip, 0)?;
        out.connect((inside, 7000)).context("flow to the gateway")?;
        let back = socket(Node::Gateway, inside, 0)?;
        back.connect((virtual_ip, 7000)).context("flow to the client")?;
        // Some daemons take the virtual address away for a moment, so nothing waits on it.
        let any = IpAddr::from([0, 0, 0, 0]);
        Ok([
            Flow::start(out, socket(Node::Gateway, inside, 7000)?, spacing)?,
            Flow::start(back, socket(Node::Client, any, 7000)?, spacing)?,
        ])
    }

    /// Takes the client's current uplink away under traffic, waits until both ends show the other
    /// one, and gives the lost one back.
    ///
    /// # Errors
    /// The ends do not agree on the new address in time.
    pub fn lose_current(&mut self, loss: Loss, spacing: Duration) -> Result<Move> {
        let before = only(self.client.sas()?).context("client")?;
        let lost = self.topology.uplink_of(before.local.ip())?;
        let other = self.topology.other(&lost);
        let flows = self.flows(spacing)?;
        std::thread::sleep(Duration::from_millis(300));
        let moment = Instant::now();
        self.topology.lose(&lost, loss)?;
        // Asking takes processor time from those who are busy moving.
        std::thread::sleep(UNASKED);
        let agreed = self.both_show(other.address.into(), other.seen_as.into());
        std::thread::sleep(Duration::from_millis(300));
        let records = flows.map(Flow::finish);
        self.topology.restore(&lost)?;
        let after = agreed?;
        std::thread::sleep(SETTLED);
        let gaps = records.each_ref().map(|record| record.gap(moment));
        let [to_gateway, to_client] = gaps.map(|gap| gap.map(|gap| gap.as_secs_f64() * 1000.0));
        Ok(Move {
            kind: loss.name().to_owned(),
            from: before.local.to_string(),
            to: after.local.to_string(),
            gap_ms: to_gateway.zip(to_client).map(|(a, b)| a.max(b)),
            to_gateway_ms: to_gateway,
            to_client_ms: to_client,
            sent: records.iter().map(|record| record.sent()).sum(),
            lost: records.iter().map(|record| record.lost()).sum(),
        })
    }

    /// Waits until the client's state has `local` and the gateway's has `seen_as`.
    fn both_show(&mut self, local: IpAddr, seen_as: IpAddr) -> Result<SaView> {
        crate::process::eventually(BACK, || {
            let client = only(self.client.sas()?).context("client")?;
            if client.local.ip() != local || client.children == 0 {
                return Err(fail!("the client shows {client}, not {local} with a CHILD_SA"));
            }
            let gateway = only(self.gateway.sas()?).context("gateway")?;
            if gateway.remote.ip() != seen_as || gateway.children == 0 {
                return Err(fail!("the gateway shows {gateway}, not {seen_as} with a CHILD_SA"));
            }
            Ok(client)
        })
    }

    fn write_states(&mut self, out: &Path) {
        for (node, peer) in [(Node::Client, &mut self.client), (Node::Gateway, &mut self.gateway)] {
            let sas = match peer.sas() {
                Ok(sas) => format!("{sas:#?}\n"),
                Err(error) => format!("{error}\n"),
            };
            let traces = match self.topology.traces(node) {
                Ok(traces) => format!("{traces:#?}\n"),
                Err(error) => format!("{error}\n"),
            };
            let _ = fs::write(out.join(format!("{}-state.txt", node.name())), sas + &traces);
        }
    }
}

fn only(mut sas: Vec<SaView>) -> Result<SaView> {
    match (sas.pop(), sas.len()) {
        (Some(sa), 0) => Ok(sa),
        (Some(_), more) => Err(fail!("{} IKE_SAs where one was expected", more + 1)),
        (None, _) => Err(fail!("no IKE_SA is established")),
    }
}
