//! The keys of a connection that say how it moves (RFC 4555).

use std::time::Duration;

use bewick_ike::Role;
use bewick_mobike::ConnectionPolicy;

use super::reader::TableReader;

/// What only an initiator decides.
const INITIATOR_KEYS: [&str; 4] = ["dead_after_ms", "standby", "standby_metered", "probing"];

/// Reads them; what is wrong is in the reader's report.
pub(super) fn read(reader: &mut TableReader<'_, '_, '_>, role: Option<Role>) -> ConnectionPolicy {
    let mut out = ConnectionPolicy::default();
    // RFC 4555 §3.11: five minutes at least.
    if let Some(field) = reader.number("hold", 300..=604_800, "seconds") {
        out.hold = Duration::from_secs(field.value);
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
    if let Some(field) = reader.number("standby", 0..=3600, "seconds") {
        out.standby = Duration::from_secs(field.value);
    }
    out.standby_metered = reader.bool("standby_metered").is_some_and(|field| field.value);
    let ways = [("race", false), ("strict", true)];
    out.strict = reader.word("probing", &ways).unwrap_or(false);
    out
}
