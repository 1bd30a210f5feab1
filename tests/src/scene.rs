//! What many tests of moves begin with and look at: puppets whose tunnel is up, further clients, ESP
//! and IKE among what was captured.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bewick_ike::{
    ChildId, ConnectionConfig, ConnectionId, Path, Time,
    config::{ChildConfig, Selectors},
    nat,
    wire::{Header, NotifyType, Payload},
};
use bewick_mobike::{Command, ConnectionPolicy, Host, HostConfig};

use crate::{
    capture::Record,
    lab::{ESP_CBC, Lab, Plan, client_config, path, selectors},
    net::{Datagram, Protocol, Realm, UplinkId},
    node::Node,
    pair::EndId,
    puppet::{Heard, notify},
    seed::stream,
};

/// The first uplink of the lab's client.
pub const WLAN: &str = "198.51.100.2";
/// Its second one.
pub const LTE: &str = "198.51.100.130";
/// The third one, which [`third_uplink`] adds.
pub const ETH: &str = "203.0.113.130";
/// The first address of the lab's gateway.
pub const GATEWAY: &str = "192.0.2.1";
/// Its second one.
pub const GATEWAY2: &str = "192.0.2.129";

/// Whether a datagram is ESP, in UDP or not.
pub fn is_esp(datagram: &Datagram) -> bool {
    let Datagram { protocol, src, dst, payload } = datagram;
    let shared = src.port() != 500 && dst.port() != 500;
    *protocol == Protocol::Esp || (shared && payload.len() > 4 && !payload.starts_with(&[0; 4]))
}

/// The header of a datagram that is IKE.
pub fn ike_header(datagram: &Datagram) -> Option<Header> {
    let Datagram { protocol, dst, payload, .. } = datagram;
    let bytes = match (protocol, dst.port()) {
        (Protocol::Esp, _) => return None,
        (Protocol::Udp, 500) => payload,
        (Protocol::Udp | Protocol::Tcp, _) => payload.strip_prefix(&[0; 4])?,
    };
    Header::parse(bytes).ok()
}

/// The payloads of IKE_AUTH that say MOBIKE and no more.
pub fn mobike() -> Vec<Payload> {
    vec![notify(NotifyType::MOBIKE_SUPPORTED, [])]
}

/// An update without anything else.
pub fn update() -> Payload {
    notify(NotifyType::UPDATE_SA_ADDRESSES, [])
}

/// The path from an address of the client to one of the gateway, both on port 4500.
///
/// # Panics
/// If they are none.
pub fn from(client: &str, gateway: &str) -> Path {
    path(&format!("{client}:4500"), &format!("{gateway}:4500"))
}

/// The same path as the other side sees it.
pub fn turned(path: Path) -> Path {
    Path::new(path.remote, path.local)
}

/// A puppet client, with these payloads in IKE_AUTH, whose tunnel to our gateway is up.
///
/// # Panics
/// If it does not come up.
pub fn puppet_client(plan: Plan, auth: Vec<Payload>) -> Lab {
    let mut lab = Lab::new(Plan { puppet_client: true, ..plan });
    let client = lab.client;
    let way = Path::new((lab.address(lab.wlan), 500).into(), (lab.gateway_ips[0], 500).into());
    lab.world.play(client, |puppet, now| {
        puppet.script.auth = auth;
        puppet.connect(now, way);
    });
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    lab
}

/// A puppet gateway, with these payloads in IKE_AUTH, to which our client's tunnel is up.
///
/// # Panics
/// If it does not come up.
pub fn puppet_gateway(plan: Plan, auth: Vec<Payload>) -> Lab {
    let mut lab = Lab::new(Plan { puppet_gateway: true, ..plan });
    let gateway = lab.gateway;
    lab.world.play(gateway, |puppet, _| puppet.script.auth = auth);
    lab.up();
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    lab
}

/// Lets the puppet at `end` ask something on `path`.
///
/// # Panics
/// If it is no puppet.
pub fn ask(lab: &mut Lab, end: EndId, path: Path, payloads: &[Payload]) {
    lab.world.play(end, |puppet, now| puppet.ask(now, path, payloads));
}

/// What the puppet at `end` was asked so far.
///
/// # Panics
/// If it is no puppet.
pub fn heard(lab: &mut Lab, end: EndId) -> Vec<Heard> {
    lab.world.play(end, |puppet, _| puppet.script.heard.clone())
}

/// The answers to what the puppet at `end` asked, with the paths that they came on.
///
/// # Panics
/// If it is no puppet.
pub fn answers(lab: &mut Lab, end: EndId) -> Vec<(Path, Vec<Payload>)> {
    lab.world.play(end, |puppet, _| {
        puppet.responses().map(|(_, path, payloads)| (path, payloads.to_vec())).collect()
    })
}

/// Changes what the puppet at `end` answers.
///
/// # Panics
/// If it is no puppet.
pub fn answer_with(
    lab: &mut Lab,
    end: EndId,
    answerer: impl FnMut(&Heard, Vec<Payload>) -> Vec<Payload> + Send + 'static,
) {
    lab.world.play(end, |puppet, _| puppet.script.answerer = Some(Box::new(answerer)));
}

/// Gives the client a third uplink, whose address no list has told to anybody yet.
///
/// # Panics
/// Never.
pub fn third_uplink(lab: &mut Lab) -> UplinkId {
    let address = ETH.parse().expect("an address");
    lab.world.net.add_uplink(lab.client_host, "eth0", Realm::Internet, &[address])
}

/// Another client of the gateway, `name@example.com`, up; what it starts from is `seed`.
///
/// # Panics
/// If it does not come up.
pub fn add_client(lab: &mut Lab, name: &str, seed: u64, at: (Realm, IpAddr)) -> (EndId, UplinkId) {
    let host = lab.world.net.add_host(name);
    let uplink = lab.world.net.add_uplink(host, "wlan0", at.0, &[at.1]);
    let local_id = format!("{name}@example.com").parse().expect("an identity");
    let config = ConnectionConfig { local_id, ..client_config() };
    let policy = ConnectionPolicy { back_after: Duration::ZERO, ..ConnectionPolicy::default() };
    let connections = vec![(config, policy)];
    // The same stream as the lab's own client's: with the same seed both make the same choices.
    let random = stream(seed, "client 0");
    let mut machine = Host::new(HostConfig { connections, ..HostConfig::default() }, random);
    machine.set_wall_clock(bewick_ike::auth::WallClock::new(Time::ZERO, crate::lab::BEGIN));
    let end = lab.world.add_end(host, Node::honest(machine, lab.gateway_ips.clone()));
    lab.world.command(end, Command::Up(ConnectionId(0))).expect("its connection");
    lab.seconds(2);
    assert_eq!(lab.children(end).len(), 1, "{name} is up: {}", lab.story());
    (end, uplink)
}

/// A plan whose IKE_SA has three CHILD_SAs.
pub fn with_three() -> Plan {
    let child = |name: &str, net: &str| ChildConfig {
        name: name.into(),
        mode: Default::default(),
        esp_proposals: vec![ESP_CBC],
        ts_local: Selectors::Dynamic,
        ts_remote: selectors(&[net]),
    };
    let mut plan = Plan::default();
    plan.client.more_children = vec![child("two", "10.2.0.0/16"), child("three", "10.3.0.0/16")];
    plan.gateway.more_children = plan.client.more_children.clone();
    for child in &mut plan.gateway.more_children {
        std::mem::swap(&mut child.ts_local, &mut child.ts_remote);
    }
    plan
}

/// The paths that the CHILD_SAs of an end have, each once.
pub fn paths(lab: &Lab, end: EndId) -> BTreeSet<Path> {
    lab.children(end).iter().map(|child| child.path).collect()
}

/// Sends a packet from an end by one of its CHILD_SAs.
///
/// # Panics
/// If it has no such CHILD_SA.
pub fn send_by(lab: &mut Lab, end: EndId, child: ChildId, number: u64) {
    let sender = lab.world.end_mut(end);
    let packet = sender.plane.emit_by(child, number).expect("a CHILD_SA of that name");
    let host = sender.host;
    // Without a usable source it is lost, which whoever waits for it sees.
    let _ = lab.world.net.send_datagram(host, packet);
}

/// Each CHILD_SA of either end carries a packet to the other, on the pair where that one expects it.
///
/// # Panics
/// If not.
pub fn assert_carries(lab: &mut Lab) {
    for (end, other) in [(lab.client, lab.gateway), (lab.gateway, lab.client)] {
        let mut expected = lab.world.end(other).esp;
        for child in lab.children(end) {
            send_by(lab, end, child.id, u64::MAX);
            expected.delivered += 1;
        }
        lab.ms(100);
        assert_eq!(lab.world.end(other).esp, expected, "{}", lab.story());
    }
}

/// NAT detection as it is for a request of the puppet at `end` on `path`.
///
/// # Panics
/// If it is no puppet.
pub fn nat_detection(lab: &mut Lab, end: EndId, path: Path) -> Vec<Payload> {
    let mut random = stream(1, "NAT detection");
    let spis = lab.world.play(end, |puppet, _| puppet.spis());
    nat::payloads(spis, path, false, &mut random).to_vec()
}

/// ESP that hosts sent from one of these addresses, oldest first.
pub fn esp_from(lab: &Lab, sources: &[&str]) -> Vec<Record> {
    let is_source = |ip: IpAddr| sources.iter().any(|text| ip == crate::lab::ip(text));
    let sent = lab.world.net.capture.sent();
    sent.filter(|r| is_esp(&r.datagram) && is_source(r.datagram.src.ip())).cloned().collect()
}

/// Both ends agree and are, IKE and data plane, on the pair of these addresses.
///
/// # Panics
/// If not.
pub fn assert_at(lab: &Lab, client: &str, gateway: &str) {
    let (client, gateway) = (crate::lab::ip(client), crate::lab::ip(gateway));
    assert!(lab.is_up(), "{}", lab.story());
    let here = lab.sas(lab.client)[0].path;
    let there = lab.sas(lab.gateway)[0].path;
    assert_eq!((here.local.ip(), here.remote.ip()), (client, gateway), "{}", lab.story());
    assert_eq!(there.local.ip(), gateway, "{}", lab.story());
    assert_eq!(lab.world.end(lab.client).plane.path(), Some(here), "{}", lab.story());
    assert_eq!(lab.world.end(lab.gateway).plane.path(), Some(there), "{}", lab.story());
}
