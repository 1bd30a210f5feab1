//! The way to one client among thousands: what it shares with nobody comes and goes without a look at all that
//! the others want.

use std::collections::BTreeMap;

use bewick_ike::ChildId;
use ipnet::IpNet;

use super::{
    Routes,
    rules::Rule,
    wanted::{Child, Inner, Kind, LINK_LOCAL},
};
use crate::net::NetError;

impl Routes {
    /// Leads the networks of a new CHILD_SA to the device, if nobody else has to do with them and nothing else
    /// changes by it; tells whether it did. All else is as it is wanted then, and stays so.
    pub(super) async fn add_alone(&mut self, id: ChildId, child: &Child) -> bool {
        let new = self.settled && !self.wanted.children.contains_key(&id) && is_plain(child);
        let untouched = |net: &IpNet| {
            let mut ways = self.made.routes.range((*net, Kind::Device)..=(*net, Kind::Pass));
            ways.next().is_none() && self.made.rules.contains(&Rule::Inner { ipv4: is_ipv4(net) })
        };
        if !new || !child.routes.iter().all(|(net, _)| untouched(net)) {
            return false;
        }
        // What went wrong is for the long way to say.
        self.settled = false;
        let Ok(Some(link)) = self.find(Kind::Device).await else { return false };
        let mut inners = BTreeMap::new();
        for (net, source) in &child.routes {
            let mtu = child.outer.inner_mtu(&self.locals, !is_ipv4(net));
            inners.entry(*net).or_insert(Inner { source: *source, mtu: Some(mtu) });
        }
        for (net, inner) in inners {
            let key = (net, Kind::Device);
            if self.add_route(Some(link), key, inner).await.is_err() {
                return false;
            }
            self.made.routes.insert(key, inner);
        }
        self.wanted.children.insert(id, child.clone());
        self.settled = true;
        true
    }

    /// Ends that for a CHILD_SA that is not wanted any more; `None` if others have to do with its networks, or
    /// something else changes by it.
    pub(super) async fn remove_alone(&mut self, child: &Child) -> Option<Result<(), NetError>> {
        let nets: Vec<IpNet> = child.routes.iter().map(|(net, _)| *net).collect();
        let wanted = &self.wanted;
        let children = wanted.children.values().map(|child| &child.routes);
        let routes = children.chain(wanted.traps.values().map(|(_, routes)| routes)).flatten();
        let blocks = wanted.blocks.values().flat_map(|block| &block.nets);
        let shared = routes.map(|(net, _)| net).chain(blocks).any(|net| nets.contains(net));
        let family_stays = |of: &IpNet| {
            let others = self.made.routes.keys().filter(|(net, _)| !nets.contains(net));
            others.map(|(net, _)| net).any(|net| is_ipv4(net) == is_ipv4(of))
        };
        if !self.settled || !is_plain(child) || shared || !nets.iter().all(family_stays) {
            return None;
        }
        let mut result = Ok(());
        for net in nets {
            let key = (net, Kind::Device);
            if !self.made.routes.contains_key(&key) {
                continue;
            }
            match self.remove_route(key).await {
                Ok(()) => drop(self.made.routes.remove(&key)),
                Err(e) => {
                    self.settled = false;
                    result = result.and(Err(e));
                }
            }
        }
        Some(result)
    }
}

/// Whether it asks for nothing but ways to the device that keep no other open or closed.
fn is_plain(child: &Child) -> bool {
    let wide = |net: &IpNet| net.contains(&IpNet::V6(LINK_LOCAL));
    child.addresses.is_empty()
        && child.to == Kind::Device
        && !child.routes.iter().any(|(net, _)| wide(net))
}

fn is_ipv4(net: &IpNet) -> bool {
    net.addr().is_ipv4()
}
