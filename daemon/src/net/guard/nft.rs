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

/// Asks whether [`load`] would work.
pub(super) async fn probe(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    nft(&["-c", "-f", "-"], &text(exits, nets)).await.map(|_| ())
}

/// Replaces the table.
pub(super) async fn load(exits: &Exits, nets: &BTreeSet<IpNet>) -> Result<(), ToolError> {
    nft(&["-f", "-"], &text(exits, nets)).await.map(|_| ())
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
fn text(exits: &Exits, nets: &BTreeSet<IpNet>) -> String {
    let quoted = exits.devices.iter().map(|device| format!(", \"{device}\""));
    let ours = format!("{{ \"lo\"{} }}", quoted.collect::<String>());
    let mut text = format!(
        "add table inet {TABLE_NAME}\ndelete table inet {TABLE_NAME}\n\
             table inet {TABLE_NAME} {{\n"
    );
    let sets = [("ipv4", "ip", true), ("ipv6", "ip6", false)];
    for (family, _, ipv4) in sets {
        let list: Vec<IpNet> =
            nets.iter().filter(|net| net.addr().is_ipv4() == ipv4).copied().collect();
        if list.is_empty() {
            continue;
        }
        // intervals must not overlap
        let list: Vec<String> = IpNet::aggregate(&list).iter().map(IpNet::to_string).collect();
        let list = list.join(", ");
        let _ = writeln!(
            text,
            "set {family} {{ type {family}_addr; flags interval; elements = {{ {list} }}; }}"
        );
    }
    let _ = write!(
        text,
        "chain leaving {{\n\
             type filter hook postrouting priority filter; policy accept;\n\
             oifname {ours} accept\n\
             meta mark {MARK:#x} accept\n"
    );
    if exits.kernel_esp {
        text += "rt ipsec exists accept\n";
    }
    // A lease that is asked for again (RFC 2131 §4.1, RFC 9915 §7.2), and what the link itself is made
    // of (RFC 4861 §4.1 to 4.4, RFC 3810 §5): ports and types that are for root alone.
    text += "meta nfproto ipv4 udp sport 68 udp dport 67 accept\n\
                 ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept\n\
                 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept\n\
                 icmpv6 type { mld-listener-report, mld-listener-done, mld2-listener-report } ip6 hoplimit 1 accept\n";
    for (family, header, ipv4) in sets {
        if nets.iter().any(|net| net.addr().is_ipv4() == ipv4) {
            let _ = writeln!(text, "{header} daddr @{family} counter drop");
        }
    }
    text += "}\n}\n";
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
        let set = "set ipv4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }";
        assert!(text.contains(set), "{text}");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
        let first = at("ip daddr @ipv4 counter drop");
        for allowed in ["{ \"lo\", \"bewick0\" } accept", "mark 0xbe1c accept", "rt ipsec exists"] {
            assert!(at(allowed) < first, "{allowed}");
        }
        assert!(first < at("ip6 daddr @ipv6 counter drop"));
    }

    #[test]
    fn only_the_kernels_esp_is_asked_for_and_only_the_families_that_are_closed() {
        let exits = Exits { devices: ["bewick0".into()].into(), kernel_esp: false };
        let text = text(&exits, &nets(&["0.0.0.0/0"]));
        assert!(!text.contains("ipsec") && !text.contains("@ipv6"), "{text}");
    }
}
