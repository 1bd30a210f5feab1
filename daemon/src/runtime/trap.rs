//! Connections that wait for packets: which trap of the data plane is for which CHILD_SA, and the routes
//! that lead packets to it.

use bewick_ike::{ConnectionId, Mode, Packet, TrafficSelector, config::Selectors};
use bewick_mobike::Input;
use bewick_xfrm::{Trap, TrapId};
use tracing::warn;

use super::Daemon;
use crate::config::Connection;

impl Daemon {
    /// Catches packets for this CHILD_SA, or has the plane tell of the next one. What can't be caught is
    /// told: `bewick up` still brings it up.
    pub(super) async fn set_trap(&mut self, connection: ConnectionId, child: usize) {
        let Some((id, trap)) = trap_of(&self.connections, connection, child) else { return };
        let name = self.connections.get(connection.0).map(Connection::name).unwrap_or_default();
        if let Err(e) = self.plane.set_trap(&trap).await {
            warn!(connection = name, "packets can't bring it up, which is tried again: {e}");
            self.host.handle(self.clock.now(), Input::Untrapped { connection, child });
            return;
        }
        if self.trapped.insert(id, (connection, child)).is_none()
            && is_tunnel(&self.connections, connection, child)
        {
            self.lead_to_trap(&trap).await;
        }
    }

    /// Catches none any more.
    pub(super) async fn clear_trap(&mut self, connection: ConnectionId, child: usize) {
        let Some((id, _)) = trap_of(&self.connections, connection, child) else { return };
        self.trapped.remove(&id);
        if let Err(e) = self.routes.untrap(id.0).await {
            warn!("{e}");
        }
        if let Err(e) = self.plane.clear_trap(id).await {
            warn!("{e}");
        }
    }

    /// Our addresses have changed: one that packets of this machine had may be gone.
    pub(super) async fn lead_to_traps(&mut self) {
        let all: Vec<(ConnectionId, usize)> = self.trapped.values().copied().collect();
        for (connection, child) in all {
            if !is_tunnel(&self.connections, connection, child) {
                continue;
            }
            if let Some((_, trap)) = trap_of(&self.connections, connection, child) {
                self.lead_to_trap(&trap).await;
            }
        }
    }

    async fn lead_to_trap(&mut self, trap: &Trap) {
        let led = match self.monitor.all_addresses().await {
            Ok(own) => {
                self.routes.trap(trap.id.0, &trap.ts_local, &trap.ts_remote, trap.if_id, &own).await
            }
            Err(e) => Err(e),
        };
        if let Err(e) = led {
            warn!("{e}");
        }
    }

    /// The plane has caught a packet.
    pub(super) fn on_acquire(&mut self, id: TrapId, packet: Packet) {
        if let Some((connection, child)) = self.trapped.get(&id).copied() {
            let input = Input::Acquire { connection, child, packet };
            self.host.handle(self.clock.now(), input);
        }
    }
}

/// Whether packets for it have to be led to the tunnel device first: in transport mode they take the way that they
/// would take anyway, and the trap's policy catches them there.
fn is_tunnel(connections: &[Connection], connection: ConnectionId, child: usize) -> bool {
    let of_child = connections.get(connection.0).and_then(|one| one.ike.child(child));
    of_child.is_some_and(|of_child| of_child.mode == Mode::Tunnel)
}

/// The trap for a CHILD_SA of the configuration: its number counts all of them. `None` if there is no such
/// CHILD_SA, or what it carries is not known before it is there.
fn trap_of(
    connections: &[Connection],
    connection: ConnectionId,
    child: usize,
) -> Option<(TrapId, Trap)> {
    let before = connections.get(..connection.0)?.iter().map(|c| c.ike.children().count());
    let id = TrapId(u32::try_from(before.sum::<usize>() + child).ok()?);
    let ike = &connections.get(connection.0)?.ike;
    let of_child = ike.child(child)?;
    let list = |selectors: &Selectors| -> Option<Vec<TrafficSelector>> {
        match selectors {
            Selectors::List(list) => Some(list.clone()),
            Selectors::Dynamic => None,
        }
    };
    let (ts_local, ts_remote) = (list(of_child.ts_local)?, list(of_child.ts_remote)?);
    Some((id, Trap { id, ts_local, ts_remote, if_id: ike.carriage.if_id }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, report::Source};

    #[test]
    fn each_child_sa_has_a_trap_of_its_own() {
        let one = |name: &str, local: u8| {
            format!(
                "[[connection]]\nname = \"{name}\"\nrole = \"initiator\"\nlocal_id = \"a@example.com\"\n\
                 remote_id = \"b.example.com\"\npsk = \"swordfish\"\ngateway = \"192.0.2.1\"\n\
                 start = \"trap\"\nlocal_ts = [\"10.{local}.0.0/16\"]\nremote_ts = [\"10.1.0.0/16\"]\n\
                 [[connection.child]]\nname = \"two\"\nlocal_ts = [\"10.{local}.0.0/16\"]\n\
                 remote_ts = [\"10.2.0.0/16\"]\n"
            )
        };
        let text = one("a", 7) + &one("b", 8);
        let source = Source { file: "b.toml", text: &text };
        let config = config::parse(source, std::path::Path::new(""), true).unwrap();
        let mut names = Vec::new();
        for connection in [0, 1] {
            for child in [0, 1] {
                let connection = ConnectionId(connection);
                let (id, trap) = trap_of(&config.connections, connection, child).unwrap();
                assert_eq!(trap.id, id);
                names.push((id.0, format!("{:?}", trap.ts_remote)));
            }
        }
        let (one, two) = ("[10.1.0.0/16]", "[10.2.0.0/16]");
        let wanted = [(0, one), (1, two), (2, one), (3, two)];
        assert_eq!(names, wanted.map(|(id, net)| (id, net.to_owned())));
        assert!(trap_of(&config.connections, ConnectionId(0), 2).is_none());
        assert!(trap_of(&config.connections, ConnectionId(2), 0).is_none());
    }
}
