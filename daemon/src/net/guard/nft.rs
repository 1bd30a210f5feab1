//! A table of nftables, kept by the program `nft`.

use std::{collections::BTreeSet, fmt::Write as _, io};

use ipnet::IpNet;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use super::Exits;
use crate::{
    net::MARK,
    tool::{self, ToolError},
};

/// The table's name, in the family inet.
pub(in crate::net) const TABLE_NAME: &str = "bewick";

/// The chain's name in it.
const CHAIN: &str = "leaving";

/// Asks whether [`load`] would work.
pub(super) async fn probe(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    nft(&["-c", "-f", "-"], &text(exits, nets)).await.map(|_| ())
}

/// Puts these rules in the place of those that the table has. A table that others have made something else of is
/// replaced whole.
pub(super) async fn load(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    let text = text(exits, nets);
    if nft(&["-f", "-"], &text).await.is_ok() {
        return Ok(());
    }
    let anew = format!("add table inet {TABLE_NAME}\ndelete table inet {TABLE_NAME}\n{text}");
    nft(&["-f", "-"], &anew).await.map(|_| ())
}

/// Removes the table, if there is one.
pub(super) async fn remove() -> Result<(), ToolError> {
    let asking = |e| ToolError::Run("a question for the table of nftables".into(), e);
    if is_there().map_err(asking)? {
        nft(&["delete", "table", "inet", TABLE_NAME], "").await?;
    }
    Ok(())
}

/// Whether the kernel has the table. It is asked itself, as the program may be missing or fail, and that must
/// not look as if there were none.
fn is_there() -> io::Result<bool> {
    /// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETTABLE, NFPROTO_INET, NFTA_TABLE_NAME (linux/netfilter)
    const GET_TABLE: u16 = 10 << 8 | 1;
    const INET: u8 = 1;
    const NAME: u16 = 1;
    let name = [TABLE_NAME.as_bytes(), &[0]].concat();
    let attribute = 4 + name.len();
    let length = 20 + attribute.next_multiple_of(4);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend([GET_TABLE.to_ne_bytes(), flags.to_ne_bytes()].concat());
    // sequence number and port, and struct nfgenmsg
    request.extend([[0; 8].as_slice(), &[INET, 0, 0, 0]].concat());
    request.extend([(attribute as u16).to_ne_bytes(), NAME.to_ne_bytes()].concat());
    request.extend(name);
    request.resize(length, 0);

    let socket = match Socket::new(NETLINK_NETFILTER) {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        socket => socket?,
    };
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..).and_then(|rest| rest.first_chunk::<2>());
    let errno = answer.get(16..).and_then(|rest| rest.first_chunk::<4>());
    match (
        kind.map(|kind| u16::from_ne_bytes(*kind).into()),
        errno.map(|errno| -i32::from_ne_bytes(*errno)),
    ) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(true),
        // no such table, or a kernel without nf_tables, or without it for IP
        (Some(libc::NLMSG_ERROR), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(false)
        }
        (Some(libc::NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
        (Some(_), _) => Ok(true),
        (None, _) => Err(io::Error::other("the kernel's answer is too short")),
    }
}

/// The table as `nft` shows it, without counters.
pub(super) async fn list() -> Result<String, ToolError> {
    nft(&["-s", "list", "table", "inet", TABLE_NAME], "").await
}

async fn nft(arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let program = tool::find(&tool::path(), "nft");
    tool::run(&program.ok_or(ToolError::Missing("nft"))?, arguments, input).await
}

/// The table that closes these networks, as `nft -f` reads it.
///
/// All of it stands in postrouting: there the interface is known, and whether the kernel will
/// encrypt. A packet that it has encrypted comes by again, with our mark.
///
/// The rules are replaced within the chain, and name no set, not even `{ a, b }`: of one chain a packet sees either
/// all rules or all those before them, while between a chain that goes and one that comes, and in a set that
/// goes while it is looked into, it may see neither.
fn text(exits: &Exits, nets: &BTreeSet<IpNet>) -> String {
    let mut text = format!(
        "add table inet {TABLE_NAME}\n\
             add chain inet {TABLE_NAME} {CHAIN} {{ \
             type filter hook postrouting priority filter; policy accept; }}\n\
             flush chain inet {TABLE_NAME} {CHAIN}\n"
    );
    let mut rule = |rule: &str| {
        let _ = writeln!(text, "add rule inet {TABLE_NAME} {CHAIN} {rule}");
    };
    rule("oifname \"lo\" accept");
    for device in &exits.devices {
        rule(&format!("oifname \"{device}\" accept"));
    }
    rule(&format!("meta mark {MARK:#x} accept"));
    if exits.kernel_esp {
        rule("rt ipsec exists accept");
    }
    // A lease that is asked for again (RFC 2131 §4.1, RFC 9915 §7.2), and what the link itself is made
    // of (RFC 4861 §4.1 to 4.4, RFC 3810 §5): ports and types that are for root alone.
    rule("meta nfproto ipv4 udp sport 68 udp dport 67 accept");
    for to in ["fe80::/10", "ff02::1:2"] {
        rule(&format!("ip6 saddr fe80::/10 ip6 daddr {to} udp sport 546 udp dport 547 accept"));
    }
    for (limit, kinds) in [
        (255, ["nd-router-solicit", "nd-neighbor-solicit", "nd-neighbor-advert"]),
        (1, ["mld-listener-report", "mld-listener-done", "mld2-listener-report"]),
    ] {
        for kind in kinds {
            rule(&format!("icmpv6 type {kind} ip6 hoplimit {limit} accept"));
        }
    }
    for net in IpNet::aggregate(&nets.iter().copied().collect()) {
        let header = if net.addr().is_ipv4() { "ip" } else { "ip6" };
        rule(&format!("{header} daddr {net} counter drop"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn what_may_leave_comes_before_what_may_not() {
        let exits = Exits { devices: ["bewick0".into()].into(), kernel_esp: true };
        let text = text(&exits, &nets(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]));
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
        let first = at("leaving ip daddr 10.0.0.0/8 counter drop");
        for allowed in
            ["\"lo\" accept", "\"bewick0\" accept", "mark 0xbe1c accept", "rt ipsec exists"]
        {
            assert!(at(allowed) < first, "{allowed}");
        }
        assert!(first < at("leaving ip6 daddr 2001:db8::/32 counter drop"));
        assert!(!text.contains("10.1.0.0"), "{text}");
    }

    #[test]
    fn only_the_kernels_esp_is_asked_for_and_only_the_families_that_are_closed() {
        let exits = Exits { devices: ["bewick0".into()].into(), kernel_esp: false };
        let text = text(&exits, &nets(&["0.0.0.0/0"]));
        assert!(!text.contains("ipsec") && !text.contains("leaving ip6 daddr"), "{text}");
    }
}
