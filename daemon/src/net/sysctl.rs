//! Settings of the machine that a tunnel needs. They are looked at and never changed: the operator
//! is told.

use std::fs;

use crate::net::LocalAddress;

/// What a gateway lacks to forward inner packets, one sentence with its remedy each.
pub fn forwarding(ipv4: bool, ipv6: bool) -> Vec<String> {
    let mut out = Vec::new();
    for (wanted, family, key) in
        [(ipv4, "IPv4", "net.ipv4.ip_forward"), (ipv6, "IPv6", "net.ipv6.conf.all.forwarding")]
    {
        if wanted && value(key).as_deref() == Some("0") {
            out.push(format!(
                "this machine does not forward {family}, so clients reach it and nothing behind \
                 it: do `sysctl -w {key}=1`"
            ));
        }
    }
    out
}

/// Which uplinks drop the answers that come to an address other than the best route's.
pub fn reverse_path(addresses: &[LocalAddress]) -> Vec<String> {
    let all = value("net.ipv4.conf.all.rp_filter").and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut out: Vec<String> = Vec::new();
    for local in addresses.iter().filter(|local| local.address.is_ipv4()) {
        // a dot in a name is a slash in sysctl's notation
        let key = format!("net.ipv4.conf.{}.rp_filter", local.interface.replace('.', "/"));
        let own: u8 = value(&key).and_then(|v| v.parse().ok()).unwrap_or(0);
        if own.max(all) == 1 {
            out.push(format!(
                "{} filters strictly by reverse path, so that the tunnel may not work over it \
                 while another uplink is preferred: do `sysctl -w {key}=2`",
                local.interface
            ));
        }
    }
    out.dedup();
    out
}

fn value(key: &str) -> Option<String> {
    let swapped: String = key
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    Some(fs::read_to_string(format!("/proc/sys/{swapped}")).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_in_sysctls_notation() {
        assert!(value("net.ipv4.conf.lo.rp_filter").is_some());
        assert!(value("net.ipv4.no_such_thing").is_none());
    }
}
