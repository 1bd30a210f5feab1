//! The `[[connection.child]]` tables: CHILD_SAs beside the connection's first (RFC 7296 §1.3.1).

use std::ops::Range;

use bewick_ike::{
    Mode,
    config::{ChildConfig, EspProposal, Role, Selectors},
};
use toml::de::DeValue;

use crate::config::{
    connection::{proposals, traffic},
    mode, proposal,
    reader::{TableReader, type_name},
};

/// What all of them may be.
const MOST: usize = 32;

/// Reads the tables of a connection.
pub(super) fn tables(
    connection: &mut TableReader<'_, '_, '_>,
    role: Option<Role>,
    of_connection: &[EspProposal],
    transports: &mut Vec<Range<usize>>,
) -> Vec<ChildConfig> {
    let Some(value) = connection.value("child") else { return Vec::new() };
    let DeValue::Array(array) = value.get_ref() else {
        let found = type_name(value.get_ref());
        let text = format!("child is {found}; expected tables [[connection.child]]");
        connection.report.add(&value.span(), text);
        return Vec::new();
    };
    if array.len() > MOST {
        let text = format!("{} tables [[connection.child]]; expected at most {MOST}", array.len());
        connection.report.add(&value.span(), text);
    }
    let mut out: Vec<ChildConfig> = Vec::new();
    for item in array.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            let text = "child has something else than tables in it; expected [[connection.child]]";
            connection.report.add(&item.span(), text);
            continue;
        };
        let name = "[[connection.child]]";
        let mut reader = TableReader::new(table, item.span(), name, connection.report);
        if let Some(child) = read(&mut reader, role, of_connection, transports) {
            if out.iter().any(|other| other.name == child.name) {
                let text = format!(
                    "a child named {:?} stands further up; expected a name of its own",
                    child.name
                );
                reader.report.add(&item.span(), text);
            }
            out.push(child);
        }
        reader.finish();
    }
    out
}

fn read(
    reader: &mut TableReader<'_, '_, '_>,
    role: Option<Role>,
    of_connection: &[EspProposal],
    transports: &mut Vec<Range<usize>>,
) -> Option<ChildConfig> {
    let name = reader.string("name", "a name for the CHILD_SA");
    if name.is_none() && reader.key_span("name").is_none() {
        reader.missing("name is missing; expected a name for the CHILD_SA");
    }
    // What the connection says holds for all of it.
    let esp_proposals = match reader.key_span("esp_proposals") {
        Some(_) => proposals(reader, "esp_proposals", &proposal::ESP_DEFAULTS, proposal::esp),
        None => of_connection.to_vec(),
    };
    let mode = mode::read(reader, transports);
    let local_ts = traffic(reader, "local_ts");
    let remote_ts = traffic(reader, "remote_ts");
    let (needed, key, text) = match role {
        Some(Role::Responder) => (&local_ts, "local_ts", "the networks that the peer may reach"),
        _ => (&remote_ts, "remote_ts", "the networks on the peer's side"),
    };
    let needs = mode == Mode::Tunnel;
    if needs && needed.is_none() && reader.key_span(key).is_none() {
        reader.missing(format!("{key} is missing; expected {text}, such as [\"10.2.0.0/16\"]"));
    }
    Some(ChildConfig {
        name: name?.value.into(),
        mode,
        esp_proposals,
        ts_local: local_ts.map_or(Selectors::Dynamic, Selectors::List),
        ts_remote: remote_ts.map_or(Selectors::Dynamic, Selectors::List),
    })
}
