//! The daemon's state as `bewick status` shows it.

use bewick_ike::{ConnectionId, Mode, Role, endpoint::SaStatus};

use super::Daemon;
use crate::{
    config::proposal::esp_name,
    control::{
        Status,
        protocol::{AddressStatus, ChildStatus, ConnectionStatus, DataPlaneStatus, IkeSaStatus},
    },
};

impl Daemon {
    /// Everything, as of now.
    pub(super) async fn status(&mut self) -> Status {
        let description = self.plane.describe();
        let mut connections = Vec::new();
        for index in 0..self.connections.len() {
            connections.extend(self.connection_status(ConnectionId(index)));
        }
        for child in connections.iter_mut().flat_map(
            |c: &mut (ConnectionStatus, Vec<bewick_ike::ChildId>)| {
                let ids = std::mem::take(&mut c.1);
                c.0.ike_sas.iter_mut().flat_map(|sa| &mut sa.children).zip(ids)
            },
        ) {
            // a CHILD_SA that has just gone has no counters any more
            let Ok(counters) = self.plane.counters(child.1).await else { continue };
            child.0.octets_in = counters.octets_in;
            child.0.octets_out = counters.octets_out;
            child.0.packets_in = counters.packets_in;
            child.0.packets_out = counters.packets_out;
        }
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            dataplane: DataPlaneStatus {
                kind: description.kind.as_str().into(),
                reason: description.reason,
                move_method: description.move_method.into(),
            },
            addresses: self
                .addresses
                .iter()
                .map(|local| AddressStatus {
                    address: local.address,
                    interface: local.interface.clone(),
                    metric: local.metric,
                })
                .collect(),
            connections: connections.into_iter().map(|(status, _)| status).collect(),
        }
    }

    /// One connection, and the names of its CHILD_SAs in their order.
    fn connection_status(
        &self,
        id: ConnectionId,
    ) -> Option<(ConnectionStatus, Vec<bewick_ike::ChildId>)> {
        let connection = self.connections.get(id.0)?;
        let sas: Vec<SaStatus<'_>> =
            self.host.status().filter(|sa| sa.connection == Some(id)).collect();
        let state = if sas.iter().any(|sa| sa.state == "established") {
            "established"
        } else {
            match connection.ike.role {
                Role::Responder => "listening",
                Role::Initiator if sas.iter().any(|sa| sa.state == "connecting") => "connecting",
                Role::Initiator if self.waiters.is_retrying(id) => "waiting",
                Role::Initiator if self.host.is_trapped(id) => "trap",
                Role::Initiator => "idle",
            }
        };
        let role = match connection.ike.role {
            Role::Initiator => "initiator",
            Role::Responder => "responder",
        };
        let children = sas.iter().flat_map(|sa| sa.children).map(|child| child.id).collect();
        let local_id = connection.ike.local_id.to_string();
        let status = ConnectionStatus {
            name: connection.name().into(),
            role: role.into(),
            state: state.into(),
            ike_sas: sas.iter().map(|sa| self.sa_status(sa, &local_id)).collect(),
        };
        Some((status, children))
    }

    fn sa_status(&self, sa: &SaStatus<'_>, local_id: &str) -> IkeSaStatus {
        let told = self.established.get(&sa.id);
        IkeSaStatus {
            spi_i: format!("{:016x}", sa.spis.0),
            spi_r: format!("{:016x}", sa.spis.1),
            state: sa.state.into(),
            local: sa.path.local,
            remote: sa.path.remote,
            local_id: local_id.into(),
            remote_id: sa.peer.into(),
            nat_local: sa.nat.local,
            nat_remote: sa.nat.remote,
            mobike: self.host.is_mobike(sa.id),
            virtual_ips: told.map(|told| told.virtual_ips.clone()).unwrap_or_default(),
            dns: told.map(|told| told.dns.clone()).unwrap_or_default(),
            dns_domains: told.map(|told| told.domains.clone()).unwrap_or_default(),
            subnets: told
                .map(|told| told.subnets.iter().map(ToString::to_string).collect())
                .unwrap_or_default(),
            children: sa.children.iter().map(child_status).collect(),
        }
    }
}

fn child_status(child: &bewick_ike::Child) -> ChildStatus {
    let shown =
        |list: &[bewick_ike::TrafficSelector]| list.iter().map(|ts| ts.to_string()).collect();
    ChildStatus {
        spi_in: child.spi_in.to_string(),
        spi_out: child.spi_out.to_string(),
        mode: match child.mode {
            Mode::Tunnel => "tunnel",
            Mode::Transport => "transport",
        }
        .into(),
        suite: esp_name(child.suite),
        esn: child.esn,
        encap: child.encap,
        local_ts: shown(&child.ts_local),
        remote_ts: shown(&child.ts_remote),
        octets_in: 0,
        octets_out: 0,
        packets_in: 0,
        packets_out: 0,
    }
}
