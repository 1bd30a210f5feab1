//! What a move costs, in virtual time: the cases that Bewick promises figures for.
//!
//! Each case builds a client and a gateway, takes something away from them, and measures for how long
//! numbered packets, one each millisecond in either direction, did not come through.

use std::{net::IpAddr, time::Duration};

use bewick_mobike::{Event, ReturnRoutability};

use crate::{
    lab::{Lab, Plan},
    link::{Chance, Link},
    net::{Realm, UplinkId},
    pair::{FlowId, Input},
};

const MS: Duration = Duration::from_millis(1);

/// What one run of a case gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// the longest time without a packet from the gateway
    pub down: Duration,
    /// the longest time without a packet from the client
    pub up: Duration,
    /// packets that never came, of both directions
    pub lost: usize,
    /// moves that the client made
    pub moves: usize,
}

/// Which of the figures of a case a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// the time without a packet from the gateway, the longest of all runs
    Longest,
    /// the same, of 95 in 100 runs
    P95,
    /// how often the client moved
    Moves,
}

/// One case.
pub struct Case {
    /// a name
    pub name: &'static str,
    /// runs it with a round-trip time and a seed
    pub run: fn(Duration, u64) -> Sample,
    /// what the goal is about, and the most that it may be: round-trip times and a time beside
    pub goal: (Figure, u32, Duration),
    /// runs for each round-trip time
    pub runs: u64,
}

impl Case {
    /// The goal as a time, for this round-trip time.
    pub fn limit(&self, rtt: Duration) -> Duration {
        rtt * self.goal.1 + self.goal.2
    }

    /// Whether these runs reach the goal.
    pub fn is_reached(&self, rtt: Duration, samples: &[Sample]) -> bool {
        let mut gaps: Vec<Duration> = samples.iter().map(|sample| sample.down).collect();
        gaps.sort_unstable();
        match self.goal.0 {
            Figure::Longest => gaps.last().is_some_and(|gap| *gap <= self.limit(rtt)),
            Figure::P95 => percentile(&gaps, 95).is_some_and(|gap| gap <= self.limit(rtt)),
            Figure::Moves => samples.iter().all(|sample| sample.moves == 0),
        }
    }
}

/// The value that so many in a hundred are not above; `sorted` is in order.
pub fn percentile(sorted: &[Duration], percent: usize) -> Option<Duration> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

/// Every case.
pub const CASES: [Case; 10] = [
    Case {
        name: "address gone, checked before (RFC 4555's default)",
        run: |rtt, seed| address_gone(rtt, seed, ReturnRoutability::Before, false),
        goal: (Figure::Longest, 2, Duration::from_millis(10)),
        runs: 20,
    },
    Case {
        name: "address gone, checked after",
        run: |rtt, seed| address_gone(rtt, seed, ReturnRoutability::After, false),
        goal: (Figure::Longest, 1, Duration::from_millis(10)),
        runs: 20,
    },
    Case {
        name: "address gone, validated beforehand (warm standby)",
        run: |rtt, seed| address_gone(rtt, seed, ReturnRoutability::Before, true),
        goal: (Figure::Longest, 1, Duration::from_millis(10)),
        runs: 20,
    },
    Case {
        name: "planned move",
        run: planned,
        goal: (Figure::Longest, 0, Duration::from_millis(10)),
        runs: 20,
    },
    Case {
        name: "silent death, 2 pairs",
        run: |rtt, seed| silent(rtt, seed, (2, 1), Chance::percent(0)),
        goal: (Figure::Longest, 3, Duration::from_millis(2500)),
        runs: 20,
    },
    Case {
        name: "silent death, 16 pairs, only the last one works",
        run: |rtt, seed| silent(rtt, seed, (4, 4), Chance::percent(0)),
        goal: (Figure::Longest, 2, Duration::from_millis(3900)),
        runs: 20,
    },
    Case {
        name: "the same with 20 % loss on the one that works",
        run: |rtt, seed| silent(rtt, seed, (4, 4), Chance::percent(20)),
        goal: (Figure::P95, 0, Duration::from_secs(10)),
        runs: 100,
    },
    Case {
        name: "a NAT forgets us under traffic",
        run: nat_rebinding,
        goal: (Figure::Longest, 3, Duration::from_millis(2000)),
        runs: 20,
    },
    Case {
        name: "30 minutes without any link, then one",
        run: outage,
        goal: (Figure::Longest, 2, Duration::from_millis(10)),
        runs: 10,
    },
    Case {
        name: "moves without need: a day at 2 % loss and 300 ms jitter",
        run: quiet_day,
        goal: (Figure::Moves, 0, Duration::ZERO),
        runs: 1,
    },
];

fn plan(seed: u64) -> Plan {
    let mut plan = Plan { seed, ..Plan::default() };
    plan.client_policy.keep_up = true;
    plan
}

/// Both uplinks have that round-trip time.
fn established(plan: Plan, rtt: Duration) -> Lab {
    let mut lab = Lab::new(plan);
    lab.link(Link::of_delay(rtt / 2));
    lab.up();
    assert!(lab.is_up(), "{}", lab.story());
    lab.seconds(3);
    lab
}

fn moves(lab: &Lab) -> usize {
    lab.count(lab.client, "moved")
}

fn flows(lab: &mut Lab, seconds: u64) -> [FlowId; 2] {
    lab.flows(Duration::from_secs(seconds))
}

/// What became of the flows since `from`; whatever is under way has arrived.
fn judge(lab: &mut Lab, flows: [FlowId; 2], from: bewick_ike::Time, rtt: Duration) -> Sample {
    let to = lab.world.now();
    lab.world.run_for(rtt + Duration::from_secs(2));
    let [out, back] = flows.map(|flow| lab.world.flow(flow));
    // What was on its way when it happened still comes.
    Sample {
        down: back.longest_gap(from, to),
        up: out.longest_gap(from, to),
        lost: out.lost().len() + back.lost().len(),
        moves: moves(lab),
    }
}

fn address_gone(rtt: Duration, seed: u64, check: ReturnRoutability, warm: bool) -> Sample {
    let mut plan = plan(seed);
    plan.gateway_policy.return_routability = check;
    if warm {
        plan.client_policy.standby = Duration::from_secs(10);
    }
    let mut lab = established(plan, rtt);
    lab.seconds(if warm { 20 } else { 1 });
    lab.ms(seed % 97);
    let flows = flows(&mut lab, 4);
    lab.seconds(1);
    let from = lab.world.now();
    let wlan = lab.wlan;
    lab.world.set_up(wlan, false);
    lab.seconds(2);
    judge(&mut lab, flows, from, rtt)
}

fn planned(rtt: Duration, seed: u64) -> Sample {
    let mut lab = established(plan(seed), rtt);
    let flows = flows(&mut lab, 4);
    lab.seconds(1);
    lab.ms(seed % 97);
    let from = lab.world.now();
    lab.move_to(lab.lte());
    lab.seconds(2);
    judge(&mut lab, flows, from, rtt)
}

/// A client with `size.0` uplinks and a gateway with `size.1` addresses; the pair in use is the first.
///
/// # Panics
/// If it does not come up.
pub fn many_pairs(
    plan: Plan,
    rtt: Duration,
    size: (u8, u8),
) -> (Lab, Vec<UplinkId>, Vec<UplinkId>) {
    let mut lab = Lab::new(plan);
    let address = |net: u8, last: u8| IpAddr::from([198, 18, net, last]);
    let (mut ours, mut theirs) = (vec![lab.wlan, lab.lte()], vec![lab.wan]);
    for n in 2..size.0 {
        let name = format!("up{n}");
        let uplink =
            lab.world.net.add_uplink(lab.client_host, &name, Realm::Internet, &[address(1, n)]);
        ours.push(uplink);
    }
    for n in 1..size.1 {
        let name = format!("wan{n}");
        let uplink =
            lab.world.net.add_uplink(lab.gateway_host, &name, Realm::Internet, &[address(2, n)]);
        theirs.push(uplink);
    }
    for one in &ours {
        for other in &theirs {
            lab.world.net.set_links(*one, *other, Link::of_delay(rtt / 2));
        }
    }
    lab.world.tell_all();
    lab.up();
    assert!(lab.is_up(), "{}", lab.story());
    lab.seconds(3);
    (lab, ours, theirs)
}

/// Everything but the last pair swallows all packets, without any event.
fn silent(rtt: Duration, seed: u64, size: (u8, u8), loss: Chance) -> Sample {
    let (mut lab, ours, theirs) = many_pairs(plan(seed), rtt, size);
    let seconds = 30;
    let flows = flows(&mut lab, seconds + 2);
    lab.seconds(1);
    lab.ms(seed % 251);
    let from = lab.world.now();
    for one in &ours {
        for other in &theirs {
            let last = (Some(one), Some(other)) == (ours.last(), theirs.last());
            let hole = Link { black_hole: true, ..Link::of_delay(rtt / 2) };
            let good = Link { loss, ..Link::of_delay(rtt / 2) };
            lab.world.net.set_links(*one, *other, if last { good } else { hole });
        }
    }
    lab.seconds(seconds);
    judge(&mut lab, flows, from, rtt)
}

fn nat_rebinding(rtt: Duration, seed: u64) -> Sample {
    let mut lab = established(Plan { nat_wlan: true, ..plan(seed) }, rtt);
    let flows = flows(&mut lab, 12);
    lab.seconds(1);
    lab.ms(seed % 251);
    let from = lab.world.now();
    let nat = lab.wlan_nat.expect("a NAT");
    lab.world.net.forget_mappings(nat);
    lab.seconds(10);
    judge(&mut lab, flows, from, rtt)
}

fn outage(rtt: Duration, seed: u64) -> Sample {
    let mut lab = established(plan(seed), rtt);
    let (wlan, lte) = (lab.wlan, lab.lte());
    // The one in use last: with none to go to, nothing is under way when it goes.
    for uplink in [lte, wlan] {
        lab.world.set_up(uplink, false);
        lab.seconds(1);
    }
    lab.seconds(30 * 60 - 1);
    let flows = flows(&mut lab, 5);
    lab.seconds(1);
    let from = lab.world.now();
    lab.world.set_up(if seed.is_multiple_of(2) { wlan } else { lte }, true);
    lab.seconds(3);
    let connecting = lab.count(lab.client, "connecting");
    assert_eq!(connecting, 1, "no new authentication: {}", lab.story());
    judge(&mut lab, flows, from, rtt)
}

/// A packet each second in either direction, on links that are bad.
fn quiet_day(rtt: Duration, seed: u64) -> Sample {
    let mut lab = established(plan(seed), rtt);
    lab.link(Link {
        jitter: Duration::from_millis(300),
        loss: Chance::percent(2),
        ..Link::of_delay(rtt / 2)
    });
    let day = Duration::from_secs(24 * 3600);
    let (client, gateway, second) = (lab.client, lab.gateway, Duration::from_secs(1));
    let flows = [
        lab.world.start_flow(client, gateway, second, day),
        lab.world.start_flow(gateway, client, second, day),
    ];
    let from = lab.world.now();
    lab.world.run_for(day);
    judge(&mut lab, flows, from, rtt)
}

/// Forged ICMP errors, so many a second for some seconds: moves, and requests that they caused.
pub fn forged_errors(per_second: u64, seconds: u64) -> (usize, u64) {
    let mut lab = established(plan(1), 20 * MS);
    let client = lab.client;
    let path = lab.sas(client)[0].path;
    let before = lab.world.end(client).transmitted;
    for _ in 0..per_second * seconds {
        lab.world.input(client, Input::Unreachable(path));
        lab.world.run_for(Duration::from_secs(1) / u32::try_from(per_second).unwrap_or(1));
    }
    let asked = lab.world.end(client).transmitted - before;
    let moved = |event: &&Event| matches!(event, Event::Moving { .. });
    (lab.events(client).into_iter().filter(|event| moved(event)).count(), asked)
}
