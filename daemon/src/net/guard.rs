//! What holds the kill switch for those that know better than the routes: a table of nftables that
//! sees each packet when it has its way, whichever socket, route or mark has led it there.
//!
//! Routes that lead nowhere refuse ordinary programs at once. A socket that names its interface
//! (SO_BINDTODEVICE) or wants no router (SO_DONTROUTE) passes them by, and so does what looks like an
//! outer packet where the kernel checks the way back (`OUTER_PRIORITY`): such packets get no further
//! than here. So does what this machine forwards for others.
//!
//! The table outlives the daemon, and is replaced in one transaction: what is closed is never open in
//! between. It is made by the program `nft`, of which nothing but its input and output are relied on.

use std::{collections::BTreeSet, fmt::Write as _};

use ipnet::IpNet;

use crate::{
    net::{MARK, NetError},
    tool,
};

/// The table's name, in the family inet.
pub(super) const TABLE_NAME: &str = "bewick";

/// The table, as far as it is known to be there.
pub(super) struct Guard {
    device: String,
    /// the kernel's ESP takes packets that are on their way to an uplink
    kernel_esp: bool,
    closed: BTreeSet<IpNet>,
    /// what `nft` lists, if the table was made as it should be
    listed: Option<String>,
}

impl Guard {
    /// For the tunnel device of this name; nothing is done yet.
    pub(super) fn new(device: &str, kernel_esp: bool) -> Self {
        let (closed, listed) = (BTreeSet::new(), None);
        Guard { device: device.into(), kernel_esp, closed, listed }
    }

    /// Whether all that is to be closed is.
    pub(super) fn holds(&self) -> bool {
        self.closed.is_empty() || self.listed.is_some()
    }

    /// Asks whether this machine could close these networks, without closing them.
    pub(super) async fn probe(&self, nets: &BTreeSet<IpNet>) -> Result<(), NetError> {
        nft(&["-c", "-f", "-"], &self.text(nets)?).await.map(|_| ())
    }

    /// Closes these networks and no other ones. On an error all is as before.
    pub(super) async fn set(&mut self, nets: BTreeSet<IpNet>) -> Result<(), NetError> {
        if self.closed == nets && self.holds() {
            return Ok(());
        }
        if nets.is_empty() {
            self.remove().await?;
            (self.closed, self.listed) = (nets, None);
            return Ok(());
        }
        let text = self.text(&nets)?;
        self.closed = nets;
        self.listed = None;
        nft(&["-f", "-"], &text).await?;
        self.listed = Some(list().await?);
        Ok(())
    }

    /// Removes the table, also that of an earlier run.
    pub(super) async fn remove(&mut self) -> Result<(), NetError> {
        // to delete what is not there is an error, to add what is there is none
        nft(
            &["-f", "-"],
            &format!("add table inet {TABLE_NAME}\ndelete table inet {TABLE_NAME}\n"),
        )
        .await?;
        self.listed = None;
        Ok(())
    }

    /// Puts the table back if it is not as it was made, for a firewall that is loaded anew begins with
    /// `flush ruleset`. Says whether it had to.
    pub(super) async fn check(&mut self) -> Result<bool, NetError> {
        if self.closed.is_empty() || self.listed.is_some() && list().await.ok() == self.listed {
            return Ok(false);
        }
        self.listed = None;
        let closed = self.closed.clone();
        self.set(closed).await.map(|()| true)
    }

    /// The table that closes these networks, as `nft -f` reads it.
    ///
    /// All of it stands in postrouting: there the interface is known, and whether the kernel will
    /// encrypt. A packet that it has encrypted comes by again, with our mark.
    fn text(&self, nets: &BTreeSet<IpNet>) -> Result<String, NetError> {
        let device = &self.device;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.:@-".contains(c);
        if !device.chars().all(plain) {
            return Err(refused(format!("nft can't be told of a device with the name {device:?}")));
        }
        let ours = match self.device.is_empty() {
            true => "\"lo\"".to_owned(),
            false => format!("{{ \"lo\", \"{device}\" }}"),
        };
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
        if self.kernel_esp {
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
        Ok(text)
    }
}

/// The table as `nft` shows it, without counters.
async fn list() -> Result<String, NetError> {
    nft(&["-s", "list", "table", "inet", TABLE_NAME], "").await
}

async fn nft(arguments: &[&str], input: &str) -> Result<String, NetError> {
    let Some(program) = tool::find(&tool::path(), "nft") else {
        return Err(refused("the program nft is missing: install the package nftables".into()));
    };
    let remedy =
        "the kernel needs nf_tables (`modprobe nf_tables`), and this process CAP_NET_ADMIN";
    let result = tool::run(&program, arguments, input).await;
    result.map_err(|e| refused(format!("{e} ({remedy})")))
}

fn refused(message: String) -> NetError {
    NetError { operation: "close by nftables what is not the tunnel".into(), message, errno: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn what_may_leave_comes_before_what_may_not() {
        let text = Guard::new("bewick0", true)
            .text(&nets(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]))
            .unwrap();
        assert!(
            text.contains(
                "set ipv4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }"
            )
        );
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
        let first = at("ip daddr @ipv4 counter drop");
        for allowed in ["{ \"lo\", \"bewick0\" } accept", "mark 0xbe1c accept", "rt ipsec exists"] {
            assert!(at(allowed) < first, "{allowed}");
        }
        assert!(first < at("ip6 daddr @ipv6 counter drop"));
    }

    #[test]
    fn only_the_kernels_esp_is_asked_for_and_only_the_families_that_are_closed() {
        let text = Guard::new("bewick0", false).text(&nets(&["0.0.0.0/0"])).unwrap();
        assert!(!text.contains("ipsec") && !text.contains("@ipv6"), "{text}");
    }

    #[test]
    fn a_device_whose_name_means_something_to_nft_is_refused() {
        for name in ["eth*", "a\"b", "a b"] {
            assert!(Guard::new(name, false).text(&nets(&["0.0.0.0/0"])).is_err(), "{name}");
        }
    }
}
