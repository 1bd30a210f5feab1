//! A road warrior that loses one uplink, then the other: the steps that such a scenario must pass.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cleanup;
use crate::ends::{Before, Ends, only};
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::Flow;
use crate::peer::tunnel::Tunnel;
use crate::peer::{self, Place, Plane, Program, SaView};
use crate::process;
use crate::report::{Move, Verdict};
use crate::topology::{INSIDE, Loss, Node, Topology};

/// How long traffic may stay away after an uplink is lost.
const BACK: Duration = Duration::from_secs(10);
/// How long the daemons get to take note of an uplink that came back.
const SETTLED: Duration = Duration::from_secs(1);
/// How long nobody asks the daemons anything after a loss.
const UNASKED: Duration = Duration::from_millis(500);
/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(2);

/// A road warrior with PSK and virtual address that loses one uplink, then the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roam {
    /// Who initiates.
    pub client: Program,
    /// Who responds.
    pub gateway: Program,
    /// Who handles ESP.
    pub plane: Plane,
}

/// All of them, in the order in which they run.
pub fn all() -> impl Iterator<Item = Roam> {
    use Program::{Bewick, Strongswan};
    let pairs =
        [(Strongswan, Strongswan), (Bewick, Bewick), (Bewick, Strongswan), (Strongswan, Bewick)];
    [Plane::Userspace, Plane::Kernel]
        .into_iter()
        .flat_map(move |plane| pairs.map(|(client, gateway)| Roam { client, gateway, plane }))
}

impl Roam {
    /// What it shows, in one line.
    pub fn purpose(&self) -> String {
        let purpose = match (self.client, self.gateway) {
            (Program::Strongswan, Program::Strongswan) => "the laboratory itself works",
            (Program::Bewick, Program::Bewick) => "we understand ourselves",
            (Program::Bewick, Program::Strongswan) => "we roam on their gateway",
            _ => "they roam on our gateway",
        };
        format!("{purpose}: PSK, virtual address")
    }

    /// Runs it here, whichever kernel this is, and fills in the verdict.
    ///
    /// # Errors
    /// The step that was not passed, and why.
    pub fn steps(&self, out: &Path, verdict: &mut Verdict) -> Result<()> {
        let (scratch, _guard) = cleanup::scratch_folder("roam").context("scratch folder")?;
        let topology =
            verdict.step("build the network", || Topology::build(self.plane.name(), true))?;
        let before = Before::note(&topology, self.client, self.gateway)?;
        let capture = verdict.step("capture on the router", || topology.capture(out))?;
        let tunnel = Tunnel::default();
        let place = |node| Place {
            topology: &topology,
            node,
            plane: self.plane,
            out,
            scratch: &scratch,
            tunnel: &tunnel,
        };
        let mut ends = verdict.step("start both daemons", || {
            let gateway = peer::start(self.gateway, &place(Node::Gateway))?;
            let client = peer::start(self.client, &place(Node::Client))?;
            Ok(Ends { client, gateway, topology: &topology, site: &[] })
        })?;
        verdict.versions = ends.versions()?;

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
        verdict.step("no inner packet in the clear outside", || {
            capture.finish()?.none_in_the_clear(None).map(drop)
        })?;
        verdict.step("nothing is left behind", || before.nothing_left(&topology))
    }
}

impl Ends<'_> {
    fn live(&mut self, verdict: &mut Verdict) -> Result<()> {
        let inside = INSIDE.into();
        verdict.step("tunnel up", || self.client.up())?;
        verdict.step("ping both ways", || self.ping_both_ways(inside, Duration::from_secs(3)))?;
        for loss in [Loss::LinkDown, Loss::AddressDeleted] {
            let one = verdict.step(loss.name(), || self.lose_current(loss, SPACING))?;
            let gap = one.gap_ms;
            verdict.moves.push(one);
            if gap.is_none() {
                return Err(fail!("{}: numbered packets did not come back", loss.name()));
            }
            verdict.step("ping both ways after the move", || self.ping_both_ways(inside, BACK))?;
        }
        verdict.step("tunnel down", || {
            self.client.down()?;
            self.both_have_none()
        })
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
        let flows = self.flows(INSIDE.into(), 7000, spacing)?;
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
    ///
    /// # Errors
    /// They do not in time; the reason says what they show instead.
    pub fn both_show(&mut self, local: IpAddr, seen_as: IpAddr) -> Result<SaView> {
        process::eventually(BACK, || {
            let client = only(self.client.sas()?).context("client")?;
            if client.local.ip() != local || client.children.is_empty() {
                return Err(fail!("the client shows {client}, not {local} with a CHILD_SA"));
            }
            let gateway = only(self.gateway.sas()?).context("gateway")?;
            if gateway.remote.ip() != seen_as || gateway.children.is_empty() {
                return Err(fail!("the gateway shows {gateway}, not {seen_as} with a CHILD_SA"));
            }
            Ok(client)
        })
    }
}
