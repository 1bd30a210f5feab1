//! A tunnel that has to move, under traffic.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::case::Running;
use super::detour;
use super::outstanding::{self, Outstanding};
use super::transfer::Transfer;
use crate::capture::CREATE_CHILD_SA;
use crate::ends::only;
use crate::fail;
use crate::failure::{Context, Result};
use crate::flow::{Flow, Record};
use crate::peer::tunnel::Network;
use crate::peer::{Program, SaView};
use crate::process;
use crate::topology::{CLIENT_6, GATEWAY, GATEWAY_OTHER, Loss, Node, Uplink};

/// Between two numbered packets.
const SPACING: Duration = Duration::from_millis(5);
/// How long packets flow before something happens and after.
const AROUND: Duration = Duration::from_millis(300);
/// How long a move may take altogether.
pub const MOVED: Duration = Duration::from_secs(20);
/// How long the daemons get to take note of an uplink that came back.
pub const SETTLED: Duration = Duration::from_secs(1);
/// How long the gateway gets to tell of an address.
const ANNOUNCED: Duration = Duration::from_secs(2);
/// How long a client that asks every second whether its peer is there needs for a first answer.
pub const ASKED: Duration = Duration::from_millis(2500);

/// RFC 3948 §2.1.
const NAT_PORT: u16 = 4500;

/// How much goes through a tunnel that moves five times, in octets.
const MUCH: u64 = 64 << 20;
/// How long a NAT is left alone that forgets after 20 s.
const IDLE: Duration = Duration::from_secs(45);

/// How many moves a transfer has to outlive.
const MOVES: usize = 5;
/// Between two losses that a client can hardly tell apart.
const AT_ONCE: Duration = Duration::from_millis(30);

/// How long the first of the gateway's packets may be on its way.
pub const FIRST_ANSWER: Duration = Duration::from_secs(1);

/// How long traffic may stay away from a silent path.
const SILENT: Duration = Duration::from_secs(4);
/// How long it may stay away when somebody has seen what happened.
const SEEN: Duration = Duration::from_secs(2);
/// How long it may stay away when a question on the way is lost too.
const LOST_QUESTION: Duration = Duration::from_secs(4);
/// How long it may stay away until UDP has had its chance.
const OVER_TCP: Duration = Duration::from_secs(5);
/// How long it may stay away until somebody asks.
const NAT: Duration = Duration::from_secs(6);

/// What makes it move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Travel {
    /// The router drops all of the current path.
    SilentPath,
    /// The IPv4 uplink is lost and the other has IPv6 alone, and then the reverse.
    Families,
    /// The current uplink is lost.
    LosesUplink,
    /// It is lost when an end has asked for new keys.
    DuringRekey {
        /// For the IKE_SA, not the CHILD_SA.
        ike: bool,
        /// Who asks.
        by: Node,
        /// Whether the question is lost too; else the uplink is lost right behind the answer.
        unheard: bool,
        /// Whether it may be put off: an end that gives a CHILD_SA new keys refuses this for the IKE_SA.
        put_off: bool,
    },
    /// The gateway loses the address in use.
    GatewayLosesAddress,
    /// The NAT forgets its mappings.
    NatForgets,
    /// The client is told to, there and back.
    Planned,
    /// The current uplink is lost five times, while much goes through the tunnel over TCP.
    Transfer,
    /// The current uplink is lost and comes back, and at once the other is lost and comes back.
    ThereAndBack,
    /// The current uplink is lost on a network that delays, loses and reorders, while TCP is in the tunnel.
    Rough,
    /// The uplink that the client moves to is lost before its question is answered, and the first one is back.
    WithinARoundTrip,
    /// The NAT forgets its mappings while nobody sends anything.
    ForgottenAtRest,
    /// The current uplink is lost, and without MOBIKE the client begins anew.
    Anew,
    /// The gateway gets another address and loses the first, and then the reverse.
    Announced,
    /// The uplink that is not in use is lost and comes back, and nothing moves.
    SpareComesAndGoes,
    /// Nobody says anything for longer than the NAT remembers, then the gateway has something to send.
    Idle,
    /// The current uplink is lost when a question is on its way to nowhere.
    Outstanding(Outstanding),
    /// The current uplink is lost and on the other nothing but TCP passes, and then UDP passes there again.
    FallsBackToTcp,
}

impl Travel {
    /// Does it.
    ///
    /// # Errors
    /// The tunnel does not move as it must.
    pub fn perform(self, running: &mut Running<'_>) -> Result<()> {
        let topology = running.ends.topology;
        let before = running.ends.agree(running.case.tunnel.children.len())?;
        let [client, gateway] = &before;
        let at = |uplink: Uplink| {
            move |client: &SaView, gateway: &SaView| {
                client.local.ip() == uplink.address && gateway.remote.ip() == uplink.seen_as
            }
        };
        match self {
            Travel::SilentPath => {
                let lost = topology.uplink_of(client.local.ip())?;
                let there = at(topology.other(&lost));
                let moved = moves(running, SILENT, |_| topology.silence(&lost), there);
                topology.unsilence(&lost)?;
                moved
            }
            Travel::Families => {
                let lost = topology.uplink_of(client.local.ip())?;
                let ipv6 = |client: &SaView, gateway: &SaView| {
                    client.local.ip() == CLIENT_6 && gateway.remote.ip() == CLIENT_6
                };
                let lose = |_: &mut Running<'_>| topology.lose(&lost, Loss::LinkDown);
                moves(running, SEEN, lose, ipv6).context("to IPv6")?;
                topology.restore(&lost)?;
                std::thread::sleep(SETTLED);
                let lose = |_: &mut Running<'_>| topology.lose_ipv6();
                moves(running, SEEN, lose, at(lost)).context("back to IPv4")?;
                topology.restore_ipv6()
            }
            Travel::LosesUplink => {
                let lost = topology.uplink_of(client.local.ip())?;
                let there = at(topology.other(&lost));
                moves(running, SEEN, |_| topology.lose(&lost, Loss::LinkDown), there)?;
                topology.restore(&lost)
            }
            Travel::DuringRekey { ike, by, unheard, put_off } => {
                let lost = topology.uplink_of(client.local.ip())?;
                let there = at(topology.other(&lost));
                let asks = |running: &mut Running<'_>| {
                    if unheard {
                        topology.silence(&lost)?;
                    }
                    let asker = outstanding::address_of(by, &lost);
                    let so_far = outstanding::asked(running, asker, CREATE_CHILD_SA)?;
                    let peer = running.ends.at(by);
                    if ike {
                        peer.rekey_ike()?
                    } else {
                        peer.rekey_children()?
                    }
                    if unheard {
                        // The daemon asks a moment after it was told to.
                        std::thread::sleep(Duration::from_millis(100));
                    } else {
                        outstanding::has_asked(running, by, asker, CREATE_CHILD_SA, so_far)?;
                        outstanding::answered(running, asker)?;
                    }
                    topology.lose(&lost, Loss::LinkDown)?;
                    if unheard { topology.unsilence(&lost) } else { Ok(()) }
                };
                let renewed = |client: &SaView, gateway: &SaView| {
                    let children = client.children != before[0].children;
                    let spis = client.spis != before[0].spis;
                    there(client, gateway) && (put_off || if ike { spis } else { children })
                };
                // In userspace strongSwan sends from its new address with new keys only, and waits for 6 s or 12 before
                // it asks for them again if it was told to wait for the IKE_SA's (TEMPORARY_FAILURE, RFC 7296 §2.25.2).
                let waits = put_off && !running.stage.life.plane.is_in_kernel();
                let limit = if waits { MOVED } else { LOST_QUESTION };
                let moved = moves(running, limit, asks, renewed);
                topology.restore(&lost)?;
                moved
            }
            Travel::GatewayLosesAddress => {
                let there = |client: &SaView, gateway: &SaView| {
                    client.remote.ip() == GATEWAY_OTHER && gateway.local.ip() == GATEWAY_OTHER
                };
                moves(running, SEEN, |_| topology.gateway_loses_address(), there)?;
                topology.gateway_regains_address()
            }
            Travel::NatForgets => {
                let port = gateway.remote.port();
                if running.case.tunnel.client.liveness.is_some() {
                    std::thread::sleep(ASKED);
                }
                let there = |_: &SaView, gateway: &SaView| gateway.remote.port() != port;
                moves(running, NAT, |_| topology.forget_mappings(), there)
            }
            Travel::Transfer => {
                let [network, ..] = running.case.tunnel.children[0].networks else {
                    return Err(fail!("a CHILD_SA without networks"));
                };
                let transfer = Transfer::start(topology, network.host, MUCH)?;
                let moved = (0..MOVES).try_for_each(|_| {
                    let client = only(running.ends.client.sas()?).context("client")?;
                    let lost = topology.uplink_of(client.local.ip())?;
                    let there = at(topology.other(&lost));
                    moves(running, SEEN, |_| topology.lose(&lost, Loss::LinkDown), there)?;
                    topology.restore(&lost)?;
                    std::thread::sleep(SETTLED);
                    Ok(())
                });
                let transferred = transfer.finish();
                moved.and(transferred)
            }
            Travel::ThereAndBack => {
                let first = topology.uplink_of(client.local.ip())?;
                let second = topology.other(&first);
                let flip = |_: &mut Running<'_>| {
                    topology.lose(&first, Loss::LinkDown)?;
                    std::thread::sleep(AT_ONCE);
                    topology.restore(&first)?;
                    topology.lose(&second, Loss::LinkDown)
                };
                let moved = moves(running, LOST_QUESTION, flip, at(first));
                topology.restore(&second)?;
                moved
            }
            Travel::Rough => detour::rough(running, &before),
            Travel::WithinARoundTrip => detour::within_a_round_trip(running, &before),
            Travel::ForgottenAtRest => detour::forgotten_at_rest(running, &before),
            Travel::Anew => detour::anew(running, &before),
            Travel::Announced => {
                let at_gateway = |address: IpAddr| {
                    move |client: &SaView, gateway: &SaView| {
                        client.remote.ip() == address && gateway.local.ip() == address
                    }
                };
                topology.gateway_gains_other()?;
                std::thread::sleep(ANNOUNCED);
                let lose = |_: &mut Running<'_>| topology.gateway_loses_address();
                let other = at_gateway(GATEWAY_OTHER.into());
                moves(running, SEEN, lose, other).context("to the new address")?;
                topology.gateway_regains_address()?;
                std::thread::sleep(ANNOUNCED);
                let lose = |_: &mut Running<'_>| topology.gateway_loses_other();
                let first = at_gateway(GATEWAY.into());
                moves(running, SEEN, lose, first).context("to the address of before")
            }
            Travel::SpareComesAndGoes => {
                let used = topology.uplink_of(client.local.ip())?;
                let spare = topology.other(&used);
                let comes_and_goes = |_: &mut Running<'_>| {
                    topology.lose(&spare, Loss::LinkDown)?;
                    std::thread::sleep(ANNOUNCED);
                    topology.restore(&spare)?;
                    std::thread::sleep(ANNOUNCED);
                    Ok(())
                };
                moves(running, MOVED, comes_and_goes, at(used))?;
                match running.lost {
                    0 => Ok(()),
                    // strongSwan puts its policies and states in again.
                    _ if running.stage.life.client != Program::Bewick => Ok(()),
                    lost => Err(fail!("{lost} packets were lost, and nothing has moved")),
                }
            }
            Travel::Idle => {
                std::thread::sleep(IDLE);
                let [network, ..] = running.case.tunnel.children[0].networks else {
                    return Err(fail!("a CHILD_SA without networks"));
                };
                let to = running.ends.virtual_ip(network.host)?;
                topology.ping(Node::Gateway, network.host, to, FIRST_ANSWER)?;
                let [_, now] = running.ends.agree(running.case.tunnel.children.len())?;
                match now.remote == gateway.remote {
                    true => Ok(()),
                    false => Err(fail!("the NAT has forgotten {}", gateway.remote)),
                }
            }
            Travel::Outstanding(outstanding) => outstanding.perform(running, &before),
            Travel::FallsBackToTcp => {
                let lost = topology.uplink_of(client.local.ip())?;
                let other = topology.other(&lost);
                let is_udp = |client: &SaView| client.local.port() == NAT_PORT;
                topology.close_udp(&other)?;
                let there = |client: &SaView, gateway: &SaView| {
                    at(other)(client, gateway) && !is_udp(client)
                };
                let lose = |_: &mut Running<'_>| topology.lose(&lost, Loss::LinkDown);
                moves(running, OVER_TCP, lose, there).context("to TCP")?;
                let there = |client: &SaView, gateway: &SaView| {
                    at(other)(client, gateway) && is_udp(client)
                };
                let open = |_: &mut Running<'_>| topology.open_udp(&other);
                moves(running, SEEN, open, there).context("back to UDP")?;
                topology.restore(&lost)
            }
            Travel::Planned => {
                let first = topology.uplink_of(client.local.ip())?;
                let before = [Node::Client, Node::Gateway].map(|node| topology.dropped(node));
                for to in [topology.other(&first), first] {
                    let ask = |running: &mut Running<'_>| running.ends.client.move_to(to.device);
                    moves(running, SEEN, ask, at(to)).context(format!("to {}", to.device))?;
                }
                lost_where(running, before)
            }
        }
    }
}

/// No packet may be lost but what the gateway's kernel says that it has dropped: strongSwan takes its policies
/// and states there away for a moment, and puts them back.
fn lost_where(running: &mut Running<'_>, before: [u64; 2]) -> Result<()> {
    let topology = running.ends.topology;
    let [here, there] = [Node::Client, Node::Gateway].map(|node| topology.dropped(node));
    let (here, there) = (here - before[0], there - before[1]);
    if there > 0 {
        running.figures.push(format!("{there} dropped in strongSwan's kernel"));
    }
    match running.lost {
        lost if here > 0 => Err(fail!("{lost} packets were lost, bewick's kernel dropped {here}")),
        lost if lost > there => Err(fail!("{lost} packets were lost, the gateway dropped {there}")),
        _ => Ok(()),
    }
}

/// Has something happen under traffic both ways through each CHILD_SA, waits until both ends show that they
/// are `there` with the same CHILD_SAs and packets go both ways, and looks how long none did.
fn moves(
    running: &mut Running<'_>,
    limit: Duration,
    cause: impl FnOnce(&mut Running<'_>) -> Result<()>,
    there: impl Fn(&SaView, &SaView) -> bool,
) -> Result<()> {
    let networks: Vec<Network> = running.case.tunnel.networks().collect();
    let children = running.case.tunnel.children.len();
    moves_with(running, &networks, limit, cause, |running| {
        arrived(running, &networks, children, there)
    })
}

/// The same under traffic to these networks alone, and with another wait for the end of it.
pub fn moves_with(
    running: &mut Running<'_>,
    networks: &[Network],
    limit: Duration,
    cause: impl FnOnce(&mut Running<'_>) -> Result<()>,
    arrived: impl FnOnce(&mut Running<'_>) -> Result<()>,
) -> Result<()> {
    let mut flows = Vec::new();
    for (network, port) in networks.iter().zip(7000..) {
        flows.push(running.ends.flows(network.host, port, SPACING)?);
    }
    std::thread::sleep(AROUND);
    let moment = Instant::now();
    let moved = cause(running).and_then(|()| arrived(running));
    std::thread::sleep(AROUND);
    let records: Vec<Record> =
        flows.into_iter().flat_map(|flows| flows.map(Flow::finish)).collect();
    running.sent += records.iter().map(Record::sent).sum::<u64>();
    running.lost += records.iter().map(Record::lost).sum::<u64>();
    let gaps: Option<Vec<Duration>> = records.iter().map(|record| record.gap(moment)).collect();
    let gap = gaps.and_then(|gaps| gaps.into_iter().max());
    running.gap = running.gap.max(gap);
    moved?;
    match gap {
        None => Err(fail!("numbered packets did not come back")),
        Some(gap) if gap > limit => Err(fail!("no packet for {:.1} s", gap.as_secs_f64())),
        Some(_) => Ok(()),
    }
}

/// Waits until both ends show that they are `there` with this many CHILD_SAs and the same, and pings through
/// them.
///
/// # Errors
/// They do not in time, or a packet was lost.
pub fn arrived(
    running: &mut Running<'_>,
    networks: &[Network],
    children: usize,
    there: impl Fn(&SaView, &SaView) -> bool,
) -> Result<()> {
    process::eventually(MOVED, || {
        let client = only(running.ends.client.sas()?).context("client")?;
        let gateway = only(running.ends.gateway.sas()?).context("gateway")?;
        if there(&client, &gateway) {
            return Ok(());
        }
        Err(fail!("the client shows {client} ({}), the gateway {gateway}", client.spis))
    })?;
    running.ends.agree(children)?;
    for network in networks {
        running.ends.ping_both_ways(network.host, MOVED).context("after the move")?;
    }
    Ok(())
}
