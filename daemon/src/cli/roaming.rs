//! Paths and moves for a person's eyes.

use std::fmt::Write;

use crate::control::roaming::{
    ConnectionPaths, MoveRecord, Moves, Outcome, PathRecord, Paths, PromiseRecord,
};

/// The pairs of each connection, the one in use with a star.
pub fn paths(paths: &Paths) -> String {
    let mut out = String::new();
    for (i, connection) in paths.connections.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        connection_paths(&mut out, connection);
    }
    out
}

// writing to a String can't fail, here and below
fn connection_paths(out: &mut String, connection: &ConnectionPaths) {
    if connection.ike_sas.is_empty() {
        let _ = writeln!(out, "{}: not established", connection.name);
    }
    for sa in &connection.ike_sas {
        let _ = writeln!(out, "{}: {}, {}", connection.name, sa.remote_id, primary(&sa.primary));
        let shown: Vec<(String, &PathRecord)> =
            sa.paths.iter().map(|path| (pair(path), path)).collect();
        let width = shown.iter().map(|(pair, _)| pair.len()).max().unwrap_or(0);
        for (pair, path) in shown {
            let star = if path.current { '*' } else { ' ' };
            let _ = writeln!(out, "  {star} {pair:<width$}  {}", standing(path));
        }
        if let Some(promise) = &sa.promise {
            let _ = writeln!(out, "    {}", told(promise));
        }
    }
}

fn told(promise: &PromiseRecord) -> String {
    let within = |ms: Option<u64>| match ms {
        Some(ms) => format!("within {:.1} s", ms as f64 / 1000.0),
        None => "never".to_owned(),
    };
    let costs = [
        (promise.standby_per_hour, "questions to other paths"),
        (promise.keepalives_per_hour, "keepalives"),
        (promise.liveness_per_hour, "questions to this one at most"),
    ];
    let cost = costs.iter().filter(|(count, _)| *count > 0);
    let cost: Vec<String> = cost.map(|(count, what)| format!("{count} {what}")).collect();
    let cost = if cost.is_empty() { "nothing".to_owned() } else { cost.join(", ") };
    format!(
        "a dead path is found {} while traffic flows, {} while none does; at rest that costs an hour \
         {cost}",
        within(promise.busy_ms),
        within(promise.idle_ms)
    )
}

fn primary(state: &str) -> &str {
    match state {
        "none" => "no path is left",
        "testing" => "the path in use is being tested",
        "operational" => "the path in use works",
        other => other,
    }
}

fn pair(path: &PathRecord) -> String {
    match &path.interface {
        Some(interface) => format!("{} ({interface}) -> {}", path.local, path.remote),
        None => format!("{} -> {}", path.local, path.remote),
    }
}

fn standing(path: &PathRecord) -> String {
    let mut notes = vec![path.state.clone()];
    notes.extend(path.rtt_ms.map(|rtt| format!("{rtt:.1} ms")));
    notes.extend(path.loss_percent.map(|loss| format!("{loss} % lost")));
    notes.extend(path.age_ms.map(|age| format!("answered {:.1} s ago", age as f64 / 1000.0)));
    notes.extend(path.nat.map(|nat| if nat { "NAT" } else { "no NAT" }.to_owned()));
    notes.push(if path.validated { "validated" } else { "not validated" }.to_owned());
    notes.extend(path.seen_as.map(|seen| format!("seen as {seen}")));
    notes.extend(path.one_way.then(|| "the peer hears us and we do not hear it".to_owned()));
    notes.join(", ")
}

/// A paragraph for each move, the oldest first.
pub fn moves(moves: &Moves) -> String {
    if moves.moves.is_empty() {
        return "nothing has moved since the daemon started\n".to_owned();
    }
    let mut out = String::new();
    for one in &moves.moves {
        one_move(&mut out, one);
    }
    out
}

fn one_move(out: &mut String, one: &MoveRecord) {
    let (seconds, millis) = (one.at_ms / 1000, one.at_ms % 1000);
    let took = one.took_ms.map(|took| format!(" {took:.1} ms")).unwrap_or_default();
    let end = match one.outcome {
        Outcome::Moving => "under way".to_owned(),
        Outcome::Moved => format!("moved in{took}"),
        Outcome::Failed => format!("failed after{took}"),
    };
    let _ = writeln!(
        out,
        "{}  {seconds:>6}.{millis:03} s  {:<14}  {end}: {}",
        one.time, one.connection, one.cause
    );
    let _ = writeln!(
        out,
        "    {} -> {}  to  {} -> {}",
        one.from, one.remote_from, one.to, one.remote_to
    );
    if let Some(error) = &one.error {
        let _ = writeln!(out, "    {error}");
    }
    for tried in &one.tried {
        let answer = match tried.answered_ms {
            Some(ms) => format!("answered in {ms:.1} ms"),
            None => "no answer".to_owned(),
        };
        let after = tried.after_ms;
        let _ = writeln!(
            out,
            "    asked {} -> {} after {after:.1} ms: {answer}",
            tried.local, tried.remote
        );
    }
    let plural = if one.children == 1 { "" } else { "s" };
    let _ = writeln!(
        out,
        "    {} CHILD_SA{plural}, {} netlink requests, {:.2} ms in the data plane",
        one.children, one.requests, one.plane_ms
    );
    if let (Some(gap), Some(lost)) = (one.gap_ms, one.lost_in) {
        let _ = writeln!(out, "    {gap:.1} ms without a packet from the peer, {lost} of its lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::roaming::samples;

    #[test]
    fn the_path_in_use_has_a_star() {
        let office = ConnectionPaths { name: "office".into(), ike_sas: vec![samples::sa()] };
        let lab = ConnectionPaths { name: "lab".into(), ike_sas: Vec::new() };
        assert_eq!(
            paths(&Paths { connections: vec![office, lab] }),
            "office: vpn.example.com, the path in use works\n  \
             * 10.0.1.2:4500 (wlan0) -> 192.0.2.1:4500  operational, 12.3 ms, 0 % lost, answered \
             3.2 s ago, NAT, validated\n    \
             10.0.20.2:4500 -> 192.0.2.1:4500         untried, not validated\n    \
             a dead path is found within 2.0 s while traffic flows, within 31.1 s while none does; at \
             rest that costs an hour 144 questions to other paths, 180 keepalives, 120 questions to \
             this one at most\n\n\
             lab: not established\n"
        );
    }

    #[test]
    fn a_move_is_a_paragraph() {
        assert_eq!(
            moves(&Moves { moves: vec![samples::moved()] }),
            "2026-11-22T10:11:12.013Z      61.007 s  office          moved in 3.2 ms: asked for\n    \
             10.0.1.2:4500 -> 192.0.2.1:4500  to  10.0.2.2:4500 -> 192.0.2.1:4500\n    \
             asked 10.0.2.2:4500 -> 192.0.2.1:4500 after 100.0 ms: answered in 7.0 ms\n    \
             1 CHILD_SA, 4 netlink requests, 0.50 ms in the data plane\n"
        );
        let shown = moves(&Moves { moves: vec![samples::failed()] });
        assert!(shown.contains("failed after 3.2 ms: asked for\n"), "{shown}");
        assert!(shown.contains("\n    no\n"), "{shown}");
        assert!(moves(&Moves { moves: Vec::new() }).starts_with("nothing has moved"));
    }
}
