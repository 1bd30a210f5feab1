//! `[[uplink]]`: what the operator says of interfaces that lead to peers.

use toml::de::DeValue;

use super::reader::{TableReader, type_name};

/// What holds for an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// the smaller, the better; before the metrics of the routes
    pub cost: u32,
    /// each octet costs money
    pub metered: bool,
    /// whether it is used at all
    pub used: bool,
}

/// What a table says of the interfaces whose names fit a pattern; what it does not say is as without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkTable {
    /// a name, with `*` for any letters
    pub interface: String,
    /// see [`Uplink::cost`]
    pub cost: Option<u32>,
    /// see [`Uplink::metered`]
    pub metered: Option<bool>,
    /// see [`Uplink::used`]; an interface that the table names in full is used
    pub used: Option<bool>,
}

/// Bridges and links of containers and virtual machines are no way to a peer.
const NO_UPLINKS: [&str; 11] = [
    "docker*", "br-*", "veth*", "virbr*", "vnet*", "podman*", "cni*", "flannel*", "lxcbr*",
    "lxdbr*", "cali*",
];

/// Modems.
const METERED: [&str; 5] = ["wwan*", "rmnet*", "ppp*", "wwp*", "usb*"];

/// What holds for an interface: what the first table that fits says, or else what its name suggests.
pub fn of(tables: &[UplinkTable], interface: &str) -> Uplink {
    let named = |patterns: &[&str]| patterns.iter().any(|pattern| fits(pattern, interface));
    let table = tables.iter().find(|table| fits(&table.interface, interface));
    // A pattern for all does not mean modems without a price, nor the bridges of containers.
    let meant = table.is_some_and(|table| {
        NO_UPLINKS.contains(&table.interface.as_str()) || !table.interface.contains('*')
    });
    Uplink {
        cost: table.and_then(|table| table.cost).unwrap_or(100),
        metered: table.and_then(|table| table.metered).unwrap_or_else(|| named(&METERED)),
        used: table.and_then(|table| table.used).unwrap_or_else(|| meant || !named(&NO_UPLINKS)),
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any letters.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(tail, rest)))
        }),
    }
}

/// The tables `[[uplink]]` of the file, in their order.
pub(super) fn tables(root: &mut TableReader<'_, '_, '_>) -> Vec<UplinkTable> {
    let Some(value) = root.value("uplink") else { return Vec::new() };
    let DeValue::Array(tables) = value.get_ref() else {
        let text = format!("uplink is {}; expected [[uplink]]", type_name(value.get_ref()));
        root.report.add(&value.span(), text);
        return Vec::new();
    };
    let mut out: Vec<UplinkTable> = Vec::new();
    for item in tables.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            let found = type_name(item.get_ref());
            root.report.add(&item.span(), format!("uplink has {found} in it; expected tables"));
            continue;
        };
        let mut reader = TableReader::new(table, item.span(), "[[uplink]]", root.report);
        let interface =
            reader.string("interface", "a name such as wlan0, or a pattern such as wl*");
        if interface.is_none() && reader.key_span("interface").is_none() {
            reader.missing("interface is missing; expected interface = \"wl*\"");
        }
        if let Some(field) = &interface {
            let name = field.value;
            let problem = if name.is_empty() {
                Some("interface is empty; expected a name such as wlan0, or a pattern such as wl*")
            } else if out.iter().any(|table| table.interface == name) {
                Some(
                    "an earlier [[uplink]] is for this interface already; let one table say it all",
                )
            } else {
                None
            };
            if let Some(text) = problem {
                reader.report.add(&field.span, text);
            }
        }
        let cost = reader.number("cost", 0..=1_000_000, "units");
        out.push(UplinkTable {
            interface: interface.map(|field| field.value.to_owned()).unwrap_or_default(),
            cost: cost.map(|field| field.value as u32),
            metered: reader.bool("metered").map(|field| field.value),
            used: reader.bool("use").map(|field| field.value),
        });
        reader.finish();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pattern_that_fits_counts() {
        let table = |interface: &str, cost| UplinkTable {
            interface: interface.into(),
            cost: Some(cost),
            metered: None,
            used: None,
        };
        let tables = [table("wlan0", 1), table("w*0", 2), table("*", 3)];
        for (name, cost) in [("wlan0", 1), ("wwan0", 2), ("w0", 2), ("eth0", 3), ("", 3)] {
            assert_eq!(of(&tables, name).cost, cost, "{name}");
        }
        assert!(of(&tables, "wwan0").metered, "a cost for all does not make octets free");
        assert!(!of(&tables, "docker0").used, "nor containers' bridges uplinks");
        assert!(!of(&[], "docker0").used && !of(&[], "br-0a1b2c").used);
        assert!(of(&[], "eth0").used && !of(&[], "wlan0").metered && of(&[], "wwan0").metered);
        assert!(of(&[table("docker0", 5)], "docker0").used, "if the operator says so");
        assert!(of(&[table("docker*", 5)], "docker0").used, "if the operator says so");
    }
}
