//! A chain in iptables' table `mangle`, for kernels that have no nftables. Nobody tells when another
//! program removes it.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use ipnet::IpNet;

use super::Exits;
use crate::{
    net::MARK,
    tool::{self, ToolError},
};

const CHAIN: &str = "BEWICK";

/// From where the chain is called.
const CALL: [&str; 3] = ["POSTROUTING", "-j", CHAIN];

/// The programs' names begin so, for IPv4 and IPv6.
const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];

/// Where the kernel names the tables that a namespace has.
const TABLES: [&str; 2] =
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// Asks whether [`load`] would work.
pub(super) async fn probe(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    for family in families() {
        let (text, restore) = (text(exits, nets, family == 0), find(family, "-restore")?);
        tool::run(&restore, &["--test", "--noflush"], &text).await?;
    }
    Ok(())
}

/// Replaces the chain, and has it called first.
pub(super) async fn load(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    for family in families() {
        let (text, restore) = (text(exits, nets, family == 0), find(family, "-restore")?);
        tool::run(&restore, &["--noflush", "--wait", "5"], &text).await?;
        if change(family, "-C", &CALL).await.is_err() {
            change(family, "-I", &CALL).await?;
        }
    }
    Ok(())
}

/// Removes the chain, if there is one.
pub(super) async fn remove() -> Result<(), ToolError> {
    for family in families() {
        // asking iptables would make the table
        let tables = fs::read_to_string(TABLES[family]).unwrap_or_default();
        if !tables.lines().any(|table| table == "mangle") {
            continue;
        }
        let Ok(save) = find(family, "-save") else { continue };
        if !ours(&tool::run(&save, &["-t", "mangle"], "").await?).is_empty() {
            // what somebody else has taken away is gone
            let _ = change(family, "-D", &CALL).await;
            change(family, "-F", &[CHAIN]).await?;
            change(family, "-X", &[CHAIN]).await?;
        }
    }
    Ok(())
}

/// The chain, and from where it is called.
pub(super) async fn list() -> Result<String, ToolError> {
    let mut out = String::new();
    for family in families() {
        out += &ours(&tool::run(&find(family, "-save")?, &["-t", "mangle"], "").await?);
    }
    Ok(out)
}

/// The lines of iptables-save that are about the chain, which keeps no counters there.
fn ours(saved: &str) -> String {
    let lines = saved.lines().filter(|line| line.split([' ', ':']).any(|word| word == CHAIN));
    lines.flat_map(|line| [line, "\n"]).collect()
}

async fn change(family: usize, verb: &str, rest: &[&str]) -> Result<(), ToolError> {
    let mut arguments = vec!["--wait", "5", "-t", "mangle", verb];
    arguments.extend(rest);
    tool::run(&find(family, "")?, &arguments, "").await.map(|_| ())
}

/// What iptables calls legacy is what kernels without nftables know.
fn find(family: usize, part: &str) -> Result<PathBuf, ToolError> {
    let path = tool::path();
    let name = FAMILIES[family];
    tool::find(&path, &format!("{name}-legacy{part}"))
        .or_else(|| tool::find(&path, &format!("{name}{part}")))
        .ok_or(ToolError::Missing("iptables"))
}

/// The families that this machine has, as indices of [`FAMILIES`].
fn families() -> impl Iterator<Item = usize> {
    let ipv6 = std::path::Path::new("/proc/net/if_inet6").exists();
    if ipv6 { 0..2 } else { 0..1 }
}

/// The chain as iptables-restore reads it; `nft.rs` says why these exits.
fn text(exits: &Exits, nets: &BTreeSet<IpNet>, ipv4: bool) -> String {
    let mut text = format!("*mangle\n:{CHAIN} - [0:0]\n");
    let mut rule = |rule: &str| {
        let _ = writeln!(text, "-A {CHAIN} {rule}");
    };
    rule("-o lo -j RETURN");
    for device in &exits.devices {
        rule(&format!("-o {device} -j RETURN"));
    }
    rule(&format!("-m mark --mark {MARK:#x} -j RETURN"));
    if exits.kernel_esp {
        rule("-m policy --dir out --pol ipsec -j RETURN");
    }
    if ipv4 {
        rule("-p udp --sport 68 --dport 67 -j RETURN");
    } else {
        for to in ["fe80::/10", "ff02::1:2"] {
            rule(&format!("-s fe80::/10 -d {to} -p udp --sport 546 --dport 547 -j RETURN"));
        }
        for (kinds, limit) in [([133, 135, 136], 255), ([131, 132, 143], 1)] {
            for kind in kinds {
                let kind = format!("-p ipv6-icmp --icmpv6-type {kind}");
                rule(&format!("{kind} -m hl --hl-eq {limit} -j RETURN"));
            }
        }
    }
    let nets: Vec<IpNet> =
        nets.iter().filter(|net| net.addr().is_ipv4() == ipv4).copied().collect();
    for net in IpNet::aggregate(&nets) {
        rule(&format!("-d {net} -j DROP"));
    }
    text += "COMMIT\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_drops_its_own_networks_after_what_may_leave() {
        let exits = Exits { devices: ["bewick0".into()].into(), kernel_esp: true };
        let nets = ["0.0.0.0/0", "2001:db8::/32"].map(|net| net.parse().unwrap()).into();
        let v4 = text(&exits, &nets, true);
        assert!(v4.ends_with("-A BEWICK -d 0.0.0.0/0 -j DROP\nCOMMIT\n"), "{v4}");
        assert!(v4.contains("-m policy --dir out --pol ipsec -j RETURN") && !v4.contains("2001"));
        let v6 = text(&exits, &nets, false);
        assert!(v6.ends_with("-A BEWICK -d 2001:db8::/32 -j DROP\nCOMMIT\n"), "{v6}");
    }

    #[test]
    fn others_chains_are_not_taken_for_ours() {
        let saved = "*mangle\n:BEWICK - [0:0]\n:BEWICKER - [0:0]\n-A POSTROUTING -j BEWICK\n\
                     -A POSTROUTING -j OTHER\n-A BEWICK -o lo -j RETURN\nCOMMIT\n";
        let ours = ours(saved);
        assert_eq!(ours.lines().count(), 3, "{ours}");
    }
}
