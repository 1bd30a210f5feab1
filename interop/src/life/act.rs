//! What is done to a tunnel that stands.

use std::time::Duration;

use super::case::Running;
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::Record;
use crate::peer::SaView;
use crate::process;
use crate::topology::Node;

/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(5);
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
    /// The gateway deletes it.
    GatewayDeletes,
    /// The client dies without a word and comes back.
    ClientDies,
    /// The gateway's operator restarts it, and the client connects again.
    GatewayRestarts,
}

impl Act {
    /// Whether there is no tunnel afterwards.
    pub fn ends_the_tunnel(self) -> bool {
        self == Act::GatewayDeletes
    }

    /// Does it.
    ///
    /// # Errors
    /// What went wrong, with what was done in front.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        match self {
            Act::Nothing => Ok(()),
            Act::RekeyChildren => under_traffic(running, |running, node| {
                new_keys(running, node, "CHILD_SAs", |before, now| {
                    let spis = |sa: &SaView| -> Vec<u32> {
                        sa.children.iter().flat_map(|c| [c.spi_in, c.spi_out]).collect()
                    };
                    let (old, new) = (spis(before), spis(now));
                    before.spis == now.spis && !new.iter().any(|spi| old.contains(spi))
                })
            }),
            Act::RekeyIke => under_traffic(running, |running, node| {
                new_keys(running, node, "IKE_SA", |before, now| {
                    let kept = before.children.iter().all(|child| now.children.contains(child));
                    before.spis != now.spis && kept
                })
            }),
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

/// Has each end do something while numbered packets flow both ways; none may be lost.
fn under_traffic(
    running: &mut Running<'_>,
    mut act: impl FnMut(&mut Running<'_>, Node) -> Result<()>,
) -> Result<()> {
    let flows = running.ends.flows(SPACING)?;
    let acted = [Node::Client, Node::Gateway].into_iter().try_for_each(|node| {
        std::thread::sleep(AROUND);
        act(running, node).context(format!("new keys from the {}", node.name()))
    });
    std::thread::sleep(AROUND);
    let records = flows.map(|flow| flow.finish());
    acted?;
    for (to, record) in ["gateway", "client"].into_iter().zip(&records) {
        lost_none(record).context(format!("packets to the {to}"))?;
    }
    Ok(())
}

fn lost_none(record: &Record) -> Result<()> {
    match (record.missing().as_slice(), record.sent()) {
        (_, 0) => Err(fail!("none was sent")),
        ([], _) => Ok(()),
        (lost, sent) => Err(fail!("{} of {sent} were lost: {lost:?}", lost.len())),
    }
}

/// Has an end give new keys, and waits until both ends show that the old ones are no more.
fn new_keys(
    running: &mut Running<'_>,
    node: Node,
    what: &str,
    is_new: fn(&SaView, &SaView) -> bool,
) -> Result<()> {
    let children = running.tunnel.children.len();
    let before = running.ends.agree(children)?;
    match what {
        "IKE_SA" => running.ends.at(node).rekey_ike()?,
        _ => running.ends.at(node).rekey_children()?,
    }
    process::eventually(AGREED, || {
        let now = running.ends.agree(children)?;
        match before.iter().zip(&now).all(|(before, now)| is_new(before, now)) {
            true => Ok(()),
            false => Err(fail!("the {what} are still the old ones: {:?}", now.map(|sa| sa.spis))),
        }
    })
}
