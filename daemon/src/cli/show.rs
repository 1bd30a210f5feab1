//! Status and events for a person's eyes.

use std::fmt::Write;

use crate::control::{
    EventRecord, Status,
    protocol::{ChildStatus, ConnectionStatus, IkeSaStatus},
};

/// One line: when, which connection, what.
pub fn event(record: &EventRecord) -> String {
    let seconds = record.at_ms / 1000;
    let millis = record.at_ms % 1000;
    let connection = record.connection.as_deref().unwrap_or("-");
    format!("{seconds:>6}.{millis:03} s  {connection:<14}  {}\n", record.text)
}

/// The whole state, a paragraph per connection.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    // writing to a String can't fail, here and below
    let plane = &status.dataplane;
    let _ = writeln!(out, "bewick {}, process {}", status.version, status.pid);
    let _ = writeln!(out, "{:<10}{} ({})", "dataplane", plane.kind, plane.reason);
    for (i, address) in status.addresses.iter().enumerate() {
        let label = if i == 0 { "addresses" } else { "" };
        let metric = match address.metric {
            Some(metric) => format!(", default route with metric {metric}"),
            None => String::new(),
        };
        let _ = writeln!(out, "{label:<10}{} on {}{metric}", address.address, address.interface);
    }
    for one in &status.connections {
        out.push('\n');
        connection(&mut out, one);
    }
    out
}

fn connection(out: &mut String, connection: &ConnectionStatus) {
    let _ = writeln!(out, "{}: {}, {}", connection.name, connection.role, connection.state);
    for sa in &connection.ike_sas {
        ike_sa(out, sa);
    }
}

fn ike_sa(out: &mut String, sa: &IkeSaStatus) {
    let mut notes = vec![sa.state.clone()];
    notes.push(if sa.mobike { "MOBIKE" } else { "no MOBIKE" }.into());
    match (sa.nat_local, sa.nat_remote) {
        (true, true) => notes.push("NAT on both sides".into()),
        (true, false) => notes.push("NAT on our side".into()),
        (false, true) => notes.push("NAT on the peer's side".into()),
        (false, false) => {}
    }
    let _ = writeln!(out, "  IKE_SA    {} -> {}  ({})", sa.local, sa.remote, notes.join(", "));
    let _ = writeln!(out, "            {} -> {}", sa.local_id, sa.remote_id);
    let _ = writeln!(out, "            SPIs {} {}", sa.spi_i, sa.spi_r);
    if !sa.virtual_ips.is_empty() {
        let list: Vec<String> = sa.virtual_ips.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "  address   {}", list.join(", "));
    }
    if !sa.dns.is_empty() {
        let list: Vec<String> = sa.dns.iter().map(ToString::to_string).collect();
        let domains = match sa.dns_domains.is_empty() {
            true => String::new(),
            false => format!(" for {}", sa.dns_domains.join(", ")),
        };
        let _ = writeln!(out, "  DNS       {}{domains}", list.join(", "));
    }
    if !sa.subnets.is_empty() {
        let _ = writeln!(out, "  networks  {}", sa.subnets.join(", "));
    }
    for one in &sa.children {
        child(out, one);
    }
}

fn child(out: &mut String, child: &ChildStatus) {
    let esn = if child.esn { ", 64-bit sequence numbers" } else { "" };
    let encap = if child.encap { " in UDP" } else { "" };
    let mode = if child.mode == "transport" { ", transport mode" } else { "" };
    let _ = writeln!(
        out,
        "  CHILD_SA  {} <-> {}",
        child.local_ts.join(", "),
        child.remote_ts.join(", ")
    );
    let _ = writeln!(
        out,
        "            {}{esn}{encap}{mode}, SPIs {} {}",
        child.suite, child.spi_in, child.spi_out
    );
    let _ = writeln!(
        out,
        "            in  {:>10}  {:>9} packets",
        octets(child.octets_in),
        child.packets_in
    );
    let _ = writeln!(
        out,
        "            out {:>10}  {:>9} packets",
        octets(child.octets_out),
        child.packets_out
    );
}

/// A number of octets in a unit that a person can take in.
fn octets(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&"PB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{AddressStatus, DataPlaneStatus};

    #[test]
    fn octets_in_the_unit_that_fits() {
        assert_eq!(octets(0), "0 B");
        assert_eq!(octets(999), "999 B");
        assert_eq!(octets(1000), "1.0 kB");
        assert_eq!(octets(999_999), "1.0 MB");
        assert_eq!(octets(5_250_000_000), "5.2 GB");
        assert_eq!(octets(u64::MAX), "18446.7 PB");
    }

    #[test]
    fn the_status_of_an_established_client() {
        let sa = IkeSaStatus {
            spi_i: "00112233445566aa".into(),
            spi_r: "bb00112233445566".into(),
            state: "established".into(),
            local: "10.0.1.2:4500".parse().unwrap(),
            remote: "192.0.2.1:4500".parse().unwrap(),
            local_id: "laptop@example.com".into(),
            remote_id: "vpn.example.com".into(),
            nat_local: true,
            nat_remote: false,
            mobike: true,
            virtual_ips: vec!["10.9.0.1".parse().unwrap()],
            dns: vec!["10.1.0.53".parse().unwrap()],
            dns_domains: vec!["corp.example.com".into()],
            subnets: vec!["10.1.0.0/16".into()],
            children: vec![ChildStatus {
                spi_in: "0x11223344".into(),
                spi_out: "0x55667788".into(),
                mode: "tunnel".into(),
                suite: "aes256gcm16".into(),
                esn: false,
                encap: true,
                local_ts: vec!["10.9.0.1/32".into()],
                remote_ts: vec!["10.1.0.0/16".into()],
                octets_in: 8400,
                octets_out: 8400,
                packets_in: 100,
                packets_out: 100,
            }],
        };
        let shown = status(&Status {
            version: "0.1.0".into(),
            pid: 42,
            dataplane: DataPlaneStatus {
                kind: "userspace".into(),
                reason: "the kernel has no ESP".into(),
                move_method: "swap".into(),
            },
            addresses: vec![AddressStatus {
                address: "10.0.1.2".parse().unwrap(),
                interface: "wlan0".into(),
                metric: Some(600),
            }],
            connections: vec![ConnectionStatus {
                name: "office".into(),
                role: "initiator".into(),
                state: "established".into(),
                ike_sas: vec![sa],
            }],
        });
        let expected = "\
bewick 0.1.0, process 42
dataplane userspace (the kernel has no ESP)
addresses 10.0.1.2 on wlan0, default route with metric 600

office: initiator, established
  IKE_SA    10.0.1.2:4500 -> 192.0.2.1:4500  (established, MOBIKE, NAT on our side)
            laptop@example.com -> vpn.example.com
            SPIs 00112233445566aa bb00112233445566
  address   10.9.0.1
  DNS       10.1.0.53 for corp.example.com
  networks  10.1.0.0/16
  CHILD_SA  10.9.0.1/32 <-> 10.1.0.0/16
            aes256gcm16 in UDP, SPIs 0x11223344 0x55667788
            in      8.4 kB        100 packets
            out     8.4 kB        100 packets
";
        assert_eq!(shown, expected);
    }
}
