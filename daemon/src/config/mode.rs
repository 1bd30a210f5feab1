//! The mode of a CHILD_SA (RFC 4301 §4.1), and what does not go with transport mode.

use std::ops::Range;

use bewick_ike::{Mode, TrafficSelector, config::ChildConfig, config::Selectors};

use super::{PlaneChoice, Seen, reader::TableReader};

/// Reads the key of a connection or of a table inside it; where it says transport mode is noted.
pub(super) fn read(
    reader: &mut TableReader<'_, '_, '_>,
    transports: &mut Vec<Range<usize>>,
) -> Mode {
    let modes = [("tunnel", Mode::Tunnel), ("transport", Mode::Transport)];
    let mode = reader.word("mode", &modes).unwrap_or_default();
    transports.extend(reader.key_span("mode").filter(|_| mode == Mode::Transport));
    mode
}

/// What else a connection says.
pub(super) struct Beside<'a> {
    pub(super) mode: Mode,
    /// both lists of its own CHILD_SA
    pub(super) own: (Option<&'a [TrafficSelector]>, Option<&'a [TrafficSelector]>),
    pub(super) more: &'a [ChildConfig],
    pub(super) trap: bool,
    pub(super) kill_switch_always: bool,
}

/// Tells at each of `transports`, the places where a connection says transport mode, what it says
/// besides that does not go with that.
pub(super) fn check(
    reader: &mut TableReader<'_, '_, '_>,
    transports: &[Range<usize>],
    beside: &Beside<'_>,
    seen: &Seen,
) {
    if transports.is_empty() {
        return;
    }
    let is_on =
        |reader: &mut TableReader<'_, '_, '_>, key| reader.bool(key).is_some_and(|f| f.value);
    let virtual_ip = is_on(reader, "virtual_ip");
    let force_encap = is_on(reader, "force_encap");
    let pool = reader.key_span("pool").is_some();
    let if_id = reader.key_span("if_id").is_some();
    let wide = |list: Option<&[TrafficSelector]>| {
        list.is_some_and(|all| all.iter().any(|ts| ts.first() != ts.last()))
    };
    let of_children = beside.more.iter().filter(|child| child.mode == Mode::Transport);
    let own = Some(beside.own).filter(|_| beside.mode == Mode::Transport);
    let lists = of_children.map(|c| (list(&c.ts_local), list(&c.ts_remote))).chain(own);
    let is_wide = |(local, remote): (_, _)| wide(local) || wide(remote);
    let unknown = |(_, remote): (_, Option<&[TrafficSelector]>)| remote.is_none();
    let traps: Vec<_> = lists.filter(|_| beside.trap).collect();
    let not = "does not go with mode = \"transport\"";
    let problems = [
        (
            virtual_ip || pool,
            format!(
                "{} {not}, which is between the addresses that the two ends have: let mode be \"tunnel\", or \
                 remove it",
                if pool { "pool" } else { "virtual_ip" }
            ),
        ),
        (force_encap, format!("force_encap, which has ESP in UDP, {not}: remove one of them")),
        (
            if_id,
            format!("if_id {not}: the packets of the two ends do not come by an XFRM interface"),
        ),
        (
            seen.tcp_listen,
            format!("tcp_listen, which needs the userspace data plane, {not}: remove one of them"),
        ),
        (
            seen.dataplane == PlaneChoice::Userspace,
            format!("dataplane = \"userspace\" {not}: let that be \"kernel\" or \"auto\""),
        ),
        (
            beside.kill_switch_always,
            format!(
                "kill_switch = \"always\" {not}: nothing is closed between the two ends, or they could not \
                 speak IKE; let start be \"trap\", with kill_switch \"while-up\" or \"off\""
            ),
        ),
        (
            traps.iter().copied().any(is_wide) || traps.iter().copied().any(unknown),
            format!(
                "start = \"trap\" with networks, or without remote_ts, {not}: write the two ends' addresses, \
                 such as remote_ts = [\"192.0.2.1\"]"
            ),
        ),
    ];
    for (_, text) in problems.iter().filter(|(is_one, _)| *is_one) {
        for span in transports {
            reader.report.add(span, text.clone());
        }
    }
}

fn list(selectors: &Selectors) -> Option<&[TrafficSelector]> {
    match selectors {
        Selectors::List(list) => Some(list),
        Selectors::Dynamic => None,
    }
}
