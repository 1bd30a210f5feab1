//! Several clients of one gateway: none is taken for another, whatever addresses, ports and SPIs they
//! share (RFC 4555 §3.5, §5.2, appendix A).

use std::collections::BTreeSet;

use bewick_ike::{ChildId, ChildSa, ConnectionId};
use bewick_mobike::{Command, MoveTarget};
use bewick_tests::{
    Lab, Plan, Realm,
    lab::ip,
    pair::EndId,
    scene::{
        GATEWAY, LTE, WLAN, add_client, ask, assert_carries, from, mobike, puppet_client, send_by,
        turned, update, with_three,
    },
};

const CONNECTION: ConnectionId = ConnectionId(0);

/// The gateway's half of each CHILD_SA of a client.
fn theirs(lab: &Lab, client: EndId) -> Vec<ChildSa> {
    let ours = lab.children(client);
    let half = |child: &ChildSa| ours.iter().any(|our| our.keys_in == child.keys_out);
    lab.children(lab.gateway).into_iter().filter(half).collect()
}

/// Each CHILD_SA of the client carries a packet in each direction, and what is for it reaches nobody else.
fn assert_own(lab: &mut Lab, client: EndId, others: &[EndId]) {
    let gateway = lab.gateway;
    let tallies = |lab: &Lab| others.iter().map(|end| lab.world.end(*end).esp).collect::<Vec<_>>();
    let before = tallies(lab);
    let ids = |children: Vec<ChildSa>| children.iter().map(|c| c.id).collect::<Vec<ChildId>>();
    let (here, there) = (ids(lab.children(client)), ids(theirs(lab, client)));
    assert!(!here.is_empty() && here.len() == there.len(), "{}", lab.story());
    for (from, to, children) in [(client, gateway, here), (gateway, client, there)] {
        let mut expected = lab.world.end(to).esp;
        for child in children {
            send_by(lab, from, child, u64::MAX);
            expected.delivered += 1;
        }
        lab.ms(100);
        assert_eq!(lab.world.end(to).esp, expected, "{}", lab.story());
    }
    assert_eq!(tallies(lab), before, "what is for one reaches no other: {}", lab.story());
}

fn go(lab: &mut Lab, client: EndId, address: &str) {
    let target = MoveTarget::Address(ip(address));
    lab.world.command(client, Command::Move(CONNECTION, target)).expect("a move");
    lab.rest();
}

/// RFC 4555 §3.5: an update moves all CHILD_SAs of its IKE_SA, and none of another one.
#[test]
fn m_3_5_20_an_update_moves_all_child_sas_of_its_ike_sa_and_none_of_another() {
    let mut lab = Lab::new(with_three());
    lab.up();
    lab.rest();
    let client = lab.client;
    let (other, _) = add_client(&mut lab, "other", 7, (Realm::Internet, ip("203.0.113.5")));
    let elsewhere = theirs(&lab, other);
    assert_eq!((theirs(&lab, client).len(), elsewhere.len()), (3, 1), "{}", lab.story());
    for at in [LTE, WLAN] {
        go(&mut lab, client, at);
        let moved = theirs(&lab, client);
        assert_eq!(moved.len(), 3, "{}", lab.story());
        for child in moved {
            assert_eq!(child.path, turned(from(at, GATEWAY)), "{}", lab.story());
        }
        assert_eq!(theirs(&lab, other), elsewhere, "{}", lab.story());
        assert_own(&mut lab, client, &[other]);
        assert_own(&mut lab, other, &[client]);
    }
    let path = lab.sas(other)[0].path;
    assert_eq!(elsewhere[0].path, turned(path));
}

/// RFC 4555 §5.2: who may use which inner address follows from the identity, and not from the outer
/// address: a client that comes from an address inside another one's selectors, or inside the gateway's,
/// gets nothing that it did not have.
#[test]
fn m_5_2_1_an_outer_address_inside_another_s_selectors_gives_nothing() {
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let (other, _) = add_client(&mut lab, "other", 7, (Realm::Internet, ip("203.0.113.5")));
    let virtual_ip = lab.children(other)[0].virtual_ips[0];
    let inside = [virtual_ip.to_string(), "10.1.0.7".to_owned()];
    let selectors = |lab: &Lab| {
        let child = |c: ChildSa| (c.id, c.ts_local, c.ts_remote, c.virtual_ips, c.keys_out);
        lab.children(gateway).into_iter().map(child).collect::<Vec<_>>()
    };
    let before = selectors(&lab);
    let elsewhere = theirs(&lab, other);
    for address in &inside {
        let lte = lab.lte();
        lab.world.net.reattach(lte, Realm::Internet, &[ip(address)]);
        ask(&mut lab, client, from(address, GATEWAY), &[update()]);
        lab.seconds(3);
        assert_eq!(selectors(&lab), before, "{address}: {}", lab.story());
        assert_eq!(theirs(&lab, other), elsewhere, "{address}: {}", lab.story());
        assert_own(&mut lab, other, &[client]);
    }
    // Nor do keys that come after it.
    lab.world.command(gateway, Command::Rekey(CONNECTION)).expect("a rekey");
    lab.rest();
    let ts = |lab: &Lab| -> BTreeSet<String> {
        let child = |c: ChildSa| format!("{:?} {:?}", c.ts_local, c.ts_remote);
        lab.children(gateway).into_iter().map(child).collect()
    };
    let expected = before.iter().map(|c| format!("{:?} {:?}", c.1, c.2)).collect();
    assert_eq!(ts(&lab), expected, "{}", lab.story());
}

/// RFC 4555 appendix A.1: behind one NAT two clients have one address, and both may choose the same SPI,
/// for the choice is the receiver's. What is for one never goes to the other, whichever moves, rekeys or
/// goes.
#[test]
fn m_a_1_1_two_clients_behind_one_nat_with_equal_spis_stay_apart() {
    let mut lab = Lab::established(Plan { nat_wlan: true, ..Plan::default() });
    let (client, gateway) = (lab.client, lab.gateway);
    let nat = lab.wlan_nat.expect("a NAT");
    let behind = (Realm::Behind(nat), ip("192.168.1.3"));
    let (twin, _) = add_client(&mut lab, "twin", 1, behind);
    let (one, other) = (theirs(&lab, client), theirs(&lab, twin));
    assert_eq!(one[0].spi_out, other[0].spi_out, "the same SPI: {}", lab.story());
    assert_eq!(one[0].path.remote.ip(), other[0].path.remote.ip(), "at the same address");
    assert_eq!(lab.sas(client)[0].spis.0, lab.sas(twin)[0].spis.0, "and the same of IKE");
    assert_own(&mut lab, client, &[twin]);
    assert_own(&mut lab, twin, &[client]);
    go(&mut lab, client, LTE);
    assert_eq!(theirs(&lab, twin), other, "{}", lab.story());
    assert_eq!(theirs(&lab, client)[0].path, turned(from(LTE, GATEWAY)), "{}", lab.story());
    assert_own(&mut lab, client, &[twin]);
    assert_own(&mut lab, twin, &[client]);
    go(&mut lab, client, "192.168.1.2");
    lab.world.command(client, Command::Rekey(CONNECTION)).expect("a rekey");
    lab.rest();
    assert_eq!(theirs(&lab, twin), other, "{}", lab.story());
    assert_own(&mut lab, client, &[twin]);
    assert_own(&mut lab, twin, &[client]);
    lab.world.command(client, Command::Down(CONNECTION)).expect("its connection");
    lab.seconds(15);
    assert_eq!(lab.children(gateway), other, "{}", lab.story());
    lab.seconds(100);
    assert_own(&mut lab, twin, &[]);
}

/// RFC 4555 appendix A.2: a peer is who it proves to be, and not the address that it comes from. A new
/// client at an address that the gateway knows as another one's is a client of its own, whether that one
/// has said that it is gone from there or not.
#[test]
fn m_a_2_1_a_new_client_at_another_s_old_address_is_one_of_its_own() {
    for says_so in [true, false] {
        let mut lab = Lab::established(Plan::default());
        let (client, gateway) = (lab.client, lab.gateway);
        let wlan = lab.wlan;
        if says_so {
            go(&mut lab, client, LTE);
        }
        // The operator of the network gives the address to somebody else.
        lab.world.net.remove_address(wlan, ip(WLAN));
        let (other, _) = add_client(&mut lab, "other", 7, (Realm::Internet, ip(WLAN)));
        assert_eq!(lab.sas(gateway).len(), 2, "{}", lab.story());
        let own = theirs(&lab, other);
        assert_eq!(own[0].path, turned(from(WLAN, GATEWAY)), "{}", lab.story());
        assert_ne!(own[0].ts_remote, theirs(&lab, client)[0].ts_remote, "{}", lab.story());
        assert_own(&mut lab, other, &[client]);
        // The old one learns that its address is gone, and says so now.
        lab.world.tell_addresses(client);
        lab.rest();
        assert_eq!(theirs(&lab, client)[0].path, turned(from(LTE, GATEWAY)), "{}", lab.story());
        assert_eq!(theirs(&lab, other), own, "{}", lab.story());
        assert_own(&mut lab, client, &[other]);
        assert_own(&mut lab, other, &[client]);
        // What the one ends is its own alone.
        lab.world.command(other, Command::Down(CONNECTION)).expect("its connection");
        lab.seconds(15);
        assert_eq!(lab.sas(gateway).len(), 1, "{}", lab.story());
        assert_carries(&mut lab);
    }
}
