//! Turns what happens into records: for `bewick events`, for the clients that wait, and for the log.

use std::{net::IpAddr, sync::Arc, time::Instant};

use bewick_ike::{CloseReason, ConnectionId};
use bewick_mobike::Event;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;
use tracing::{Level, debug, info, warn};

use crate::{control::EventRecord, net::LocalAddress};

/// Makes the records of one run of the daemon.
pub(super) struct Recorder {
    started: Instant,
    names: Vec<String>,
    /// whether the log may show addresses
    log_addresses: bool,
    events: broadcast::Sender<Arc<EventRecord>>,
    last: Arc<EventRecord>,
}

impl Recorder {
    /// Times count from `started`; `names` are the connections'.
    pub(super) fn new(
        started: Instant,
        names: Vec<String>,
        log_addresses: bool,
        events: broadcast::Sender<Arc<EventRecord>>,
    ) -> Self {
        let last = Arc::new(EventRecord {
            at_ms: 0,
            event: "started".into(),
            connection: None,
            fields: Map::new(),
            text: "the daemon runs".into(),
        });
        Recorder { started, names, log_addresses, events, last }
    }

    /// The newest record.
    pub(super) fn last(&self) -> Arc<EventRecord> {
        self.last.clone()
    }

    /// Something that the machines say.
    pub(super) fn event(&mut self, event: &Event) {
        let level = match event {
            Event::Closed { reason, .. } => match reason {
                CloseReason::Local | CloseReason::PeerDeleted | CloseReason::Replaced => {
                    Level::INFO
                }
                _ => Level::WARN,
            },
            Event::Refused { .. }
            | Event::MoveFailed { .. }
            | Event::LeftBehind { .. }
            | Event::Stranded { .. }
            | Event::HeldOff { .. }
            | Event::Waiting { .. } => Level::WARN,
            // Traffic that is never answered makes a pair of these every 10 s, for as long as it goes.
            Event::Suspected { .. } | Event::Alive { .. } => Level::DEBUG,
            _ => Level::INFO,
        };
        self.record(level, event.name(), event.connection(), fields(event), event.to_string());
    }

    /// Our addresses were `before` and are `now`: one record for each that has gone or come.
    pub(super) fn addresses(&mut self, before: &[LocalAddress], now: &[LocalAddress]) {
        let same =
            |a: &LocalAddress, b: &LocalAddress| (a.address, a.ifindex) == (b.address, b.ifindex);
        for gone in before.iter().filter(|a| !now.iter().any(|b| same(a, b))) {
            let text = format!("address {} on {} is gone", gone.address, gone.interface);
            self.record(Level::INFO, "address-gone", None, address_fields(gone), text);
        }
        for come in now.iter().filter(|a| !before.iter().any(|b| same(a, b))) {
            let text = format!("address {} on {} can be used", come.address, come.interface);
            self.record(Level::INFO, "address-usable", None, address_fields(come), text);
        }
    }

    fn record(
        &mut self,
        level: Level,
        name: &str,
        connection: Option<ConnectionId>,
        fields: Map<String, Value>,
        text: String,
    ) {
        let connection = connection.and_then(|id| self.names.get(id.0)).cloned();
        let logged = if self.log_addresses { text.clone() } else { without_addresses(&text) };
        let shown = connection.as_deref();
        match level {
            Level::WARN => warn!(event = name, connection = shown, "{logged}"),
            Level::DEBUG => debug!(event = name, connection = shown, "{logged}"),
            _ => info!(event = name, connection = shown, "{logged}"),
        }
        let at_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last = Arc::new(EventRecord { at_ms, event: name.into(), connection, fields, text });
        // nobody listens most of the time
        let _ = self.events.send(self.last.clone());
    }
}

fn address_fields(local: &LocalAddress) -> Map<String, Value> {
    object(json!({ "address": local.address, "interface": local.interface }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// The particulars of an event by name.
fn fields(event: &Event) -> Map<String, Value> {
    let ms = |took: &std::time::Duration| took.as_secs_f64() * 1000.0;
    object(match event {
        Event::Connecting { path, .. } => json!({ "local": path.local, "remote": path.remote }),
        Event::Waiting { .. } | Event::Stranded { .. } => json!({}),
        Event::Established { established, path, mobike } => json!({
            "local": path.local,
            "remote": path.remote,
            "peer": established.peer,
            "mobike": mobike,
            "virtual_ips": established.virtual_ips,
            "dns": established.dns,
            "dns_domains": established.domains,
            "subnets": established.subnets.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
        Event::Rekeyed { spis, .. } => json!({
            "spi_i": format!("{:016x}", spis.0),
            "spi_r": format!("{:016x}", spis.1),
        }),
        Event::Moving { from, to, cause, .. } => json!({
            "from": from.local,
            "to": to.local,
            "remote_from": from.remote,
            "remote_to": to.remote,
            "cause": cause.to_string(),
        }),
        Event::Moved { from, to, cause, took, tried, .. } => json!({
            "from": from.local,
            "to": to.local,
            "remote_from": from.remote,
            "remote_to": to.remote,
            "cause": cause.to_string(),
            "took_ms": ms(took),
            "tried": tried.iter().map(|tried| json!({
                "local": tried.path.local,
                "remote": tried.path.remote,
                "after_ms": ms(&tried.after),
                "answered_ms": tried.answered.as_ref().map(ms),
            })).collect::<Vec<_>>(),
        }),
        Event::Suspected { path, hint, .. } => json!({
            "local": path.local,
            "remote": path.remote,
            "hint": hint.to_string(),
        }),
        Event::Alive { path, after, .. } => json!({
            "local": path.local,
            "remote": path.remote,
            "after_ms": ms(after),
        }),
        Event::LeftBehind { child, from, .. } => json!({
            "child": child,
            "local": from.local,
            "remote": from.remote,
        }),
        Event::MoveFailed { to, error, .. } => json!({
            "to": to.local,
            "remote_to": to.remote,
            "error": error.0,
        }),
        Event::PeerAddresses { addresses, .. } => json!({ "addresses": addresses }),
        Event::Closed { path, reason, .. } | Event::Refused { path, reason } => json!({
            "local": path.local,
            "remote": path.remote,
            "reason": reason.to_string(),
        }),
        Event::Wanted { child, packet, .. } => json!({
            "child": child,
            "local": packet.local.to_string(),
            "remote": packet.remote.to_string(),
        }),
        Event::HeldOff { child, after, .. } => json!({ "child": child, "after_ms": ms(after) }),
        Event::Retrying { after, .. } => json!({ "after_ms": ms(after) }),
    })
}

/// `text` with every address in it replaced, for a log that may not show where people are.
fn without_addresses(text: &str) -> String {
    let is_address =
        |word: &str| word.parse::<IpAddr>().is_ok() || word.parse::<std::net::SocketAddr>().is_ok();
    let hide = |word: &str| {
        let bare = word.trim_end_matches([',', ';', ':', '.', ')']).trim_start_matches('(');
        // a colon at the end may belong to an IPv6 address
        match [word, bare].into_iter().find(|bare| is_address(bare)) {
            Some(address) => word.replacen(address, "[address]", 1),
            None => word.to_owned(),
        }
    };
    text.split(' ').map(hide).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_hides_addresses_unless_it_may_show_them() {
        assert_eq!(
            without_addresses(
                "moved from 10.0.0.1:4500 -> 192.0.2.1:4500 to [2001:db8::1]:4500 -> \
                 [2001:db8::2]:4500 in 3.2 ms: our address 2001:db8::7 is gone"
            ),
            "moved from [address] -> [address] to [address] -> [address] in 3.2 ms: our address \
             [address] is gone"
        );
        assert_eq!(without_addresses("(10.0.0.1), 10.0.0.2:"), "([address]), [address]:");
        assert_eq!(without_addresses("next try in 1.0 s"), "next try in 1.0 s");
    }
}
