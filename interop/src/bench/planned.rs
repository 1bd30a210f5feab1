//! What is lost when the client is asked to move to its other uplink, which loses nothing by itself.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Lane, Options, Outcome};
use crate::ends::only;
use crate::failure::{Context, Result};
use crate::flow::Flow;
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::topology::INSIDE;

/// Between two numbered packets in each direction: 5000 a second.
const SPACING: Duration = Duration::from_micros(200);
/// From one move to the next; 20 of them take 100 000 packets in each direction.
const BETWEEN: Duration = Duration::from_secs(1);
/// Before the first move, and after the last one.
const AROUND: Duration = Duration::from_millis(500);

/// What the moves gave.
#[derive(Debug, Serialize)]
pub struct Planned {
    /// The program and its version.
    version: String,
    /// How often it has moved, as both ends show.
    moves: usize,
    /// How often it was asked to.
    asked: usize,
    /// Packets sent towards the gateway.
    sent_to_gateway: u64,
    /// How many of them never arrived.
    lost_to_gateway: u64,
    /// Packets sent towards the client.
    sent_to_client: u64,
    /// How many of them never arrived.
    lost_to_client: u64,
    /// The longest time without a packet in the worse direction, from the first move on, less the spacing;
    /// none if they did not come back.
    longest_gap_ms: Option<f64>,
}

/// The client moves there and back again and again under traffic both ways. strongSwan has no such command.
///
/// # Errors
/// The tunnel does not come up, or a move is refused or not done.
pub fn run(options: &Options) -> Result<Vec<(Program, Planned)>> {
    let only_bewick =
        Options { programs: &[Program::Bewick], out: options.out.clone(), ..*options };
    let lanes = Lane::build_all(&only_bewick, "planned")?;
    let tunnel = Tunnel::default();
    let mut results = Vec::new();
    for lane in &lanes {
        let (mut ends, version) = lane.up(&tunnel)?;
        ends.ping_both_ways(INSIDE.into(), Duration::from_secs(10))?;
        let flows = ends.flows(INSIDE.into(), 7000, SPACING)?;
        std::thread::sleep(AROUND);
        let start = Instant::now();
        let mut moves = 0;
        let mut moved = Ok(());
        for number in 1..=options.times {
            moved = (|| {
                let now = only(ends.client.sas()?).context("client")?;
                let other = lane.topology.other(&lane.topology.uplink_of(now.local.ip())?);
                ends.client.move_to(other.device)?;
                ends.both_show(other.address.into(), other.seen_as.into()).map(drop)
            })()
            .context(format!("move {number}"));
            if moved.is_err() {
                break;
            }
            moves += 1;
            let next = BETWEEN * u32::try_from(number).unwrap_or(u32::MAX);
            std::thread::sleep(next.saturating_sub(start.elapsed()));
        }
        std::thread::sleep(AROUND);
        let records = flows.map(Flow::finish);
        moved?;
        let [to_gateway, to_client] = &records;
        let gaps = to_gateway.gap(start).zip(to_client.gap(start));
        let outcome = Planned {
            version,
            moves,
            asked: options.times,
            sent_to_gateway: to_gateway.sent(),
            lost_to_gateway: to_gateway.lost(),
            sent_to_client: to_client.sent(),
            lost_to_client: to_client.lost(),
            longest_gap_ms: gaps.map(|(a, b)| a.max(b).as_secs_f64() * 1000.0),
        };
        results.push((lane.program, outcome));
    }
    Ok(results)
}

impl Outcome for Planned {
    fn line(&self) -> String {
        let Self { version, moves, asked, .. } = self;
        let gap = self.longest_gap_ms.map_or("they never came back".to_owned(), |ms| {
            format!("{ms:.1} ms without any at most")
        });
        format!(
            "{version}: {moves} of {asked} planned moves, {} of {} packets to the gateway lost, {} of {} \
             to the client, {gap}",
            self.lost_to_gateway, self.sent_to_gateway, self.lost_to_client, self.sent_to_client
        )
    }

    /// One that loses packets has failed: a planned move is to lose none.
    fn is_whole(&self) -> bool {
        self.moves == self.asked
            && self.longest_gap_ms.is_some()
            && self.lost_to_gateway == 0
            && self.lost_to_client == 0
    }
}
