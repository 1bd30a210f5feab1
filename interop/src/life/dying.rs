//! An end that dies without a word, and what the other makes of it.

use std::time::{Duration, Instant};

use super::case::Running;
use crate::ends::only;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::Program;
use crate::process;
use crate::topology::{Loss, Node};

/// How long an end may take to see that its peer is dead: strongSwan asks four times within six seconds; bewick
/// waits for five minutes, the least that its `hold` can be (RFC 4555 §3.11).
const SEEN_BY_STRONGSWAN: Duration = Duration::from_secs(30);
const SEEN_BY_BEWICK: Duration = Duration::from_secs(345);

/// How long a client may take to be back at a gateway that knows nothing of it: the same, and a handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// How an end dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It stays dead until the other has found out.
    Stays(Node),
    /// The gateway is started again at once, and nobody tells the client.
    GatewayIsBack,
    /// The client comes back by its other uplink.
    ClientIsElsewhere,
}

impl Death {
    /// Has it happen, and looks at what comes of it.
    ///
    /// # Errors
    /// The other end does not find out, or there is no tunnel afterwards.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        match self {
            Death::Stays(node) => {
                let survivor = if node.is_client() { Node::Gateway } else { Node::Client };
                running.ends.at(node).kill();
                let start = Instant::now();
                process::eventually(seen_by(running, survivor), || {
                    match running.ends.at(survivor).sas()?.len() {
                        0 => Ok(()),
                        _ => Err(fail!("the {} still has an IKE_SA", survivor.name())),
                    }
                })?;
                note(running, &format!("the {} has found out", survivor.name()), start);
                running.start_again(node)?;
                running.ends.client.up().context("tunnel up after the death")?;
                running.works().context("after the death").map(drop)
            }
            Death::GatewayIsBack => {
                running.ends.gateway.kill();
                let start = Instant::now();
                running.start_again(Node::Gateway)?;
                let limit = seen_by(running, Node::Client) + HANDSHAKE;
                process::eventually(limit, || {
                    only(running.ends.gateway.sas()?).context("the gateway after its crash")
                })?;
                note(running, "the client is back", start);
                running.works().context("after the gateway's crash").map(drop)
            }
            Death::ClientIsElsewhere => {
                let topology = running.stage.topology;
                let [client, _] = running.ends.agree(running.case.tunnel.children.len())?;
                let lost = topology.uplink_of(client.local.ip())?;
                let other = topology.other(&lost);
                running.ends.client.kill();
                topology.lose(&lost, Loss::LinkDown)?;
                let works = (|| {
                    running.start_again(Node::Client)?;
                    running.ends.client.up().context("tunnel up by the other uplink")?;
                    // The gateway must have forgotten the old one: INITIAL_CONTACT (RFC 7296 §2.4).
                    running.works().context("by the other uplink")
                })();
                topology.restore(&lost)?;
                let [client, gateway] = works?;
                match client.local.ip() == other.address && gateway.remote.ip() == other.seen_as {
                    true => Ok(()),
                    false => Err(fail!("the client shows {client}, the gateway {gateway}")),
                }
            }
        }
    }
}

/// How long the end on this host may take to see that its peer is dead.
fn seen_by(running: &Running<'_>, node: Node) -> Duration {
    match running.stage.program(node) {
        Program::Bewick => SEEN_BY_BEWICK,
        _ => SEEN_BY_STRONGSWAN,
    }
}

fn note(running: &mut Running<'_>, what: &str, since: Instant) {
    running.figures.push(format!("{what} after {:.1} s", since.elapsed().as_secs_f64()));
}
