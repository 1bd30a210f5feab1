//! What an earlier run has left in the kernel.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    rule::{RuleAttribute, RuleFlags, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{PROTOCOL, Routes, gone_is_fine, wanted::Kind};
use crate::net::{LAST_PRIORITY, NEAR_PRIORITY, NetError, TABLE, is_our_table};

impl Routes {
    /// Whether the kernel's `found` is the rule that we have made.
    fn is_made(&self, found: &RuleMessage) -> bool {
        self.made.rules.iter().map(|rule| rule.message()).any(|rule| {
            let header = |rule: &RuleMessage| {
                let header = &rule.header;
                let invert = header.flags.contains(RuleFlags::Invert);
                (header.family, header.dst_len, header.src_len, header.action, invert)
            };
            header(&rule) == header(found)
                && rule.attributes.iter().all(|attribute| found.attributes.contains(attribute))
        })
    }

    /// Whether the kernel's `found` is one of our routes that lead nowhere.
    fn is_closed(&self, found: &RouteMessage) -> bool {
        let kind = match found.header.kind {
            RouteType::Unreachable => Kind::Block,
            RouteType::Throw => Kind::Pass,
            _ => return false,
        };
        let ipv4 = found.header.address_family == AddressFamily::Inet;
        let len = found.header.destination_prefix_length;
        self.made.routes.keys().any(|(net, made)| {
            let to = found.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(to)) => net.network() == *to,
                RouteAttribute::Destination(RouteAddress::Inet6(to)) => net.network() == *to,
                _ => false,
            });
            *made == kind
                && net.addr().is_ipv4() == ipv4
                && net.prefix_len() == len
                && (to || len == 0)
        })
    }

    /// What an earlier run has left closed.
    pub(super) async fn left_closed(&self) -> BTreeSet<IpNet> {
        let mut out = BTreeSet::new();
        for route in self.all_routes().await {
            let header = &route.header;
            let ours = header.protocol == RouteProtocol::from(PROTOCOL)
                && route.attributes.contains(&RouteAttribute::Table(TABLE));
            if !ours || header.kind != RouteType::Unreachable {
                continue;
            }
            let any: IpAddr = match header.address_family {
                AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
                _ => Ipv6Addr::UNSPECIFIED.into(),
            };
            let to = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::from(*to)),
                RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::from(*to)),
                _ => None,
            });
            out.extend(IpNet::new(to.unwrap_or(any), header.destination_prefix_length).ok());
        }
        out
    }

    /// Every route of the machine's, of both families, as far as it has them.
    async fn all_routes(&self) -> Vec<RouteMessage> {
        let families = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        let mut out = Vec::new();
        for family in families {
            let mut routes = self.handle.route().get(family).execute();
            while let Ok(Some(route)) = routes.try_next().await {
                out.push(route);
            }
        }
        out
    }

    /// Removes every rule that leads to our tables or is ours, and every route in the tables.
    pub(super) async fn remove_leftovers(&self) -> Result<(), NetError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let mut rules = self.handle.rule().get(version).execute();
            let mut ours = Vec::new();
            // a machine without the family has none of its rules
            while let Ok(Some(rule)) = rules.try_next().await {
                let has = |attribute| rule.attributes.contains(&attribute);
                let marked = has(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
                let mut places = (NEAR_PRIORITY..=LAST_PRIORITY).map(RuleAttribute::Priority);
                let placed = marked && places.any(has);
                if (placed || has(RuleAttribute::Table(TABLE))) && !self.is_made(&rule) {
                    ours.push(rule);
                }
            }
            for rule in ours {
                let what = "remove a rule of an earlier run";
                gone_is_fine(self.handle.rule().del(rule).execute().await, what.into())?;
            }
        }
        for route in self.all_routes().await {
            let marked = route.header.protocol == RouteProtocol::from(PROTOCOL);
            let ours = route.attributes.iter().any(|attribute| match attribute {
                RouteAttribute::Table(TABLE) => true,
                RouteAttribute::Table(table) => marked && is_our_table(*table),
                _ => false,
            });
            if ours && !self.is_closed(&route) {
                let what = "remove a route of an earlier run";
                gone_is_fine(self.handle.route().del(route).execute().await, what.into())?;
            }
        }
        Ok(())
    }
}
