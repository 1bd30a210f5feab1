//! What is done to a tunnel that stands.

use std::time::Duration;

use super::case::Running;
use super::dying::Death;
use super::leak::Leak;
use super::outside::Outside;
use super::second::Second;
use super::travel::Travel;
use super::unknown::Unknown;
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::{self, Flow, Record};
use crate::peer::tunnel::Network;
use crate::peer::{Peer, SaView};
use crate::process;
use crate::topology::{GATEWAY, Loss, Node};

/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(5);
/// The same where much is to go through, and how large they are then, in octets. In the guest an end needs a
/// while from the sign that a limit is near to the new keys.
const SPACING_OF_MUCH: Duration = Duration::from_millis(2);
const SPACING_OF_MUCH_IN_GUEST: Duration = Duration::from_millis(10);
const LARGE: usize = 1200;
/// How long new keys may take that come by themselves.
const AWAITED: Duration = Duration::from_secs(20);
/// How long packets flow before the keys change and after.
const AROUND: Duration = Duration::from_millis(300);

/// What is done to a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// The client gives the CHILD_SAs new keys under traffic, then the gateway does.
    RekeyChildren,
    /// The same with the IKE_SA.
    RekeyIke,
    /// The CHILD_SAs get new keys under traffic without a word from outside.
    AwaitChildren,
    /// The same because of how much went through them.
    AwaitOctets,
    /// The same with the IKE_SA.
    AwaitIke,
    /// The client proves anew who it is, twice, under traffic.
    Reauthenticate,
    /// The client loses its uplink, and what no move takes along is made anew on the other one.
    LeaveBehind,
    /// The gateway deletes it.
    GatewayDeletes,
    /// The client dies without a word and comes back.
    ClientDies,
    /// The client has something to say to a host that is not in the gateway's network.
    Outside(Outside),
    /// An end dies, and the other has to make something of it.
    Dies(Death),
    /// The gateway's operator restarts it, and the client connects again.
    GatewayRestarts,
    /// Another client wants a tunnel too.
    Second(Second),
    /// The tunnel has to move.
    Travel(Travel),
    /// Programs try to get out beside it.
    Leak(Leak),
    /// Packets bring it up.
    Trap,
    /// A peer by hand says what bewick does not know.
    Unknown(Unknown),
    /// Either end starts, and neither hears the other before both have.
    Meet {
        /// Whether bewick's IKE_AUTH comes only after strongSwan's.
        late: bool,
    },
}

impl Act {
    /// Whether there is no tunnel afterwards.
    pub fn ends_the_tunnel(self) -> bool {
        matches!(self, Act::GatewayDeletes | Act::Second(Second::Replaces) | Act::Leak(_))
    }

    /// Whether the client has ended afterwards.
    pub fn ends_the_client(self) -> bool {
        matches!(self, Act::Leak(_))
    }

    /// What comes before the tunnel.
    ///
    /// # Errors
    /// What went wrong.
    pub fn before(self, running: &Running<'_>) -> Result<()> {
        match self {
            Act::Leak(leak) => leak.before(running),
            _ => Ok(()),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// What went wrong, with what was done in front.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        match self {
            Act::Nothing | Act::Trap | Act::Meet { .. } | Act::Unknown(_) => Ok(()),
            Act::RekeyChildren => under_traffic(running, BOTH, |running, node| {
                let now = replaced(running, node, |peer| peer.rekey_children(), new_children)?;
                running.case.shown_by(running, &now, true)
            }),
            Act::RekeyIke => under_traffic(running, BOTH, |running, node| {
                replaced(running, node, |peer| peer.rekey_ike(), new_ike).map(drop)
            }),
            Act::AwaitChildren | Act::AwaitOctets => {
                under_traffic(running, BOTH, |running, node| {
                    replaced(running, node, |_| Ok(()), new_children).map(drop)
                })
            }
            Act::AwaitIke => under_traffic(running, BOTH, |running, node| {
                replaced(running, node, |_| Ok(()), new_ike).map(drop)
            }),
            Act::Reauthenticate => under_traffic(running, [Node::Client; 2], |running, node| {
                let new = |before: &SaView, now: &SaView| {
                    let address = before.virtual_ips == now.virtual_ips;
                    before.spis != now.spis && has_other_children(before, now) && address
                };
                replaced(running, node, |peer| peer.reauthenticate(), new).map(drop)
            }),
            Act::LeaveBehind => leave_behind(running),
            Act::GatewayDeletes => {
                running.ends.gateway.down().context("the gateway deletes")?;
                running.ends.both_have_none().context("after the gateway's DELETE")
            }
            Act::ClientDies => {
                running.ends.client.kill();
                running.start_again(Node::Client)?;
                running.ends.client.up().context("tunnel up after the client died")?;
                // The gateway must have forgotten the old one: INITIAL_CONTACT (RFC 7296 §2.4).
                running.works().context("after the client died").map(drop)
            }
            Act::Outside(outside) => outside.perform(running),
            Act::Dies(death) => death.perform(running),
            Act::Travel(travel) => travel.perform(running),
            Act::Second(second) => second.perform(running),
            Act::Leak(leak) => leak.perform(running),
            Act::GatewayRestarts => {
                running.ends.gateway.stop().context("end of the gateway")?;
                process::eventually(AGREED, || match running.ends.client.sas()?.len() {
                    0 => Ok(()),
                    _ => Err(fail!("the client has an IKE_SA after the gateway's farewell")),
                })?;
                running.start_again(Node::Gateway)?;
                running.ends.client.up().context("tunnel up after the gateway's restart")?;
                running.works().context("after the gateway's restart").map(drop)
            }
        }
    }
}

const BOTH: [Node; 2] = [Node::Client, Node::Gateway];

/// Has these ends do something while numbered packets flow both ways through each CHILD_SA; no more in a
/// row may be lost than the case allows, and where some may be early, than the client's kernel has dropped.
fn under_traffic(
    running: &mut Running<'_>,
    nodes: [Node; 2],
    mut act: impl FnMut(&mut Running<'_>, Node) -> Result<()>,
) -> Result<()> {
    let networks: Vec<Network> = running.case.tunnel.networks().collect();
    let in_guest = running.stage.life.plane.is_in_kernel();
    let (spacing, size) = match (running.case.act, in_guest) {
        (Act::AwaitOctets, false) => (SPACING_OF_MUCH, LARGE),
        (Act::AwaitOctets, true) => (SPACING_OF_MUCH_IN_GUEST, LARGE),
        _ => (SPACING, flow::SMALL),
    };
    let dropped = |running: &Running<'_>| running.stage.topology.dropped(Node::Client);
    let before = dropped(running);
    let mut flows = Vec::new();
    for (network, port) in networks.iter().zip(7000..) {
        flows.push(running.ends.flows_of(network.host, port, spacing, size)?);
    }
    let acted = nodes.into_iter().try_for_each(|node| {
        std::thread::sleep(AROUND);
        act(running, node).context(format!("new keys from the {}", node.name()))
    });
    std::thread::sleep(AROUND);
    let records: Vec<[Record; 2]> =
        flows.into_iter().map(|flows| flows.map(Flow::finish)).collect();
    running.sent += records.iter().flatten().map(Record::sent).sum::<u64>();
    running.lost += records.iter().flatten().map(Record::lost).sum::<u64>();
    acted?;
    // Where some may be early, a kernel tells how many: it has no state for them yet.
    let early = dropped(running).saturating_sub(before);
    let mut in_a_row = running.case.lost_in_a_row;
    if in_a_row > 0 && early > 0 {
        in_a_row += usize::try_from(early).unwrap_or(usize::MAX);
        running
            .figures
            .push(format!("{early} of the gateway's came before the client's keys were there"));
    }
    let mut bad = Vec::new();
    for (network, records) in networks.iter().zip(&records) {
        for (way, record) in ["to", "from"].into_iter().zip(records) {
            let lost = record.lost_few(in_a_row).context(format!("packets {way} {}", network.host));
            bad.extend(lost.err().map(|failure| failure.to_string()));
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(fail!("{}", bad.join("; "))) }
}

/// The client loses its uplink: the same IKE_SA has another CHILD_SA on the other one, which carries.
fn leave_behind(running: &mut Running<'_>) -> Result<()> {
    let before = running.ends.agree(1)?;
    let topology = running.stage.topology;
    let lost = topology.uplink_of(before[0].local.ip())?;
    let other = topology.other(&lost);
    topology.lose(&lost, Loss::LinkDown)?;
    process::eventually(AGREED * 2, || {
        let now = running.ends.agree(1)?;
        let all_new = before.iter().zip(&now).all(|(before, now)| new_children(before, now));
        match all_new && now[0].local.ip() == other.address {
            true => Ok(()),
            false => Err(fail!("after the loss of {} the client has {}", lost.device, now[0])),
        }
    })?;
    let (client, gateway) = (other.address.into(), GATEWAY.into());
    topology.ping(Node::Client, client, gateway, AGREED).context("on the other uplink")?;
    topology.ping(Node::Gateway, gateway, client, AGREED).context("to the other uplink")?;
    topology.restore(&lost)
}

/// The CHILD_SAs are others, and the IKE_SA is the same.
fn new_children(before: &SaView, now: &SaView) -> bool {
    before.spis == now.spis && has_other_children(before, now)
}

/// The IKE_SA is another, and has the same CHILD_SAs.
fn new_ike(before: &SaView, now: &SaView) -> bool {
    let kept = before.children.iter().all(|child| now.children.contains(child));
    before.spis != now.spis && kept
}

fn has_other_children(before: &SaView, now: &SaView) -> bool {
    let spis = |sa: &SaView| -> Vec<u32> {
        sa.children.iter().flat_map(|child| [child.spi_in, child.spi_out]).collect()
    };
    let old = spis(before);
    !spis(now).iter().any(|spi| old.contains(spi))
}

/// Has an end do something, and waits until both ends show that the old SAs are no more.
fn replaced(
    running: &mut Running<'_>,
    node: Node,
    act: impl Fn(&mut dyn Peer) -> Result<()>,
    is_new: impl Fn(&SaView, &SaView) -> bool,
) -> Result<[SaView; 2]> {
    let children = running.case.tunnel.children.len();
    let before = running.ends.agree(children)?;
    act(running.ends.at(node))?;
    let limit = match running.case.act {
        Act::AwaitChildren | Act::AwaitOctets | Act::AwaitIke => AWAITED,
        _ => AGREED,
    };
    process::eventually(limit, || {
        let now = running.ends.agree(children)?;
        match before.iter().zip(&now).all(|(before, now)| is_new(before, now)) {
            true => Ok(now),
            false => Err(fail!("the SAs are still the old ones: {:?}", now.map(|sa| sa.spis))),
        }
    })
}
