//! Lets the kernel's outer packets leave by the uplink that their source address belongs to, as the
//! sockets' do, who are told the uplink: for every local address whose interface has a default route
//! there is a table with that route alone, and rules that lead to it, after the networks in the main
//! table that are nearer than its default routes.
//!
//! The kernel looks up where ESP goes with its source address and our mark; before 6.12 it does not
//! say then that it is ESP, nor which ports it has in UDP. So the mark tells that a packet is ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::{
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::routes::{PROTOCOL, TABLE_MAIN, family, gone_is_fine};
use crate::net::{
    LocalAddress, MARK, NEAR_PRIORITY, NetError, UPLINK_PRIORITY, UPLINK_TABLE, UPLINKS,
};

/// Addresses of one family on one interface that have rules at most.
const ADDRESSES: usize = 32;

/// The default routes of the uplinks, and the rules that lead to them.
pub(super) struct Uplinks {
    handle: Handle,
    wanted: State,
    made: State,
}

/// What there is, or is to be, in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// the table of each interface
    tables: BTreeMap<u32, u32>,
    /// by table and whether it is IPv4
    routes: BTreeMap<(u32, bool), Way>,
    /// the table of each address
    rules: BTreeMap<IpAddr, u32>,
}

/// Where a default route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    ifindex: u32,
    gateway: Option<IpAddr>,
}

impl State {
    /// What `locals` need, best first; an interface that had a table keeps it.
    fn next(&self, locals: &[LocalAddress]) -> State {
        let mut state = State::default();
        let uplinks = || locals.iter().filter(|local| local.metric.is_some());
        let mut taken: BTreeSet<u32> =
            uplinks().filter_map(|local| self.tables.get(&local.ifindex).copied()).collect();
        let mut counts = BTreeMap::new();
        for local in uplinks() {
            let table = match state.tables.get(&local.ifindex).or(self.tables.get(&local.ifindex)) {
                Some(table) => *table,
                None => {
                    let mut tables = UPLINK_TABLE..UPLINK_TABLE + UPLINKS;
                    let Some(table) = tables.find(|table| !taken.contains(table)) else { continue };
                    table
                }
            };
            let ipv4 = local.address.is_ipv4();
            let count = counts.entry((table, ipv4)).or_insert(0);
            if *count == ADDRESSES || state.rules.contains_key(&local.address) {
                continue;
            }
            *count += 1;
            taken.insert(table);
            state.tables.insert(local.ifindex, table);
            let way = Way { ifindex: local.ifindex, gateway: local.gateway };
            state.routes.insert((table, ipv4), way);
            state.rules.insert(local.address, table);
        }
        state
    }

    /// Whether there is anything in it that is not, or not so, in `other`.
    fn goes_beyond(&self, other: &State) -> bool {
        self.rules.iter().any(|(address, table)| other.rules.get(address) != Some(table))
            || self.routes.iter().any(|(key, way)| other.routes.get(key) != Some(way))
    }
}

impl Uplinks {
    pub(super) fn new(handle: Handle) -> Self {
        Uplinks { handle, wanted: State::default(), made: State::default() }
    }

    /// Makes what `locals` need, if that is anything new.
    pub(super) async fn prepare(&mut self, locals: &[LocalAddress]) -> Result<(), NetError> {
        let next = self.wanted.next(locals);
        if !next.goes_beyond(&self.wanted) {
            return Ok(());
        }
        self.wanted = next;
        self.reconcile().await
    }

    /// Makes what `locals` need and nothing else, also what the kernel has dropped by itself.
    pub(super) async fn refresh(&mut self, locals: &[LocalAddress]) -> Result<(), NetError> {
        self.wanted = self.wanted.next(locals);
        let wanted = &self.wanted;
        self.made.routes.retain(|key, _| !wanted.routes.contains_key(key));
        self.reconcile().await
    }

    /// Makes the kernel's state the one that is wanted. Goes on after an error, and returns the
    /// first.
    async fn reconcile(&mut self) -> Result<(), NetError> {
        let (goal, was) = (self.wanted.clone(), self.made.clone());
        let mut result = Ok(());
        let mut note = |outcome: Result<(), NetError>| {
            let ok = outcome.is_ok();
            if result.is_ok() {
                result = outcome;
            }
            ok
        };
        // what leads to a table that is another's now, or nobody's, goes first
        for (address, table) in &was.rules {
            if goal.rules.get(address) != Some(table)
                && note(self.remove_rules(*address, *table).await)
            {
                self.made.rules.remove(address);
            }
        }
        for (key, way) in &goal.routes {
            if was.routes.get(key) != Some(way) && note(self.add_route(*key, *way).await) {
                self.made.routes.insert(*key, *way);
            }
        }
        for (address, table) in &goal.rules {
            if self.made.rules.get(address) != Some(table)
                && note(self.add_rules(*address, *table).await)
            {
                self.made.rules.insert(*address, *table);
            }
        }
        for key in was.routes.keys() {
            if !goal.routes.contains_key(key) && note(self.remove_route(*key).await) {
                self.made.routes.remove(key);
            }
        }
        result
    }

    /// `default via GATEWAY dev INTERFACE onlink table TABLE`; to remove it, `way` is none.
    fn route((table, ipv4): (u32, bool), way: Option<Way>) -> RouteMessage {
        let mut route = match ipv4 {
            true => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            false => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        route.header.protocol = RouteProtocol::from(PROTOCOL);
        // any scope: the kernel has it as it was made
        route.header.scope = RouteScope::NoWhere;
        route.attributes.push(RouteAttribute::Table(table));
        let Some(Way { ifindex, gateway }) = way else { return route };
        route.header.scope =
            if gateway.is_some() || !ipv4 { RouteScope::Universe } else { RouteScope::Link };
        route.attributes.push(RouteAttribute::Oif(ifindex));
        if let Some(gateway) = gateway {
            // the kernel believed that it is on the link, and must not ask the tunnel's routes again
            route.header.flags = RouteFlags::Onlink;
            route.attributes.push(match gateway {
                IpAddr::V4(v4) => RouteAttribute::Gateway(RouteAddress::Inet(v4)),
                IpAddr::V6(v6) if ipv4 => RouteAttribute::Via(RouteVia::Inet6(v6)),
                IpAddr::V6(v6) => RouteAttribute::Gateway(RouteAddress::Inet6(v6)),
            });
        }
        route
    }

    async fn add_route(&self, key: (u32, bool), way: Way) -> Result<(), NetError> {
        let request = self.handle.route().add(Self::route(key, Some(way))).replace();
        let what = "copy an uplink's default route";
        request.execute().await.map_err(|e| NetError::new(what, &e))
    }

    async fn remove_route(&self, key: (u32, bool)) -> Result<(), NetError> {
        let what = "remove the copy of an uplink's default route";
        let request = self.handle.route().del(Self::route(key, None));
        gone_is_fine(request.execute().await, what.into())
    }

    /// `from ADDRESS fwmark 0xbe1c lookup main suppress_prefixlength 0`, and then
    /// `from ADDRESS fwmark 0xbe1c lookup TABLE`
    fn rules(address: IpAddr, table: u32) -> [RuleMessage; 2] {
        [(NEAR_PRIORITY, TABLE_MAIN), (UPLINK_PRIORITY, table)].map(|(priority, table)| {
            let mut message = RuleMessage::default();
            message.header.family = family(address.is_ipv4());
            message.header.src_len = if address.is_ipv4() { 32 } else { 128 };
            message.header.action = RuleAction::ToTable;
            message.attributes.extend([
                RuleAttribute::Source(address),
                RuleAttribute::Priority(priority),
                RuleAttribute::FwMark(MARK),
                RuleAttribute::Table(table),
                RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)),
            ]);
            if priority == NEAR_PRIORITY {
                message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
            }
            message
        })
    }

    async fn add_rules(&self, address: IpAddr, table: u32) -> Result<(), NetError> {
        for rule in Self::rules(address, table) {
            let mut request = self.handle.rule().add();
            *request.message_mut() = rule;
            match request.execute().await {
                Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::EEXIST => {}
                result => {
                    result.map_err(|e| NetError::new("add the rules for an uplink", &e))?;
                }
            }
        }
        Ok(())
    }

    async fn remove_rules(&self, address: IpAddr, table: u32) -> Result<(), NetError> {
        let mut result = Ok(());
        // the later first: while there is only the earlier one, all is as without
        for rule in Self::rules(address, table).into_iter().rev() {
            let what = "remove the rules for an uplink";
            let outcome = gone_is_fine(self.handle.rule().del(rule).execute().await, what.into());
            result = result.and(outcome);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(ifindex: u32, address: &str, metric: Option<u32>) -> LocalAddress {
        LocalAddress {
            address: address.parse().unwrap(),
            ifindex,
            interface: format!("eth{ifindex}"),
            metric,
            gateway: None,
            mtu: 1500,
        }
    }

    #[test]
    fn an_interface_keeps_its_table_and_what_is_free_is_used_again() {
        let (a, b) = (local(7, "10.1.0.7", Some(1)), local(5, "10.2.0.7", Some(2)));
        let both = State::default().next(&[a.clone(), b.clone()]);
        assert_eq!(both.tables, [(7, UPLINK_TABLE), (5, UPLINK_TABLE + 1)].into());
        let one = both.next(std::slice::from_ref(&b));
        assert_eq!(one.tables, [(5, UPLINK_TABLE + 1)].into());
        assert!(!one.goes_beyond(&both) && both.goes_beyond(&one));
        let other = one.next(&[local(9, "10.3.0.7", Some(1)), b]);
        assert_eq!(other.tables, [(9, UPLINK_TABLE), (5, UPLINK_TABLE + 1)].into());
        let router = LocalAddress { gateway: Some("10.1.0.1".parse().unwrap()), ..a };
        assert!(both.next(&[router]).goes_beyond(&both));
    }

    #[test]
    fn an_address_without_a_default_route_has_no_rules() {
        assert_eq!(State::default().next(&[local(7, "10.1.0.7", None)]), State::default());
    }

    #[test]
    fn there_are_only_so_many_tables_and_rules() {
        let many: Vec<_> = (0..1000)
            .map(|i: u32| local(i % 40, &std::net::Ipv4Addr::from(i + 1).to_string(), Some(1)))
            .collect();
        let state = State::default().next(&many);
        assert_eq!((state.tables.len(), state.routes.len()), (16, 16));
        let same: Vec<_> = many.into_iter().map(|a| LocalAddress { ifindex: 1, ..a }).collect();
        assert_eq!(State::default().next(&same).rules.len(), ADDRESSES);
    }
}
