//! Prints what a move costs in the simulator, against the goals, and fails if one is missed.
//!
//! `cargo run --release -p bewick-tests --bin handover`: a table for people, `--json` for programs.

use std::{process::ExitCode, time::Duration};

use bewick_tests::handover::{CASES, Figure, Sample, forged_errors, percentile};

fn ms(time: Duration) -> String {
    format!("{:.0}", time.as_secs_f64() * 1000.0)
}

fn main() -> ExitCode {
    let json = std::env::args().any(|argument| argument == "--json");
    let mut all = true;
    if !json {
        println!(
            "Time without a packet from the gateway, in ms of simulated time, under 1000 packets a \
             second each way.\n"
        );
        println!("| case | round trip | p50 | p95 | max | lost, most | goal | reached |");
        println!("|---|---|---|---|---|---|---|---|");
    }
    let mut lines = Vec::new();
    for case in &CASES {
        for rtt in [20, 50, 150].map(Duration::from_millis) {
            let samples: Vec<Sample> = (1..=case.runs).map(|seed| (case.run)(rtt, seed)).collect();
            let mut gaps: Vec<Duration> = samples.iter().map(|sample| sample.down).collect();
            gaps.sort_unstable();
            let reached = case.is_reached(rtt, &samples);
            all &= reached;
            let of = |percent| ms(percentile(&gaps, percent).unwrap_or_default());
            let (p50, p95, max) = (of(50), of(95), of(100));
            let lost = samples.iter().map(|sample| sample.lost).max().unwrap_or(0);
            let moves: usize = samples.iter().map(|sample| sample.moves).sum();
            let goal = match case.goal.0 {
                Figure::Longest => format!("max {}", ms(case.limit(rtt))),
                Figure::P95 => format!("p95 {}", ms(case.limit(rtt))),
                Figure::Moves => "0 moves".into(),
            };
            if json {
                lines.push(format!(
                    "{{\"case\":{:?},\"rtt_ms\":{},\"runs\":{},\"p50_ms\":{p50},\"p95_ms\":{p95},\
                     \"max_ms\":{max},\"lost_most\":{lost},\"moves\":{moves},\"goal\":{goal:?},\
                     \"reached\":{reached}}}",
                    case.name,
                    rtt.as_millis(),
                    samples.len(),
                ));
            } else {
                let (name, rtt) = (case.name, rtt.as_millis());
                let said = if case.goal.0 == Figure::Moves {
                    format!("| {name} | {rtt} | | | | | {goal} | {moves} moves |")
                } else {
                    let yes = if reached { "yes" } else { "NO" };
                    format!("| {name} | {rtt} | {p50} | {p95} | {max} | {lost} | {goal} | {yes} |")
                };
                println!("{said}");
            }
        }
    }
    let (moves, asked) = forged_errors(1000, 10);
    all &= moves == 0;
    if json {
        lines.push(format!(
            "{{\"case\":\"10,000 forged ICMP errors in 10 s\",\"moves\":{moves},\"requests\":{asked},\
             \"reached\":{}}}",
            moves == 0
        ));
        println!("[{}]", lines.join(",\n"));
    } else {
        println!("\n10,000 forged ICMP errors in 10 s: {moves} moves, {asked} messages sent.");
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
