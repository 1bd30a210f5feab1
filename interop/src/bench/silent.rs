//! How long traffic stays away when the current path swallows packets without a word: no link event, no ICMP
//! error, no route that changes.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::goal::{self, Bound, Goal};
use super::{Gap, Lane, Options, Outcome};
use crate::ends::{Ends, only};
use crate::failure::{Context, Result};
use crate::flow::Flow;
use crate::peer::Program;
use crate::peer::tunnel::Tunnel;
use crate::topology::INSIDE;

/// Between two numbered packets in each direction: 500 a second.
const SPACING: Duration = Duration::from_millis(2);
/// How long packets flow before and after.
const AROUND: Duration = Duration::from_millis(300);
/// How often the client is asked where it is: asking takes processor time from those who are busy moving.
const LOOK: Duration = Duration::from_millis(250);
/// How long the daemons get to take note that the path works again.
const SETTLED: Duration = Duration::from_secs(2);
/// After how many seconds of silence strongSwan asks whether its peer is there; bewick needs no such setting.
const LIVENESS: u32 = 2;
/// The longest time without traffic that is well enough for bewick, the path's own included, in milliseconds.
const LONGEST: f64 = 3000.0;

/// What one program's turns gave.
#[derive(Debug, Serialize)]
pub struct Silent {
    /// The program and its version.
    pub version: String,
    /// How often the current path was silenced.
    pub times: usize,
    /// After how many of these traffic was back within the patience.
    pub back: usize,
    /// How long was waited each time, in seconds.
    pub patience_s: u64,
    /// Of those after which traffic was back, in the worse direction.
    pub gap_ms: Option<Gap>,
    /// Each time; none where traffic was not back.
    pub gap_ms_all: Vec<Option<f64>>,
    /// Packets sent, both directions together.
    pub sent: u64,
    /// How many never arrived.
    pub lost: u64,
}

struct Sample {
    gap: Option<Duration>,
    sent: u64,
    lost: u64,
}

/// The current path is silenced again and again, and works again after each time; the programs take turns.
///
/// # Errors
/// A tunnel does not come up, or a daemon ends.
pub fn run(options: &Options, patience: Duration) -> Result<Vec<(Program, Silent)>> {
    let lanes = Lane::build_all(options, "silent")?;
    let mut tunnel = Tunnel::default();
    let mut running = Vec::new();
    for lane in &lanes {
        tunnel.client.liveness = (lane.program == Program::Strongswan).then_some(LIVENESS);
        let (ends, version) = lane.up(&tunnel)?;
        running.push((lane.program, ends, version, Vec::new()));
    }
    std::thread::sleep(SETTLED);
    for number in 1..=options.times {
        for (program, ends, _, samples) in &mut running {
            let name = program.name();
            let one = sample(ends, patience).context(format!("{name}, time {number}"))?;
            let gap = one.gap.map_or(format!("not back in {} s", patience.as_secs()), |gap| {
                format!("back after {:.2} s", gap.as_secs_f64())
            });
            let (times, lost, sent) = (options.times, one.lost, one.sent);
            eprintln!("{number:>3} of {times}  {name:<10}  {gap}, {lost} of {sent} lost");
            samples.push(one);
        }
    }
    Ok(running
        .into_iter()
        .map(|(program, _, version, samples)| (program, Silent::of(version, patience, &samples)))
        .collect())
}

fn sample(ends: &mut Ends<'_>, patience: Duration) -> Result<Sample> {
    let before = only(ends.client.sas()?).context("client")?;
    let silent = ends.topology.uplink_of(before.local.ip())?;
    let flows = ends.flows(INSIDE.into(), 7000, SPACING)?;
    std::thread::sleep(AROUND);
    let moment = Instant::now();
    ends.topology.silence(&silent)?;
    let watched = (|| -> Result<()> {
        while moment.elapsed() < patience {
            std::thread::sleep(LOOK);
            let now = ends.client.sas()?;
            if now.first().is_some_and(|sa| sa.local.ip() != before.local.ip()) {
                break;
            }
        }
        Ok(())
    })();
    std::thread::sleep(AROUND);
    let records = flows.map(Flow::finish);
    ends.topology.unsilence(&silent)?;
    watched?;
    std::thread::sleep(SETTLED);
    let [to_gateway, to_client] = records.each_ref().map(|record| record.gap(moment));
    Ok(Sample {
        gap: to_gateway.zip(to_client).map(|(a, b)| a.max(b)),
        sent: records.iter().map(|record| record.sent()).sum(),
        lost: records.iter().map(|record| record.lost()).sum(),
    })
}

impl Silent {
    fn of(version: String, patience: Duration, samples: &[Sample]) -> Self {
        let all: Vec<Option<f64>> =
            samples.iter().map(|one| one.gap.map(|gap| gap.as_secs_f64() * 1000.0)).collect();
        let gaps: Vec<f64> = all.iter().flatten().copied().collect();
        Self {
            version,
            times: samples.len(),
            back: gaps.len(),
            patience_s: patience.as_secs(),
            gap_ms: Gap::of(gaps),
            gap_ms_all: all,
            sent: samples.iter().map(|one| one.sent).sum(),
            lost: samples.iter().map(|one| one.lost).sum(),
        }
    }
}

/// bewick is to be back each time, and soon, whatever strongSwan does.
pub fn goals(results: &[(Program, Silent)]) -> Vec<Goal> {
    let Some((ours, _)) = goal::both(results) else { return Vec::new() };
    let longest = ours.gap_ms.as_ref().map(|gap| gap.max);
    vec![
        Goal::figure(
            format!("bewick back, of {} times", ours.times),
            Some(ours.back as f64),
            Bound::AtLeast(ours.times as f64),
        ),
        Goal::figure("bewick's longest gap in ms", longest, Bound::AtMost(LONGEST)),
    ]
}

impl Outcome for Silent {
    fn line(&self) -> String {
        let Self { version, times, back, patience_s, lost, sent, .. } = self;
        let gap = self.gap_ms.as_ref().map_or(String::new(), |gap| format!(", gap {gap}"));
        format!(
            "{version}: back on another path within {patience_s} s after {back} of {times}{gap}, \
             {lost} of {sent} lost"
        )
    }

    // That a peer stays where it is, is what was to be found out.
    fn is_whole(&self) -> bool {
        self.times > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(program: Program, gaps: &[Option<u64>]) -> (Program, Silent) {
        let sample =
            |gap: &Option<u64>| Sample { gap: gap.map(Duration::from_millis), sent: 100, lost: 10 };
        let samples: Vec<Sample> = gaps.iter().map(sample).collect();
        (program, Silent::of(String::new(), Duration::from_secs(20), &samples))
    }

    fn met(gaps: &[Option<u64>]) -> Vec<bool> {
        let results = [result(Program::Bewick, gaps), result(Program::Strongswan, &[None])];
        goals(&results).iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn each_time_counts_and_so_does_the_longest() {
        assert_eq!(met(&[Some(3000), Some(1500)]), [true, true]);
        assert_eq!(met(&[Some(3001), Some(1500)]), [true, false]);
        assert_eq!(met(&[Some(2000), None]), [false, true]);
        assert_eq!(met(&[None, None]), [false, false]);
        assert!(goals(&[result(Program::Bewick, &[None])]).is_empty());
        let (_, silent) = result(Program::Bewick, &[Some(2000), None]);
        assert_eq!(silent.gap_ms_all, [Some(2000.0), None]);
    }
}
