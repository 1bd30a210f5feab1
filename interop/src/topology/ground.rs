//! What scenarios of moves want of the network, and what happens there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use super::{FIRST, GATEWAY, GATEWAY_6, Loss, Node, SITE, SITE_6, Topology, Uplink};
use crate::capture::Capture;
use crate::fail;
use crate::failure::Result;
use crate::process;

/// The gateway's other address on the outer network, where it has one.
pub const GATEWAY_OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Where a gateway behind a NAT is to be found.
pub const FORWARDED: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 7);
/// All addresses that a gateway may have.
pub const GATEWAYS: [IpAddr; 4] =
    [IpAddr::V4(GATEWAY), IpAddr::V4(GATEWAY_OTHER), IpAddr::V6(GATEWAY_6), IpAddr::V4(FORWARDED)];
/// The client's address where the second uplink has IPv6 alone.
pub const CLIENT_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

/// The ways of the gateway, as arguments of `ip`.
const WAY: &str = "default via 192.0.2.254 dev w0";

/// What lies between the ends, besides what always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Nothing.
    Plain,
    /// IPv6 on the first uplink and behind the gateway.
    Ipv6Too,
    /// The same, and a network behind the client.
    Sites,
    /// A network behind the client.
    PlainSites,
    /// The same, and the first uplink is the only one.
    FacingSites,
    /// The second uplink has IPv6 alone, the gateway both.
    SecondIsIpv6,
    /// The gateway has a second address, on another network.
    SecondGatewayAddress,
    /// The second uplink is behind a NAT, and the first one is down.
    BehindNat,
    /// That, and another client is behind the same NAT.
    TwoBehindNat,
    /// The gateway is behind a NAT: the router passes on to it what comes for another address.
    GatewayBehindNat,
    /// That, and the client's second uplink is behind a NAT too.
    BothBehindNat,
    /// The gateway has a second link, and no address on it yet.
    LaterGatewayAddress,
    /// Nothing but TCP passes; the client's second uplink is behind a NAT.
    OnlyTcp,
    /// The client is behind a NAT alone, which forgets after 20 s.
    BehindForgetfulNat,
}

impl Ground {
    /// Whether the client's second uplink is behind a NAT.
    pub fn has_nat(self) -> bool {
        matches!(
            self,
            Ground::BehindNat
                | Ground::BehindForgetfulNat
                | Ground::TwoBehindNat
                | Ground::BothBehindNat
                | Ground::OnlyTcp
        )
    }
}

impl Topology {
    /// Makes of a new network what a scenario wants.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn make(&mut self, ground: Ground) -> Result<()> {
        match ground {
            Ground::Plain => Ok(()),
            Ground::Ipv6Too => self.add_ipv6(),
            Ground::Sites => {
                self.add_ipv6()?;
                self.ip(Node::Client, &format!("addr add {SITE}/32 dev lo"))?;
                self.ip(Node::Client, &format!("addr add {SITE_6}/128 dev lo nodad"))
            }
            Ground::PlainSites => self.ip(Node::Client, &format!("addr add {SITE}/32 dev lo")),
            Ground::FacingSites => {
                self.make(Ground::PlainSites)?;
                let [_, second] = self.uplinks;
                self.lose(&second, Loss::LinkDown)
            }
            Ground::SecondIsIpv6 => {
                self.shell(Node::Router, "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")?;
                let [_, second] = self.uplinks;
                self.lose(&second, Loss::AddressDeleted)?;
                self.ip(Node::Router, "addr add 2001:db8:3::1/64 dev c2 nodad")?;
                self.ip(Node::Router, "addr add 2001:db8:2::fe/64 dev g1 nodad")?;
                self.ip(Node::Gateway, &format!("addr add {GATEWAY_6}/64 dev w0 nodad"))?;
                self.ip(
                    Node::Gateway,
                    "-6 route add default via 2001:db8:2::fe dev w0 metric 100",
                )?;
                self.restore_ipv6()
            }
            Ground::SecondGatewayAddress => {
                self.cable_other()?;
                self.gateway_gains_other()
            }
            Ground::LaterGatewayAddress => self.cable_other(),
            Ground::GatewayBehindNat | Ground::BothBehindNat => self.forward_to_gateway(),
            Ground::TwoBehindNat => {
                self.add_second_client()?;
                self.lose(&FIRST, Loss::LinkDown)
            }
            Ground::BehindNat => self.lose(&FIRST, Loss::LinkDown),
            Ground::BehindForgetfulNat => {
                self.forget_soon()?;
                self.lose(&FIRST, Loss::LinkDown)
            }
            Ground::OnlyTcp => self.uplinks.iter().try_for_each(|uplink| self.close_udp(uplink)),
        }
    }

    /// Captures what the filter lets pass of what the router sees, and what is said in the clear on the NAT, if there
    /// is one.
    pub(super) fn capture_of(&self, out: &Path, filter: &str) -> Result<Capture> {
        let capture = Capture::start(self.command(Node::Router, "tcpdump"), out, filter)?;
        let translated = self.uplinks.iter().any(|uplink| uplink.seen_as != uplink.address);
        match translated {
            true => capture.and_at_nat(self.command(Node::Nat, "tcpdump"), out),
            false => Ok(capture),
        }
    }

    /// Gives the second uplink its IPv6 (back), where it has IPv6 alone.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn restore_ipv6(&self) -> Result<()> {
        self.ip(Node::Client, "link set u2 up")?;
        self.ip(Node::Client, &format!("addr replace {CLIENT_6}/64 dev u2 nodad"))?;
        self.ip(Node::Client, "-6 route replace default via 2001:db8:3::1 dev u2 metric 100")
    }

    /// Takes the second uplink away, where it has IPv6 alone.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn lose_ipv6(&self) -> Result<()> {
        self.ip(Node::Client, "link set u2 down")
    }

    /// Has the router drop all that comes from an uplink or goes there, without a word to anybody.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn silence(&self, uplink: &Uplink) -> Result<()> {
        self.forward(uplink, "0")?;
        self.ip(Node::Router, &format!("route add blackhole {}/32", uplink.seen_as))
    }

    /// Has all ways to the gateway and back take this long together, in milliseconds. The guest's kernel can.
    ///
    /// # Errors
    /// What `tc` said.
    pub fn delay(&self, rtt: u32) -> Result<()> {
        let ports = self.uplinks.iter().map(|uplink| uplink.port).chain(["g1"]);
        for port in ports {
            let mut command = self.command(Node::Router, "tc");
            // Room for what is on the way of a fast flow: netem drops what goes beyond its limit.
            command.args(["qdisc", "replace", "dev", port, "root", "netem", "limit", "100000"]);
            command.args(["delay", &format!("{}us", u64::from(rtt) * 500)]);
            process::output(&mut command, Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Has the router drop UDP that comes from an uplink or goes there, without a word to anybody.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn close_udp(&self, uplink: &Uplink) -> Result<()> {
        self.udp_rules("add", uplink)
    }

    /// Lets it pass again.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn open_udp(&self, uplink: &Uplink) -> Result<()> {
        self.udp_rules("del", uplink)
    }

    fn udp_rules(&self, verb: &str, uplink: &Uplink) -> Result<()> {
        ["from", "to"].iter().try_for_each(|way| {
            let what = format!("{way} {}/32 ipproto udp blackhole", uplink.seen_as);
            self.ip(Node::Router, &format!("rule {verb} pref 10 {what}"))
        })
    }

    /// Has all ways to the gateway and back take 50 ms each, lose one packet in twenty and let some overtake
    /// others, or be as they were. The guest's kernel can.
    ///
    /// # Errors
    /// What `tc` said.
    pub fn rough(&self, on: bool) -> Result<()> {
        let ports = self.uplinks.iter().map(|uplink| uplink.port).chain(["g1"]);
        for port in ports {
            let verb = if on { "replace" } else { "del" };
            let mut command = self.command(Node::Router, "tc");
            command.args(["qdisc", verb, "dev", port, "root"]);
            if on {
                // What is reordered is not delayed: one packet in twenty. (A correlation would make it rarer.)
                let rough = "netem limit 10000 delay 50ms 5ms loss 5% reorder 5%";
                command.args(rough.split_whitespace());
            }
            process::output(&mut command, Duration::from_secs(10))?;
        }
        Ok(())
    }

    /// Has the router drop the requests of an exchange that an end sends by way of this uplink on port 4500,
    /// without a word to anybody (RFC 7296 §2.23, §3.1).
    ///
    /// # Errors
    /// What `nft` or `iptables-legacy` said.
    pub fn swallow(&self, from: Node, uplink: &Uplink, exchange: u8) -> Result<()> {
        let way = if from.is_client() { ("saddr", "-s") } else { ("daddr", "-d") };
        let at = uplink.seen_as;
        let nft = self.shell(
            Node::Router,
            &format!(
                "set -e
                 nft add table ip swallow
                 nft add chain ip swallow forward '{{ type filter hook forward priority 0 ; }}'
                 nft add rule ip swallow forward ip {} {at} meta l4proto udp \
                   @th,64,32 0 @th,240,8 {exchange} @th,250,1 0 drop",
                way.0
            ),
        );
        let Err(nft) = nft else { return Ok(()) };
        let tests = format!("28=0 && 48>>8&0xFF={exchange} && 48&0x20=0");
        let legacy = format!(
            "iptables-legacy -A FORWARD {} {at} -p udp -m u32 --u32 '{tests}' -j DROP",
            way.1
        );
        self.shell(Node::Router, &legacy)
            .map_err(|legacy| fail!("no filter: neither {nft}; nor {legacy}"))
    }

    /// Lets them pass again.
    ///
    /// # Errors
    /// What `nft` or `iptables-legacy` said.
    pub fn let_pass(&self) -> Result<()> {
        self.shell(Node::Router, "nft delete table ip swallow || iptables-legacy -F FORWARD")
    }

    /// Has the NAT forget a mapping of UDP after 20 s.
    ///
    /// # Errors
    /// Its kernel does not let it.
    pub fn forget_soon(&self) -> Result<()> {
        let timeouts = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout";
        self.shell(Node::Nat, &format!("echo 20 >{timeouts} && echo 20 >{timeouts}_stream"))
    }

    /// Lets the packets of an uplink pass again.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn unsilence(&self, uplink: &Uplink) -> Result<()> {
        self.forward(uplink, "1")?;
        self.ip(Node::Router, &format!("route del blackhole {}/32", uplink.seen_as))
    }

    /// Takes the gateway's first address away, and with it, as it is the device's only one, the route.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn gateway_loses_address(&self) -> Result<()> {
        self.ip(Node::Gateway, &format!("addr del {GATEWAY}/24 dev w0"))
    }

    /// Gives it back.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn gateway_regains_address(&self) -> Result<()> {
        self.address(Node::Gateway, "w0", GATEWAY)?;
        self.ip(Node::Gateway, &format!("route add {WAY}"))
    }

    fn cable_other(&self) -> Result<()> {
        self.cable(Node::Gateway, "w1", Node::Router, "g2")?;
        self.address(Node::Router, "g2", Ipv4Addr::new(198, 18, 0, 254))
    }

    /// Gives the gateway another address, on a link of its own.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn gateway_gains_other(&self) -> Result<()> {
        self.address(Node::Gateway, "w1", GATEWAY_OTHER)?;
        self.ip(Node::Gateway, "route add default via 198.18.0.254 dev w1 metric 200")
    }

    /// Takes that away again.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn gateway_loses_other(&self) -> Result<()> {
        self.ip(Node::Gateway, &format!("addr del {GATEWAY_OTHER}/24 dev w1"))
    }

    /// Has the NAT forget its mappings and give other ports to what comes.
    ///
    /// # Errors
    /// What `ip`, `nft` or `iptables-legacy` said.
    pub fn forget_mappings(&self) -> Result<()> {
        // A device that goes down takes the mappings with it.
        self.ip(Node::Nat, "link set out down")?;
        // Another range each time: the same port again would look like the mapping of before.
        let first = self.next_port.replace(self.next_port.get() + 200);
        self.masquerade(&format!("{first}-{}", first + 100))?;
        self.ip(Node::Nat, "link set out up")?;
        self.ip(Node::Nat, "route add default via 203.0.113.1")
    }

    /// Another client on a network of its own behind the NAT.
    fn add_second_client(&mut self) -> Result<()> {
        self.add_host(Node::Second)?;
        self.cable(Node::Second, "u1", Node::Nat, "c3")?;
        self.address(Node::Nat, "c3", Ipv4Addr::new(192, 168, 8, 1))?;
        self.address(Node::Second, "u1", Ipv4Addr::new(192, 168, 8, 2))?;
        self.ip(Node::Second, "route add default via 192.168.8.1 dev u1 metric 100")
    }

    /// Has the router pass on to the gateway what comes for an address that is nobody's, with what the
    /// kernel has, nf_tables or the older tables.
    fn forward_to_gateway(&self) -> Result<()> {
        let nft = format!(
            "set -e
             nft add table ip nat
             nft add chain ip nat pre '{{ type nat hook prerouting priority -100 ; }}'
             nft add rule ip nat pre ip daddr {FORWARDED} udp dport '{{ 500, 4500 }}' dnat to {GATEWAY}"
        );
        let Err(nft) = self.shell(Node::Router, &nft) else { return Ok(()) };
        let legacy = format!(
            "set -e
             for port in 500 4500; do
               iptables-legacy -t nat -A PREROUTING -d {FORWARDED} -p udp --dport $port -j DNAT \
                 --to-destination {GATEWAY}
             done"
        );
        let legacy = self.shell(Node::Router, &legacy);
        legacy.map_err(|legacy| fail!("no NAT: neither {nft}; nor {legacy}"))
    }

    /// Translates with what the kernel has, nf_tables or the older tables, in the place of what was there
    /// before; UDP to these ports, if there are any.
    pub(super) fn masquerade(&self, ports: &str) -> Result<()> {
        let run = |line: &str| {
            let mut command = self.command(Node::Nat, "env");
            process::output(command.args(line.split_whitespace()), Duration::from_secs(10))
        };
        let nft = (|| {
            run("nft add table ip nat")?;
            run("nft add chain ip nat post { type nat hook postrouting priority 100 ; }")?;
            run("nft flush chain ip nat post")?;
            if !ports.is_empty() {
                let rule = "nft add rule ip nat post oifname out meta l4proto udp masquerade to";
                run(&format!("{rule} :{ports}"))?;
            }
            run("nft add rule ip nat post oifname out masquerade")
        })();
        let Err(nft) = nft else { return Ok(()) };
        let rule = "iptables-legacy -t nat -A POSTROUTING -o out";
        let legacy = (|| {
            run("iptables-legacy -t nat -F POSTROUTING")?;
            if !ports.is_empty() {
                run(&format!("{rule} -p udp -j MASQUERADE --to-ports {ports}"))?;
            }
            run(&format!("{rule} -j MASQUERADE"))
        })();
        legacy.map(drop).map_err(|legacy| fail!("no NAT: neither {nft}; nor {legacy}"))
    }

    /// A device that does not forward drops what comes and tells nobody.
    fn forward(&self, uplink: &Uplink, value: &str) -> Result<()> {
        let port = uplink.port;
        self.shell(
            Node::Router,
            &format!("echo {value} >/proc/sys/net/ipv4/conf/{port}/forwarding"),
        )
    }

    fn shell(&self, node: Node, script: &str) -> Result<()> {
        let mut command = self.command(node, "sh");
        process::output(command.args(["-c", script]), Duration::from_secs(10)).map(drop)
    }
}
