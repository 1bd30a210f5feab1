//! Configuration payloads (RFC 7296 §2.19, §3.15): virtual addresses, DNS servers and their domains
//! (RFC 8598), networks behind the gateway. What is not understood is passed over on both sides.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    config::{ConnectionConfig, ConnectionId, Selectors},
    event::SaId,
    wire::{AttributeType, AttributeValue, CfgType, Configuration, Identity, Payload},
};

use super::{Shared, fault::Fault};

/// More servers, domains or networks than this are not taken from a reply, nor put into one.
const MOST_TOLD: usize = 32;

/// Octets of a domain, at most (RFC 1035 §2.3.4).
const LONGEST_DOMAIN: usize = 253;

/// What a responder tells an initiator.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) domains: Vec<String>,
    pub(crate) subnets: Vec<IpNet>,
}

/// The initiator's CFG_REQUEST, if it wants an address.
pub(crate) fn request(config: &ConnectionConfig) -> Option<Payload> {
    use AttributeValue::*;
    let mut wanted = Vec::new();
    if config.request_ipv4 {
        wanted.extend([Ip4Address(None), Ip4Dns(None), Ip4Subnet(None)]);
    }
    if config.request_ipv6 {
        wanted.extend([Ip6Address(None), Ip6Dns(None), Ip6Subnet(None)]);
    }
    if wanted.is_empty() {
        return None;
    }
    // RFC 8598 §3.1: that we can have servers for some domains only.
    wanted.push(DnsDomain(None));
    Some(Payload::Configuration(Configuration::new(CfgType::REQUEST, wanted)))
}

/// What the CFG_REPLY tells; what we did not ask for is not taken.
///
/// # Errors
/// If it has no address where we need one, or one that no host can have.
pub(crate) fn read_reply(config: &ConnectionConfig, payloads: &[Payload]) -> Result<Told, String> {
    let asked = |ipv4: bool| if ipv4 { config.request_ipv4 } else { config.request_ipv6 };
    let mut told = Told::default();
    let replies = payloads.iter().filter_map(|payload| match payload {
        Payload::Configuration(c) if c.kind == CfgType::REPLY => Some(c),
        _ => None,
    });
    for value in replies.flat_map(Configuration::values) {
        match value {
            AttributeValue::Ip4Address(Some(a)) => told.addresses.push(a.into()),
            AttributeValue::Ip6Address(Some((a, _))) => told.addresses.push(a.into()),
            AttributeValue::Ip4Dns(Some(a)) => told.dns.push(a.into()),
            AttributeValue::Ip6Dns(Some(a)) => told.dns.push(a.into()),
            AttributeValue::Ip4Subnet(Some(net)) => told.subnets.push(IpNet::from(net).trunc()),
            AttributeValue::Ip6Subnet(Some(net)) => told.subnets.push(IpNet::from(net).trunc()),
            AttributeValue::DnsDomain(Some(d)) if d.len() <= LONGEST_DOMAIN => told.domains.push(d),
            _ => {}
        }
    }
    told.addresses.retain(|a| asked(a.is_ipv4()));
    // One address of each family, however many are told (RFC 8019 §5 advises a limit).
    let mut seen = [false; 2];
    told.addresses.retain(|a| !std::mem::replace(&mut seen[usize::from(a.is_ipv4())], true));
    if let Some(address) = told.addresses.iter().find(|a| !is_host(**a)) {
        return Err(format!("the peer assigned {address}, which no host can have"));
    }
    if told.addresses.is_empty() && (asked(true) || asked(false)) {
        return Err("the peer assigned no virtual address".into());
    }
    told.dns.retain(|a| asked(a.is_ipv4()) && is_host(*a));
    told.subnets.retain(|net| asked(net.addr().is_ipv4()));
    // RFC 8598 §3.2: domains come with servers for them, or mean nothing.
    if told.dns.is_empty() || told.addresses.is_empty() {
        told.domains.clear();
    }
    told.dns.truncate(MOST_TOLD);
    told.domains.truncate(MOST_TOLD);
    told.subnets.truncate(MOST_TOLD);
    Ok(told)
}

/// Whether one host on a network can have this address.
fn is_host(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(a) => !a.is_broadcast() && a.octets()[0] != 0,
            // An address of the link alone leads nowhere through a tunnel.
            IpAddr::V6(a) => !a.is_unicast_link_local() && a.to_ipv4_mapped().is_none(),
        }
}

/// Leases what the CFG_REQUEST asks for (RFC 7296 §2.19).
///
/// # Errors
/// The notify that the peer gets, and the words for the operator.
pub(crate) fn assign(
    shared: &mut Shared,
    (sa, who): (SaId, &Identity),
    connection: ConnectionId,
    request: Option<&Configuration>,
) -> Result<Vec<IpAddr>, (Fault, String)> {
    let Some(pools) = shared.pools.get_mut(&connection).filter(|pools| !pools.is_empty()) else {
        return Ok(Vec::new());
    };
    let mut assigned: Vec<IpAddr> = Vec::new();
    let mut asked = [false; 2];
    for value in request.into_iter().flat_map(Configuration::values) {
        let (wanted, ipv4): (Option<IpAddr>, bool) = match value {
            AttributeValue::Ip4Address(a) => (a.map(Into::into), true),
            AttributeValue::Ip6Address(a) => (a.map(|(a, _)| a.into()), false),
            _ => continue,
        };
        // One address of each family, however many are asked for (RFC 8019 §5).
        if std::mem::replace(&mut asked[usize::from(ipv4)], true) {
            continue;
        }
        let wanted = wanted.filter(|a| !a.is_unspecified());
        let mut of_family = pools.iter_mut().filter(|p| p.is_ipv4() == ipv4);
        assigned.extend(of_family.find_map(|pool| pool.lease(wanted, who, sa)));
    }
    if asked == [false; 2] {
        let text = "the peer asks for no virtual address, and must have one".to_owned();
        return Err((Fault::AddressNotAskedFor, text));
    }
    if assigned.is_empty() {
        let of = |ipv4: bool| asked[usize::from(ipv4)];
        let full: Vec<String> = pools
            .iter()
            .filter(|pool| of(pool.is_ipv4()))
            .map(|pool| {
                format!("the pool {} has no free address left of {}", pool.net(), pool.size())
            })
            .collect();
        let text = match full.is_empty() {
            true => "the peer asks for an address of a family that no pool has".to_owned(),
            false => full.join(", "),
        };
        return Err((Fault::NoAddress, text));
    }
    Ok(assigned)
}

/// The CFG_REPLY, only if there was a CFG_REQUEST (RFC 7296 §2.19) and there is something to tell.
pub(crate) fn reply(
    config: &ConnectionConfig,
    request: Option<&Configuration>,
    assigned: &[IpAddr],
) -> Option<Payload> {
    let asks = |kind| request.is_some_and(|c| c.attributes.iter().any(|a| a.kind == kind));
    let mut values = Vec::new();
    request?;
    values.extend(assigned.iter().map(|address| match address {
        IpAddr::V4(a) => AttributeValue::Ip4Address(Some(*a)),
        IpAddr::V6(a) => AttributeValue::Ip6Address(Some((*a, 128))),
    }));
    let has = |ipv4: bool| assigned.iter().any(|a| a.is_ipv4() == ipv4);
    let dns_v4 = has(true) || asks(AttributeType::INTERNAL_IP4_DNS);
    let dns_v6 = has(false) || asks(AttributeType::INTERNAL_IP6_DNS);
    let fits = |a: &&IpAddr| if a.is_ipv4() { dns_v4 } else { dns_v6 };
    let before = values.len();
    values.extend(config.dns.iter().filter(fits).take(MOST_TOLD).map(|server| match server {
        IpAddr::V4(a) => AttributeValue::Ip4Dns(Some(*a)),
        IpAddr::V6(a) => AttributeValue::Ip6Dns(Some(*a)),
    }));
    // RFC 8598 §3.2: only to who asks, and never without a server for them.
    if values.len() > before && asks(AttributeType::INTERNAL_DNS_DOMAIN) {
        let domains = config.dns_domains.iter().take(MOST_TOLD).cloned();
        values.extend(domains.map(|domain| AttributeValue::DnsDomain(Some(domain))));
    }
    let subnets = match &config.ts_local {
        Selectors::List(list) => list.iter().flat_map(|ts| ts.nets()).take(MOST_TOLD).collect(),
        Selectors::Dynamic => Vec::new(),
    };
    values.extend(subnets.into_iter().filter_map(|net| match net {
        IpNet::V4(net) => {
            asks(AttributeType::INTERNAL_IP4_SUBNET).then_some(AttributeValue::Ip4Subnet(Some(net)))
        }
        IpNet::V6(net) => {
            asks(AttributeType::INTERNAL_IP6_SUBNET).then_some(AttributeValue::Ip6Subnet(Some(net)))
        }
    }));
    (!values.is_empty()).then(|| Payload::Configuration(Configuration::new(CfgType::REPLY, values)))
}
