//! The pairs of addresses as `bewick paths` shows them.

use std::time::Duration;

use bewick_ike::{ConnectionId, endpoint::SaStatus};
use bewick_mobike::{PairStatus, Promise};

use super::{Daemon, history::ms};
use crate::control::{
    Reply,
    roaming::{ConnectionPaths, Moves, PathRecord, Paths, PromiseRecord, SaPaths},
};

impl Daemon {
    /// The pairs of every connection, or of the one of that name.
    pub(super) fn paths(&self, name: Option<&str>) -> Reply {
        let ids = match name.map(|name| self.find(name)).transpose() {
            Ok(Some(one)) => vec![one],
            Ok(None) => (0..self.connections.len()).map(ConnectionId).collect(),
            Err(reply) => return reply,
        };
        let connections = ids.into_iter().filter_map(|id| self.connection_paths(id)).collect();
        Reply::Paths(Paths { connections })
    }

    /// The moves of every connection, or of the one of that name.
    pub(super) fn moves(&self, name: Option<&str>) -> Reply {
        match name.map(|name| self.find(name)).transpose() {
            Ok(_) => Reply::Moves(Moves { moves: self.history.list(name) }),
            Err(reply) => reply,
        }
    }

    fn connection_paths(&self, id: ConnectionId) -> Option<ConnectionPaths> {
        let sas = self.host.status();
        let sas = sas.filter(|sa| sa.connection == Some(id) && sa.state == "established");
        Some(ConnectionPaths {
            name: self.connections.get(id.0)?.name().into(),
            ike_sas: sas.map(|sa| self.sa_paths(&sa)).collect(),
        })
    }

    fn sa_paths(&self, sa: &SaStatus<'_>) -> SaPaths {
        let pairs = self.host.pairs(self.clock.now(), sa.id);
        SaPaths {
            spi_i: format!("{:016x}", sa.spis.0),
            spi_r: format!("{:016x}", sa.spis.1),
            remote_id: sa.peer.into(),
            primary: self.host.primary_state(sa.id).as_str().into(),
            promise: self.host.promise(self.clock.now(), sa.id).map(promise_record),
            paths: pairs.iter().map(|pair| self.path_record(pair)).collect(),
        }
    }

    fn path_record(&self, pair: &PairStatus) -> PathRecord {
        let local = self.addresses.iter().find(|local| local.address == pair.path.local.ip());
        PathRecord {
            local: pair.path.local,
            remote: pair.path.remote,
            interface: local.map(|local| local.interface.clone()),
            current: pair.current,
            state: pair.state.as_str().into(),
            rtt_ms: pair.rtt.map(ms),
            loss_percent: pair.loss,
            age_ms: pair.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            nat: pair.nat,
            validated: pair.validated,
            seen_as: pair.seen,
            one_way: pair.one_way,
        }
    }
}

fn promise_record(promise: Promise) -> PromiseRecord {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    PromiseRecord {
        busy_ms: promise.busy.map(ms),
        idle_ms: promise.idle.map(ms),
        standby_per_hour: promise.standby,
        keepalives_per_hour: promise.keepalives,
        liveness_per_hour: promise.liveness,
    }
}
