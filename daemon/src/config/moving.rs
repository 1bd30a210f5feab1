//! The keys of a connection that say how it moves (RFC 4555).

use std::time::Duration;

use bewick_ike::Role;
use bewick_mobike::{ConnectionPolicy, LEAST_FOUND, TcpUse, dead_after};
use ipnet::IpNet;

use super::{NO_TCP, PlaneChoice, networks, reader::TableReader};

/// What only a responder decides.
const RESPONDER_KEYS: [&str; 6] =
    ["peer_from", "peer_not_from", "peer_family", "peer_nat", "peer_any_port", "esp_follow"];

/// What only an initiator decides.
const INITIATOR_KEYS: [&str; 8] = [
    "dead_after_ms",
    "found_within_ms",
    "back_after",
    "standby",
    "standby_metered",
    "probing",
    "tcp",
    "tcp_port",
];

/// Reads them; what is wrong is in the reader's report.
pub(super) fn read(
    reader: &mut TableReader<'_, '_, '_>,
    role: Option<Role>,
    dataplane: PlaneChoice,
) -> ConnectionPolicy {
    let mut out = ConnectionPolicy::default();
    // RFC 4555 §3.11: five minutes at least.
    if let Some(field) = reader.number("hold", 300..=604_800, "seconds") {
        out.hold = Duration::from_secs(field.value);
    }
    out.accept_peer_addresses =
        reader.bool("accept_peer_addresses").is_none_or(|field| field.value);
    let nets = |list: Vec<(IpNet, _)>| list.into_iter().map(|(net, _)| net).collect();
    out.announce = networks(reader, "announce").map(nets);
    if role != Some(Role::Initiator) {
        let accept = &mut out.accept;
        accept.allow = networks(reader, "peer_from").map(nets).unwrap_or_default();
        accept.deny = networks(reader, "peer_not_from").map(nets).unwrap_or_default();
        let families = [("both", (true, true)), ("ipv4", (true, false)), ("ipv6", (false, true))];
        (accept.ipv4, accept.ipv6) = reader.word("peer_family", &families).unwrap_or((true, true));
        accept.nat = reader.bool("peer_nat").is_none_or(|field| field.value);
        accept.any_port = reader.bool("peer_any_port").is_none_or(|field| field.value);
        out.esp_follow = reader.bool("esp_follow").is_some_and(|field| field.value);
    } else {
        for key in RESPONDER_KEYS {
            reader.refuse(key, "is for role = \"responder\"; remove it");
        }
    }
    if role == Some(Role::Responder) {
        for key in INITIATOR_KEYS {
            reader.refuse(key, "is for role = \"initiator\"; remove it");
        }
        return out;
    }
    if let Some(field) = reader.number("dead_after_ms", 0..=60_000, "milliseconds") {
        out.dead_after = Duration::from_millis(field.value);
    }
    let least = u64::try_from(LEAST_FOUND.as_millis()).unwrap_or(u64::MAX);
    let (found, unit) = ("found_within_ms", "milliseconds, for answers that take 100 at most");
    let both = reader.key_span(found).filter(|_| reader.key_span("dead_after_ms").is_some());
    if let Some(field) = reader.number(found, least..=60_000, unit) {
        out.dead_after = dead_after(Duration::from_millis(field.value));
    }
    if let Some(span) = both {
        let text =
            format!("{found} and dead_after_ms say the same in two ways; remove one of them");
        reader.report.add(&span, text);
    }
    if let Some(field) = reader.number("standby", 0..=3600, "seconds") {
        out.standby = Duration::from_secs(field.value);
    }
    if let Some(field) = reader.number("back_after", 0..=86_400, "seconds") {
        out.back_after = Duration::from_secs(field.value);
    }
    out.standby_metered = reader.bool("standby_metered").is_some_and(|field| field.value);
    let ways = [("race", false), ("strict", true)];
    out.strict = reader.word("probing", &ways).unwrap_or(false);
    // RFC 9329 §5
    let uses = [("off", TcpUse::Off), ("fallback", TcpUse::Fallback), ("always", TcpUse::Always)];
    out.tcp = reader.word("tcp", &uses).unwrap_or_default();
    if let Some(span) = reader.key_span("tcp").filter(|_| out.tcp != TcpUse::Off)
        && dataplane == PlaneChoice::Kernel
    {
        reader.report.add(&span, format!("tcp: {NO_TCP}"));
    }
    if let Some(port) = reader.number("tcp_port", 1..=65_535, "the gateway's TCP port") {
        out.tcp_port = u16::try_from(port.value).unwrap_or(out.tcp_port);
    }
    out
}
