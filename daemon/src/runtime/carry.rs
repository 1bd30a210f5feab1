//! Carries out what the machines say: datagrams to the sockets, actions to the data plane and the
//! routes, names to the resolver, events to whoever listens.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use bewick_ike::{
    Action, ActionError, ActionId, ChildId, ChildSa, ConnectionId, Mode, Role, config::Selectors,
};
use bewick_mobike::{Event, Input, Output};
use ipnet::IpNet;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Daemon, keylog::KeyLog};
use crate::{
    config::{Connection, KillSwitch, Start},
    dns::Asked,
    net::Closed,
};

/// How long a gateway's name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(10);

/// What the resolver says of a connection's gateway.
pub(super) struct Resolved {
    connection: ConnectionId,
    /// name and addresses, of each name that could be resolved
    found: Vec<(String, Vec<IpAddr>)>,
}

impl Daemon {
    /// Carries out everything that waits, and then looks after the control clients that wait for it.
    pub(super) async fn carry_out(&mut self) {
        while let Some(output) = self.host.poll_output() {
            match output {
                Output::Transmit(transmit) => {
                    // what could not be sent is a lost packet: the machines send again
                    let path = transmit.path;
                    if let Err(e) = self.udp.send_ike(&path, &transmit.bytes) {
                        debug!(%path, "send: {e}");
                        // but on a connection of ours nothing is sent twice
                        if path.is_tcp() && Some(path.local.port()) != self.udp.tcp_port() {
                            self.host.handle(self.clock.now(), Input::Disconnected(path));
                        }
                    }
                }
                Output::Keepalive(path) => {
                    if let Err(e) = self.udp.send_keepalive(&path) {
                        debug!(%path, "send a keepalive: {e}");
                    }
                }
                Output::Action { id, action } => {
                    let result = self.act(id, &action).await;
                    self.host.handle(self.clock.now(), Input::Answer { id, result });
                }
                Output::Resolve(connection) => self.resolve(connection),
                Output::Count { sa, children } => {
                    let (sent, received) = self.count(&children).await;
                    self.host.handle(self.clock.now(), Input::Counted { sa, sent, received });
                }
                Output::SetTrap { connection, child } => self.set_trap(connection, child).await,
                Output::ClearTrap { connection, child } => self.clear_trap(connection, child).await,
                Output::Event(event) => self.on_event(&event).await,
                Output::Keys(keys) => self.write_down(|log| log.ike(&keys)),
            }
        }
        self.serve_waiters();
    }

    /// Has the data plane and the routes do what is to be done, both or neither.
    async fn act(&mut self, id: ActionId, action: &Action) -> Result<(), ActionError> {
        let refused = |e: &dyn std::fmt::Display| ActionError(e.to_string());
        match action {
            Action::Install(sa) => {
                self.write_down(|log| log.esp(sa));
                self.plane.install(sa).await.map_err(|e| refused(&e))?;
                if let Err(e) = self.route(sa).await {
                    if let Err(e) = self.plane.remove(sa.id).await {
                        warn!("{e}");
                    }
                    return Err(e);
                }
                Ok(())
            }
            Action::Remove(id) => {
                let routes = self.routes.remove(*id).await.map_err(|e| refused(&e));
                let plane = self.plane.remove(*id).await.map_err(|e| refused(&e));
                routes.and(plane)
            }
            Action::Retire(ids) => self.plane.retire(ids).await.map_err(|e| refused(&e)),
            Action::Cap { children, on } => {
                self.plane.cap(children, *on);
                Ok(())
            }
            Action::Move(moves) => {
                let report = self.plane.move_children(moves).await.map_err(|e| refused(&e))?;
                let (requests, round_trips) = (report.requests, report.round_trips);
                debug!(requests, round_trips, took = ?report.took, "data plane moved");
                // a size that is not right costs fragments, and is no reason to go back
                if let Err(e) = self.routes.moved(moves).await {
                    warn!("{e}");
                }
                if let Some(sa) = self.host.asked_by(id) {
                    self.history.reprogrammed(sa, moves.len(), &report);
                }
                Ok(())
            }
        }
    }

    /// Writes keys down, if the operator wants that.
    fn write_down(&mut self, write: impl FnOnce(&mut KeyLog) -> std::io::Result<()>) {
        if let Some(Err(e)) = self.key_log.as_mut().map(write) {
            warn!("key_log: {e}");
        }
    }

    /// What moves that have been over for a while have cost, as far as the data plane can tell.
    pub(super) fn measure(&mut self) {
        for sa in self.history.to_measure(Instant::now()) {
            let status = self.host.sa(sa);
            let children: Vec<ChildId> = status
                .map(|status| status.children.iter().map(|child| child.id).collect())
                .unwrap_or_default();
            let since: Vec<_> =
                children.into_iter().filter_map(|id| self.plane.since_mark(id)).collect();
            let gap = since.iter().map(|since| since.longest_gap).max();
            self.history.measured(sa, gap, since.iter().map(|since| since.lost).sum());
        }
    }

    /// Packets that these CHILD_SAs have sent and have received on their path.
    async fn count(&mut self, children: &[ChildId]) -> (u64, u64) {
        let (mut sent, mut received) = (0_u64, 0_u64);
        for child in children {
            // One that has just gone has no counters any more.
            let Ok(counters) = self.plane.counters(*child).await else { continue };
            sent = sent.saturating_add(counters.packets_out);
            let there = counters.packets_in.saturating_sub(counters.wrong_path);
            received = received.saturating_add(there);
        }
        (sent, received)
    }

    async fn route(&mut self, sa: &ChildSa) -> Result<(), ActionError> {
        let refused = |e: &dyn std::fmt::Display| ActionError(e.to_string());
        let own = match sa.virtual_ips.is_empty() {
            true => self.monitor.all_addresses().await.map_err(|e| refused(&e))?,
            false => Vec::new(),
        };
        self.routes.add(sa, &own).await.map_err(|e| refused(&e))
    }

    /// Looks up the addresses of a connection's gateways, without holding up anything else.
    fn resolve(&mut self, connection: ConnectionId) {
        let Some(config) = self.connections.get(connection.0) else { return };
        let (names, answers) = (config.gateways.clone(), self.resolved.clone());
        tokio::spawn(async move {
            let mut found = Vec::new();
            for name in names {
                let addresses = match name.parse() {
                    Ok(address) => vec![address],
                    Err(_) => lookup(&name).await,
                };
                found.push((name, addresses));
            }
            // nobody waits for it when the daemon ends
            let _ = answers.send(Resolved { connection, found }).await;
        });
    }

    pub(super) fn on_resolved(&mut self, resolved: Resolved) {
        let mut addresses = Vec::new();
        for (name, found) in resolved.found {
            addresses.extend(self.gateways.answer(&name, found));
        }
        let connection = resolved.connection;
        self.host.handle(self.clock.now(), Input::Resolved { connection, addresses });
    }

    async fn on_event(&mut self, event: &Event) {
        match event {
            Event::Established { established, .. } => {
                self.established.insert(established.sa, established.clone());
                self.block(established.connection).await;
                self.servers_change(established.role);
            }
            Event::Closed { sa, .. } => {
                if let Some(gone) = self.established.remove(sa) {
                    self.servers_change(gone.role);
                }
            }
            _ => {}
        }
        // The gap that a move makes counts from where it begins.
        if let Some(sa) = self.history.begins(event) {
            let sa = self.host.sa(sa);
            let children: Vec<ChildId> =
                sa.iter().flat_map(|sa| sa.children.iter().map(|child| child.id)).collect();
            children.into_iter().for_each(|id| self.plane.mark(id));
        }
        self.history.event(event);
        self.recorder.event(event);
        self.waiters.note(event);
        self.waiters.forward(event, &self.recorder.last());
    }

    /// An IKE_SA in which we have this role has come or gone: a gateway's clients, which are many, tell it of no
    /// name servers.
    fn servers_change(&self, role: Role) {
        if role == Role::Initiator {
            self.ask_servers();
        }
    }

    /// Has the resolver ask the name servers of all tunnels that we have as a client.
    fn ask_servers(&self) {
        let mut asked = Asked::default();
        for told in self.established.values().filter(|told| told.role == Role::Initiator) {
            let Some(connection) = self.connections.get(told.connection.0) else { continue };
            let nets = remote_nets(connection);
            let carried = |server: IpAddr| nets.iter().any(|net| net.contains(&server));
            for left_out in asked.add(&told.dns, &told.domains, carried) {
                warn!(connection = connection.name(), "the gateway tells of {left_out}: not used");
            }
        }
        self.resolver.ask(asked);
    }

    /// From the first time that a client's connection is up, what belongs in its tunnel goes nowhere
    /// else until the operator takes it down.
    async fn block(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id.0) else { return };
        if connection.ike.role != Role::Initiator || connection.kill_switch == KillSwitch::Off {
            return;
        }
        let name = connection.name().to_owned();
        if let Err(e) = self.routes.block(&name, tunnel_nets(connection)).await {
            warn!("{e}");
        }
    }

    /// The operator has taken the connection down, and nothing else ends [`Daemon::block`].
    pub(super) async fn unblock(&mut self, name: &str) {
        // a gateway's clients may come back
        let initiator = |c: &&Connection| c.name() == name && c.ike.role == Role::Initiator;
        if !self.connections.iter().any(|c| initiator(&c)) {
            return;
        }
        if let Err(e) = self.routes.unblock(name).await {
            warn!("{e}");
        }
    }
}

/// What is closed from the start: with a client's kill switch what belongs in its tunnel, for a crash
/// is no `bewick down`; and what belongs in a gateway's tunnels, since a client that is not there is no
/// reason to send to it in clear.
pub(super) fn closed(connections: &[Connection]) -> Vec<Closed> {
    let closed = |connection: &Connection| {
        let responder = connection.ike.role == Role::Responder;
        let stays = connection.kill_switch == KillSwitch::Always;
        // what waits for packets must have them, and send none of them in clear
        let always = stays || connection.start == Start::Trap;
        let nets = match (responder, connection.kill_switch) {
            (true, _) => client_nets(connection),
            (false, KillSwitch::Off) => Vec::new(),
            (false, _) => tunnel_nets(connection),
        };
        let connection = connection.name().to_owned();
        Closed { connection, nets, always: always || responder, stays, guarded: !responder }
    };
    connections.iter().map(closed).filter(|closed| !closed.nets.is_empty()).collect()
}

/// What belongs in a client's tunnel: also the family that it does not carry, where it is for all of
/// the other one (RFC 7359 §4).
fn tunnel_nets(connection: &Connection) -> Vec<IpNet> {
    let mut nets = remote_nets(connection);
    let all = [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
    if all.iter().any(|all| nets.contains(all)) {
        nets.extend(all);
    }
    nets
}

/// What is at the other end of the tunnels; the peer's own address, as transport mode has it, is never closed, or
/// IKE could not reach it.
fn remote_nets(connection: &Connection) -> Vec<IpNet> {
    let tunnels = connection.ike.children().filter(|child| child.mode == Mode::Tunnel);
    tunnels.flat_map(|child| nets(child.ts_remote)).collect()
}

fn nets(selectors: &Selectors) -> Vec<IpNet> {
    match selectors {
        Selectors::List(list) => list.iter().flat_map(|ts| ts.nets()).collect(),
        Selectors::Dynamic => Vec::new(),
    }
}

/// A warning that one family's traffic passes a tunnel that looks like one for everything.
pub(super) fn half_tunnel(connection: &Connection) -> Option<String> {
    if connection.ike.role != Role::Initiator || connection.kill_switch != KillSwitch::Off {
        return None;
    }
    let whole = |ipv4: bool| {
        let mut nets = remote_nets(connection).into_iter();
        nets.any(|net| net.prefix_len() == 0 && net.addr().is_ipv4() == ipv4)
    };
    let (carried, other, missing) = match (whole(true), whole(false)) {
        (true, false) => ("IPv4", "IPv6", "::/0"),
        (false, true) => ("IPv6", "IPv4", "0.0.0.0/0"),
        _ => return None,
    };
    Some(format!(
        "{} carries all of {carried} and not {other}, which leaves this machine in clear: add \
         {missing:?} to remote_ts, or take out kill_switch = \"off\"",
        connection.name()
    ))
}

/// Where a gateway has nobody but its clients: its pools, and what may be on their side unless that
/// has room for what is on its own side too.
fn client_nets(connection: &Connection) -> Vec<IpNet> {
    let ike = &connection.ike;
    if ike.role != Role::Responder {
        return Vec::new();
    }
    let own: Vec<IpNet> = ike.children().flat_map(|child| nets(child.ts_local)).collect();
    let mut out = remote_nets(connection);
    out.retain(|net| net.prefix_len() > 0 && !own.iter().any(|own| net.contains(own)));
    out.extend(&ike.pools);
    out
}

/// The addresses of `name`, none if it can't be resolved.
async fn lookup(name: &str) -> Vec<IpAddr> {
    match timeout(LOOKUP, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(e)) => {
            warn!("look up {name}: {e}");
            Vec::new()
        }
        Err(_) => {
            warn!("look up {name}: no answer in {} s", LOOKUP.as_secs());
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, report::Source};

    fn client(remote_ts: &str) -> Option<String> {
        client_of(remote_ts, "off").iter().find_map(half_tunnel)
    }

    fn client_of(remote_ts: &str, kill_switch: &str) -> Vec<Connection> {
        let text = format!(
            "[[connection]]\nname = \"a\"\nrole = \"initiator\"\nlocal_id = \"l@example.com\"\n\
             remote_id = \"vpn.example.com\"\npsk = \"swordfish\"\ngateway = \"192.0.2.1\"\n\
             remote_ts = {remote_ts}\nvirtual_ip = true\nkill_switch = \"{kill_switch}\"\n"
        );
        let source = Source { file: "b.toml", text: &text };
        let config = config::parse(source, std::path::Path::new(""), true).unwrap();
        config.connections
    }

    #[test]
    fn rfc_7359_a_tunnel_for_all_of_one_family_closes_the_other_too() {
        let nets = |remote_ts, kill_switch| {
            let closed = closed(&client_of(remote_ts, kill_switch));
            let one = |closed: Closed| {
                let nets: Vec<_> = closed.nets.iter().map(|net| net.to_string()).collect();
                (nets.join(" "), closed.always, closed.stays)
            };
            closed.into_iter().map(one).collect::<Vec<_>>()
        };
        let both = "0.0.0.0/0 0.0.0.0/0 ::/0".to_owned();
        assert_eq!(nets("[\"0.0.0.0/0\"]", "always"), [(both.clone(), true, true)]);
        assert_eq!(nets("[\"0.0.0.0/0\"]", "while-up"), [(both, false, false)]);
        assert_eq!(nets("[\"0.0.0.0/0\"]", "off"), []);
        assert_eq!(nets("[\"10.1.0.0/16\"]", "always"), [("10.1.0.0/16".to_owned(), true, true)]);
    }

    #[test]
    fn the_peer_s_own_address_is_closed_to_nobody() {
        let hosts = "local_ts = [\"192.0.2.1\"]\nremote_ts = [\"198.51.100.2\"]\n";
        assert_eq!(gateway(&format!("mode = \"transport\"\n{hosts}")), [""; 0]);
        assert_eq!(gateway(hosts), ["198.51.100.2/32"]);
        let text = "[[connection]]\nname = \"a\"\nrole = \"initiator\"\nlocal_id = \"l@example.com\"\n\
                    remote_id = \"vpn.example.com\"\npsk = \"swordfish\"\ngateway = \"192.0.2.1\"\n\
                    mode = \"transport\"\nremote_ts = [\"192.0.2.1\"]\n";
        let config = config::parse(Source { file: "b.toml", text }, std::path::Path::new(""), true);
        assert!(closed(&config.unwrap().connections).is_empty());
    }

    #[test]
    fn a_tunnel_for_all_of_one_family_is_told_that_it_lacks_the_other() {
        let warning = client("[\"0.0.0.0/0\"]").unwrap();
        assert!(warning.contains("add \"::/0\" to remote_ts"), "{warning}");
        assert!(client("[\"::/0\", \"10.0.0.0/8\"]").unwrap().contains("\"0.0.0.0/0\""));
        assert_eq!(client("[\"0.0.0.0/0\", \"::/0\"]"), None);
        assert_eq!(client("[\"10.1.0.0/16\"]"), None);
    }

    fn gateway(keys: &str) -> Vec<String> {
        let text = format!(
            "[[connection]]\nname = \"a\"\nrole = \"responder\"\nlocal_id = \"vpn.example.com\"\n\
             remote_id = \"*@example.com\"\npsk = \"swordfish\"\n{keys}"
        );
        let source = Source { file: "b.toml", text: &text };
        let config = config::parse(source, std::path::Path::new(""), true).unwrap();
        config.connections.iter().flat_map(client_nets).map(|net| net.to_string()).collect()
    }

    #[test]
    fn a_gateway_blocks_where_its_clients_are_and_nothing_of_its_own() {
        let pool = gateway("local_ts = [\"10.1.0.0/16\"]\npool = [\"10.9.0.0/24\"]\n");
        assert_eq!(pool, ["10.9.0.0/24"]);
        let site = "local_ts = [\"10.1.0.0/16\"]\nremote_ts = [\"10.2.0.0/16\", \"10.0.0.0/8\", \"::/0\"]\n";
        assert_eq!(gateway(site), ["10.2.0.0/16"]);
    }
}
