//! The rules that lead inner packets to the tunnel's table, and outer ones past it.

use netlink_packet_route::{
    IpProtocol,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange},
};

use super::{PROTOCOL, TABLE_MAIN, family};
use crate::net::{MARK, OUTER_PRIORITY, RULE_PRIORITY, TABLE};

/// A rule, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rule {
    /// what has our port, in IPv4
    OuterUdp(u16),
    /// ESP, in IPv4
    OuterEsp,
    /// a lease is asked for again (RFC 2131 §4.1), in IPv4: port 68 is for root alone
    Dhcp,
    /// everything without our mark
    Inner { ipv4: bool },
}

impl Rule {
    /// `not fwmark 0xbe1c lookup 48668`, and before it `ipproto udp sport PORT lookup main`.
    pub(super) fn message(self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let (ipv4, priority, table) = match self {
            Rule::OuterUdp(_) | Rule::OuterEsp | Rule::Dhcp => (true, OUTER_PRIORITY, TABLE_MAIN),
            Rule::Inner { ipv4 } => (ipv4, RULE_PRIORITY, TABLE),
        };
        message.header.family = family(ipv4);
        message.header.action = RuleAction::ToTable;
        message.attributes.extend([
            RuleAttribute::Priority(priority),
            RuleAttribute::Table(table),
            RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
        ]);
        let port = |port| RulePortRange { start: port, end: port };
        match self {
            Rule::Inner { .. } => {
                message.header.flags = RuleFlags::Invert;
                message.attributes.push(RuleAttribute::FwMark(MARK));
            }
            Rule::OuterUdp(source) => message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::SourcePortRange(port(source)),
            ]),
            Rule::OuterEsp => message.attributes.push(RuleAttribute::IpProtocol(IpProtocol::Esp)),
            Rule::Dhcp => message.attributes.extend([
                RuleAttribute::IpProtocol(IpProtocol::Udp),
                RuleAttribute::SourcePortRange(port(68)),
                RuleAttribute::DestinationPortRange(port(67)),
            ]),
        }
        message
    }
}
