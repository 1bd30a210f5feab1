//! A move while a question of either end is on its way to nowhere: it follows the move, and is answered there
//! (RFC 4555 §3.5).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::case::Running;
use super::travel::{arrived, moves_with};
use crate::capture::{self, CREATE_CHILD_SA, INFORMATIONAL, Told};
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Network;
use crate::peer::{Program, SaView};
use crate::process;
use crate::topology::{GATEWAY, Loss, Node, Uplink};

/// How long an end may take to ask: bewick's silent path under traffic is asked after a second, and where an
/// end is told to ask after a second of silence it looks now and then.
const ASKED: Duration = Duration::from_secs(5);
/// How soon a question follows the answer to the one before, if it does.
const FOLLOWS: Duration = Duration::from_millis(100);
/// How long traffic may stay away: what is outstanding may be sent again only after a while.
const AWAY: Duration = Duration::from_secs(10);

/// What the question is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether the peer is there: INFORMATIONAL with nothing in it, or what else asks for an answer alone.
    Liveness,
    /// The end of a CHILD_SA, the second one.
    End,
    /// The end of the CHILD_SA that new keys have replaced.
    OldEnd,
    /// The second CHILD_SA, which is missing.
    Child,
}

/// A move while an end waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// To what.
    pub question: Question,
    /// Who has asked.
    pub by: Node,
    /// Whether the question is lost; else the uplink is lost right behind the answer. strongSwan, as a client that
    /// has not got its answer, asks again on the path that is gone until it gives up, and does not move.
    pub unheard: bool,
}

impl Outstanding {
    /// Does it.
    ///
    /// # Errors
    /// The tunnel does not move, or what was asked does not come about.
    pub fn perform(self, running: &mut Running<'_>, before: &[SaView; 2]) -> Result<()> {
        let Self { question, by, unheard } = self;
        let topology = running.ends.topology;
        let lost = topology.uplink_of(before[0].local.ip())?;
        let other = topology.other(&lost);
        let networks: Vec<Network> = running.case.tunnel.networks().collect();
        let second = running.case.tunnel.children.get(1).map_or("", |child| child.name);
        let (first, all) = (networks.get(..1).unwrap_or_default(), networks.as_slice());
        let (at_first, then) = match question {
            Question::Liveness | Question::OldEnd => (all, all),
            Question::End => (first, first),
            Question::Child => (first, all),
        };
        if question == Question::Child {
            let strongswan = match running.stage.life.client {
                Program::Bewick => Node::Gateway,
                _ => Node::Client,
            };
            running.ends.at(strongswan).down_child(second).context("the end of the second")?;
        }
        let before = match question {
            Question::Child => running.ends.agree(first.len())?,
            _ => before.clone(),
        };
        let exchange = match question {
            Question::Child => CREATE_CHILD_SA,
            _ => INFORMATIONAL,
        };
        let asker = address_of(by, &lost);
        let asks = |running: &mut Running<'_>| {
            let so_far = asked(running, asker, exchange)?;
            match (question, unheard) {
                (_, false) => {}
                // Who hears the other's packets has no reason to ask.
                (Question::Liveness, true) => topology.silence(&lost)?,
                (_, true) => topology.swallow(by, &lost, exchange)?,
            }
            let peer = running.ends.at(by);
            let told = match question {
                Question::Liveness => Ok(()),
                Question::End => peer.ask_for_end(second),
                Question::OldEnd => peer.rekey_children(),
                Question::Child => peer.ask_for_child(second),
            };
            let asked = told.and_then(|()| has_asked(running, by, asker, exchange, so_far));
            if !unheard {
                answered(running, asker)?;
            }
            topology.lose(&lost, Loss::LinkDown)?;
            match (question, unheard) {
                (_, false) => {}
                (Question::Liveness, true) => topology.unsilence(&lost)?,
                (_, true) => topology.let_pass()?,
            }
            asked
        };
        let there = |client: &SaView, gateway: &SaView| {
            let moved = client.local.ip() == other.address && gateway.remote.ip() == other.seen_as;
            let kept = before[0].spis == client.spis;
            let renewed = client.children != before[0].children;
            // strongSwan gives CHILD_SAs new keys after each move in userspace.
            moved && kept && (renewed || question == Question::Liveness)
        };
        let count = then.len();
        let moved = moves_with(running, at_first, AWAY, asks, |running| {
            arrived(running, then, count, there)
        });
        topology.restore(&lost)?;
        moved?;
        // What is answered is asked no more.
        std::thread::sleep(AGREED / 5);
        running.ends.agree(count).map(drop)
    }
}

/// Where the router sees this end on this uplink.
pub fn address_of(node: Node, uplink: &Uplink) -> IpAddr {
    if node.is_client() { uplink.seen_as.into() } else { GATEWAY.into() }
}

/// Waits until more than `so_far` requests of this exchange have come from there.
pub fn has_asked(
    running: &Running<'_>,
    by: Node,
    asker: IpAddr,
    exchange: u8,
    so_far: usize,
) -> Result<()> {
    process::eventually(ASKED, || match asked(running, asker, exchange)? > so_far {
        true => Ok(()),
        false => Err(fail!("the {} has not asked", by.name())),
    })
}

/// Waits until all that has been asked from there has its answer, and nothing more follows.
pub fn answered(running: &Running<'_>, asker: IpAddr) -> Result<()> {
    let mut before = None;
    process::eventually(ASKED, || {
        let told = capture::told_so_far(&running.out)?;
        let of = |one: &Told| (one.spi_i, one.exchange, one.message_id);
        let requests = told.iter().filter(|one| one.from == asker && !one.is_response);
        let requests: BTreeSet<_> = requests.map(of).collect();
        let responses = told.iter().filter(|one| one.to == asker && one.is_response);
        let responses: BTreeSet<_> = responses.map(of).collect();
        let open = requests.difference(&responses).count();
        if open > 0 || before.replace(requests.len()) != Some(requests.len()) {
            std::thread::sleep(FOLLOWS);
            return Err(fail!("{open} requests from {asker} have no answer"));
        }
        Ok(())
    })
}

/// How many requests of this exchange have come from there so far.
pub fn asked(running: &Running<'_>, from: IpAddr, exchange: u8) -> Result<usize> {
    let asked = capture::asked_so_far(&running.out)?;
    Ok(asked.iter().filter(|one| one.from == from && one.exchange == exchange).count())
}
