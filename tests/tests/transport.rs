//! Transport mode (RFC 7296 §1.3.1, RFC 4301 §4.1): what is offered, taken and declined, and that no move
//! takes it along (RFC 4555 §1.2).

use std::time::Duration;

use bewick_ike::{
    ChildSa, ConnectionConfig, ConnectionId, Endpoint, Mode, Path, Random,
    config::{ChildConfig, Selectors},
    extension::Plain,
    wire::{Delete, ExchangeType, NotifyType, Payload},
};
use bewick_mobike::{Command, Event, MoveTarget, ReturnRoutability};
use bewick_tests::{
    Chance, Lab, Link, Plan,
    hand::{Hand, Said, esp_proposal, full_auth, full_auth_response, respond, say, selector},
    lab::{ESP_GCM, client_config, gateway_config, selectors},
    node::interface,
    pair::EndId,
    plane::are_two_ends,
    puppet::{find, notify},
    scene::{
        GATEWAY, LTE, WLAN, ask, assert_carries, from, heard, mobike, puppet_client,
        puppet_gateway, update,
    },
    seed::{below, stream},
};

const CONNECTION: ConnectionId = ConnectionId(0);

/// Of which mode the CHILD_SA of that name is at the client and at the gateway.
type Modes = (Mode, Mode);
const BOTH: Modes = (Mode::Transport, Mode::Transport);

fn only(mode: Mode, config: ConnectionConfig) -> ConnectionConfig {
    ConnectionConfig {
        mode,
        ts_local: Selectors::Dynamic,
        ts_remote: Selectors::Dynamic,
        request_ipv4: false,
        pools: Vec::new(),
        dns: Vec::new(),
        ..config
    }
}

/// One CHILD_SA, between the two ends themselves.
fn alone((client, gateway): Modes) -> Plan {
    Plan {
        client: only(client, client_config()),
        gateway: only(gateway, gateway_config()),
        ..Plan::default()
    }
}

/// One behind a tunnel.
fn second((client, gateway): Modes) -> Plan {
    let child = |mode| ChildConfig {
        name: "gre".into(),
        mode,
        esp_proposals: vec![ESP_GCM],
        ts_local: Selectors::Dynamic,
        ts_remote: Selectors::Dynamic,
    };
    let mut plan = Plan::default();
    plan.client.more_children = vec![child(client)];
    plan.gateway.more_children = vec![child(gateway)];
    plan
}

fn of_mode(lab: &Lab, end: EndId, mode: Mode) -> Vec<ChildSa> {
    lab.children(end).into_iter().filter(|child| child.mode == mode).collect()
}

fn is_told(lab: &Lab, end: EndId, text: &str) -> bool {
    lab.reasons(end).iter().any(|reason| reason.to_string().contains(text))
}

/// Both ends have one CHILD_SA in transport mode, between these addresses, without UDP, and it carries.
fn assert_transport(lab: &mut Lab, client: &str, gateway: &str) {
    let host = |text: &str| vec![selector(text)];
    let (here, there) = (lab.client, lab.gateway);
    for (end, local, remote) in [(here, client, gateway), (there, gateway, client)] {
        let all = of_mode(lab, end, Mode::Transport);
        let [child] = all.as_slice() else { panic!("not one: {}", lab.story()) };
        assert_eq!((&child.ts_local, &child.ts_remote), (&host(local), &host(remote)));
        assert!(!child.encap && child.path == from(local, remote), "{child:?}");
    }
    let [one, other] = [here, there].map(|end| of_mode(lab, end, Mode::Transport).remove(0));
    assert!(are_two_ends(&one, &other), "{}", lab.story());
    assert_carries(lab);
}

#[test]
fn rfc_7296_1_3_1_transport_mode_is_offered_and_taken() {
    let mut lab = Lab::established(alone(BOTH));
    lab.rest();
    assert_transport(&mut lab, WLAN, GATEWAY);
    // By CREATE_CHILD_SA, and beside a tunnel.
    let mut lab = Lab::established(second(BOTH));
    lab.rest();
    assert_transport(&mut lab, WLAN, GATEWAY);
    assert_eq!(of_mode(&lab, lab.client, Mode::Tunnel).len(), 1);

    let mut lab = puppet_gateway(alone(BOTH), mobike());
    let gateway = lab.gateway;
    let said = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    assert_eq!(find(&said, NotifyType::USE_TRANSPORT_MODE), Some(&[][..]), "{said:?}");
    let mut lab = puppet_client(alone(BOTH), mobike());
    let client = lab.client;
    let said = lab.world.play(client, |puppet, _| puppet.script.auth_heard.clone());
    assert_eq!(find(&said, NotifyType::USE_TRANSPORT_MODE), Some(&[][..]), "{said:?}");
}

/// What the operator writes is narrowed to the two ends themselves.
#[test]
fn rfc_7296_1_3_1_selectors_in_transport_mode_are_of_the_two_ends() {
    let list = |text: &str| Selectors::List(vec![selector(text)]);
    let mut plan = alone(BOTH);
    plan.client.ts_local = list("198.51.100.0/24[gre]");
    plan.client.ts_remote = list("0.0.0.0/0");
    let mut lab = Lab::established(plan);
    lab.rest();
    let [child] = &of_mode(&lab, lab.gateway, Mode::Transport)[..] else { panic!("not one") };
    assert_eq!(child.ts_remote, [selector("198.51.100.2/32[gre]")], "{}", lab.story());
    assert_carries(&mut lab);

    let mut plan = alone(BOTH);
    plan.client.ts_local = selectors(&["10.7.0.0/16"]);
    let mut lab = Lab::new(plan);
    lab.up();
    assert!(is_told(&lab, lab.client, "local_ts"), "{}", lab.story());
    assert!(lab.children(lab.client).is_empty() && lab.children(lab.gateway).is_empty());
}

#[test]
fn rfc_7296_1_3_1_an_initiator_deletes_what_is_not_in_the_mode_that_it_asked_for() {
    let mut lab = Lab::new(alone((Mode::Transport, Mode::Tunnel)));
    lab.up();
    lab.ms(200);
    assert!(is_told(&lab, lab.client, "declines transport mode"), "{}", lab.story());
    assert!(lab.children(lab.client).is_empty() && lab.children(lab.gateway).is_empty());

    let mut plan = second((Mode::Transport, Mode::Tunnel));
    let child = &mut plan.gateway.more_children[0];
    child.ts_local = Selectors::List(vec![selector(GATEWAY)]);
    child.ts_remote = Selectors::List(vec![selector(WLAN)]);
    let mut lab = Lab::new(plan);
    lab.up();
    lab.rest();
    assert!(is_told(&lab, lab.client, "declines transport mode"), "{}", lab.story());
    for end in [lab.client, lab.gateway] {
        assert_eq!(lab.sas(end).len(), 1, "the IKE_SA stays: {}", lab.story());
        assert_eq!(lab.children(end).len(), 1, "the tunnel alone: {}", lab.story());
    }

    // Transport mode that nobody has asked for.
    let mut endpoint = Endpoint::new(Random::from_seed([7; 32]), vec![client_config()], false);
    let mut hand = Hand::answer(&mut endpoint, &[]);
    let mut answer = full_auth_response(&hand);
    answer.push(notify(NotifyType::USE_TRANSPORT_MODE, []));
    let (_, reasons) = hand.authenticate(&mut endpoint, &answer);
    assert!(reasons.iter().any(|r| r.to_string().contains("was not asked for")), "{reasons:?}");
}

/// IKE_AUTH of the hand as initiator, for a CHILD_SA between the two ends themselves.
fn auth_of_hosts(hand: &Hand) -> Vec<Payload> {
    let mut auth = full_auth(hand);
    auth.retain(|p| !matches!(p, Payload::Configuration(_) | Payload::TsInitiator(_)));
    auth.push(Payload::TsInitiator(vec![selector(WLAN)]));
    auth
}

/// A request for one more, or with `rekeyed` for the successor of what has this outbound SPI of ours.
fn create_of_hosts(spi: u32, rekeyed: Option<u32>) -> Vec<Payload> {
    let about = |spi| {
        Payload::Notify(bewick_ike::wire::Notify::about_child(
            NotifyType::REKEY_SA,
            bewick_ike::EspSpi(spi),
        ))
    };
    let mut payloads = Vec::from_iter(rekeyed.map(about));
    payloads.push(esp_proposal(spi));
    payloads.push(Payload::Nonce(vec![spi as u8; 32]));
    payloads.push(Payload::TsInitiator(vec![selector(WLAN)]));
    payloads.push(Payload::TsResponder(vec![selector(GATEWAY)]));
    payloads
}

fn transport() -> Payload {
    notify(NotifyType::USE_TRANSPORT_MODE, [])
}

/// The answer has a CHILD_SA in it, in this mode.
fn assert_made(said: &Said, mode: Mode) {
    let answer = said.answer.as_ref().expect("an answer");
    assert!(answer.iter().any(|p| matches!(p, Payload::SecurityAssociation(_))), "{answer:?}");
    let echoed = find(answer, NotifyType::USE_TRANSPORT_MODE).is_some();
    assert_eq!(echoed, mode == Mode::Transport, "{answer:?}");
}

fn assert_refused(said: &Said) {
    let answer = said.answer.as_ref().expect("an answer");
    assert!(find(answer, NotifyType::NO_PROPOSAL_CHOSEN).is_some(), "{answer:?}");
    assert_eq!(find(answer, NotifyType::USE_TRANSPORT_MODE), None, "{answer:?}");
}

#[test]
fn rfc_7296_1_3_1_a_responder_whose_side_is_a_tunnel_declines_transport_mode() {
    let config = only(Mode::Tunnel, gateway_config());
    let mut endpoint = Endpoint::new(Random::from_seed([9; 32]), vec![config], false);
    let mut hand = Hand::initiate(&mut endpoint, &[]);
    let mut auth = auth_of_hosts(&hand);
    auth.push(transport());
    assert_made(
        &say(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth),
        Mode::Tunnel,
    );
    let create = (ExchangeType::CREATE_CHILD_SA, false);
    let mut one = create_of_hosts(0x9999_0001, None);
    one.push(transport());
    assert_made(&say(&mut endpoint, &mut hand, (create.0, create.1, 2), &one), Mode::Tunnel);
    let mut heir = create_of_hosts(0x9999_0002, Some(0x9999_0001));
    heir.push(transport());
    assert_made(&say(&mut endpoint, &mut hand, (create.0, create.1, 3), &heir), Mode::Tunnel);
}

#[test]
fn rfc_7296_1_3_1_a_responder_whose_side_is_transport_mode_takes_nothing_else() {
    let config = only(Mode::Transport, gateway_config());
    let mut endpoint = Endpoint::new(Random::from_seed([8; 32]), vec![config], false);
    let mut hand = Hand::initiate(&mut endpoint, &[]);
    let auth = auth_of_hosts(&hand);
    assert_refused(&say(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth));
    let create = (ExchangeType::CREATE_CHILD_SA, false);
    let mut one = create_of_hosts(0x9999_0001, None);
    assert_refused(&say(&mut endpoint, &mut hand, (create.0, create.1, 2), &one));
    one.push(transport());
    assert_made(&say(&mut endpoint, &mut hand, (create.0, create.1, 3), &one), Mode::Transport);
    // Nor does a rekey make a tunnel of it.
    let mut heir = create_of_hosts(0x9999_0002, Some(0x9999_0001));
    assert_refused(&say(&mut endpoint, &mut hand, (create.0, create.1, 4), &heir));
    heir.push(transport());
    assert_made(&say(&mut endpoint, &mut hand, (create.0, create.1, 5), &heir), Mode::Transport);
}

#[test]
fn rfc_7296_1_3_3_a_rekey_keeps_transport_mode() {
    for plan in [alone(BOTH), second(BOTH)] {
        let mut lab = Lab::established(plan);
        lab.rest();
        for end in [lab.client, lab.gateway] {
            let old = of_mode(&lab, end, Mode::Transport)[0].clone();
            lab.world.command(end, Command::Rekey(CONNECTION)).expect("a rekey");
            lab.seconds(2);
            assert_transport(&mut lab, WLAN, GATEWAY);
            let new = &of_mode(&lab, end, Mode::Transport)[0];
            assert!(new.id != old.id && new.reqid == old.reqid, "{}", lab.story());
        }
        lab.world.command(lab.client, Command::RekeyIke(CONNECTION)).expect("a rekey");
        lab.seconds(2);
        assert_transport(&mut lab, WLAN, GATEWAY);
    }
}

/// A successor that is a tunnel is deleted, and the old CHILD_SA stays.
#[test]
fn rfc_7296_1_3_3_a_successor_in_another_mode_is_deleted() {
    let config = only(Mode::Transport, client_config());
    let mut endpoint = Endpoint::new(Random::from_seed([6; 32]), vec![config], false);
    let mut hand = Hand::answer(&mut endpoint, &[]);
    assert!(find(&hand.request, NotifyType::USE_TRANSPORT_MODE).is_some(), "{:?}", hand.request);
    let mut answer = full_auth_response(&hand);
    answer.retain(|p| {
        !matches!(p, Payload::Configuration(_) | Payload::TsInitiator(_) | Payload::TsResponder(_))
    });
    answer.push(Payload::TsInitiator(vec![selector(WLAN)]));
    answer.push(Payload::TsResponder(vec![selector(GATEWAY)]));
    answer.push(transport());
    let said = respond(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, 1), &answer);
    assert_eq!(said.closed, None);
    let id = endpoint.status().next().expect("an IKE_SA").id;
    let now = bewick_ike::Time::ZERO;
    endpoint.rekey_children(now, id, None, &mut Plain);
    let said = hand.hear(&mut endpoint);
    let [(_, request)] = &said.requests[..] else { panic!("{:?}", said.requests) };
    assert!(find(request, NotifyType::USE_TRANSPORT_MODE).is_some(), "{request:?}");
    let spi = request.iter().find_map(|payload| match payload {
        Payload::SecurityAssociation(all) => all.first().map(|one| one.spi.clone()),
        _ => None,
    });
    let heir = vec![
        esp_proposal(0x9999_0003),
        Payload::Nonce(vec![3; 32]),
        Payload::TsInitiator(vec![selector(WLAN)]),
        Payload::TsResponder(vec![selector(GATEWAY)]),
    ];
    respond(&mut endpoint, &mut hand, (ExchangeType::CREATE_CHILD_SA, 2), &heir);
    endpoint.proceed(now, id, &mut Plain);
    let said = hand.hear(&mut endpoint);
    let gone = |payload: &Payload| match payload {
        Payload::Delete(Delete::Esp(spis)) => Some(spis[0].0.to_be_bytes().to_vec()),
        _ => None,
    };
    let deleted = said.requests.iter().flat_map(|(_, payloads)| payloads).find_map(gone);
    assert!(deleted.is_some() && deleted == spi, "{:?}", said.requests);
    let children = endpoint.status().next().expect("an IKE_SA").children.to_vec();
    assert!(children.len() == 1 && children[0].mode == Mode::Transport, "{children:?}");
}

#[test]
fn rfc_7296_2_23_1_transport_mode_is_not_used_through_a_nat() {
    for behind in [true, false] {
        let nat = |plan: Plan| Plan { nat_wlan: behind, nat_gateway: !behind, ..plan };
        let mut lab = Lab::new(nat(alone(BOTH)));
        lab.up();
        assert!(is_told(&lab, lab.client, "a NAT is on the path"), "{}", lab.story());
        assert!(lab.children(lab.client).is_empty() && lab.children(lab.gateway).is_empty());
        // What is a tunnel is not held up by that.
        let mut lab = Lab::new(nat(second(BOTH)));
        lab.up();
        lab.rest();
        assert!(is_told(&lab, lab.client, "a NAT is on the path"), "{}", lab.story());
        for end in [lab.client, lab.gateway] {
            let all = lab.children(end);
            assert!(all.len() == 1 && all[0].mode == Mode::Tunnel, "{}", lab.story());
        }
    }
    // A peer that asks all the same.
    for (mode, made) in [(Mode::Transport, false), (Mode::Tunnel, true)] {
        let config = only(mode, gateway_config());
        let mut endpoint = Endpoint::new(Random::from_seed([5; 32]), vec![config], false);
        let nats = [
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, [1; 20]),
            notify(NotifyType::NAT_DETECTION_DESTINATION_IP, [2; 20]),
        ];
        let mut hand = Hand::initiate(&mut endpoint, &nats);
        let mut auth = auth_of_hosts(&hand);
        auth.push(transport());
        let said = say(&mut endpoint, &mut hand, (ExchangeType::IKE_AUTH, false, 1), &auth);
        match made {
            true => assert_made(&said, Mode::Tunnel),
            false => assert_refused(&said),
        }
    }
}

/// A data plane that knows ESP in UDP alone has no transport mode.
#[test]
fn rfc_7296_2_23_1_a_data_plane_of_esp_in_udp_has_no_transport_mode() {
    let mut lab = Lab::new(Plan { client_plane_encap: true, ..alone(BOTH) });
    lab.up();
    assert!(is_told(&lab, lab.client, "dataplane"), "{}", lab.story());
    assert!(lab.children(lab.client).is_empty() && lab.children(lab.gateway).is_empty());
}

fn left_behind(lab: &Lab, end: EndId) -> Vec<usize> {
    let of = |event: &&Event| match event {
        Event::LeftBehind { child, .. } => Some(*child),
        _ => None,
    };
    lab.events(end).iter().filter_map(of).collect()
}

/// RFC 4555 §1.2: a tunnel's inner addresses have nothing to do with the outer ones. What is in transport
/// mode is deleted and made anew, and holds up no move. (The lab's data plane refuses to move it.)
#[test]
fn m_1_2_1_only_tunnels_are_moved_and_what_is_in_transport_mode_is_deleted() {
    for lost in [false, true] {
        let mut lab = Lab::established(second(BOTH));
        lab.rest();
        assert_transport(&mut lab, WLAN, GATEWAY);
        let ends = [lab.client, lab.gateway];
        let before = ends.map(|end| lab.children(end));
        match lost {
            true => lab.world.set_up(lab.wlan, false),
            false => lab.move_to(lab.lte()),
        }
        lab.seconds(2);
        assert_transport(&mut lab, LTE, GATEWAY);
        for (end, before) in ends.into_iter().zip(before) {
            let after = lab.children(end);
            let tunnel = before.iter().find(|child| child.mode == Mode::Tunnel).expect("a tunnel");
            let same = after.iter().find(|child| child.id == tunnel.id).expect("it has moved");
            assert_eq!((&same.ts_local, &same.ts_remote), (&tunnel.ts_local, &tunnel.ts_remote));
            assert_eq!(after.iter().filter(|new| before.iter().any(|b| b.id == new.id)).count(), 1);
            assert_eq!(lab.count(end, "moved"), 1, "{}", lab.story());
            assert_eq!(lab.count(end, "move-failed"), 0, "{}", lab.story());
        }
        // The gateway hears of it before its traffic follows.
        assert_eq!(left_behind(&lab, lab.client), [1], "{}", lab.story());
    }
}

#[test]
fn m_1_2_1_an_ike_sa_with_nothing_to_move_moves_and_makes_its_child_sa_anew() {
    let mut lab = Lab::established(alone(BOTH));
    lab.rest();
    let sa = lab.sas(lab.client)[0].id;
    for (uplink, at) in [(lab.lte(), LTE), (lab.wlan, WLAN), (lab.lte(), LTE)] {
        lab.move_to(uplink);
        lab.seconds(2);
        assert_transport(&mut lab, at, GATEWAY);
        assert_eq!(lab.sas(lab.client)[0].id, sa, "{}", lab.story());
    }
    assert_eq!(left_behind(&lab, lab.client), [0, 0, 0], "{}", lab.story());
}

/// One that names an address which the path does not have comes back with that address.
#[test]
fn m_1_2_1_what_is_of_another_address_waits_for_that_address() {
    let mut plan = second(BOTH);
    plan.client.more_children[0].ts_local = selectors(&["198.51.100.2/32"]);
    let mut lab = Lab::established(plan);
    lab.rest();
    assert_transport(&mut lab, WLAN, GATEWAY);
    lab.move_to(lab.lte());
    lab.seconds(200);
    for end in [lab.client, lab.gateway] {
        assert!(of_mode(&lab, end, Mode::Transport).is_empty(), "{}", lab.story());
    }
    lab.move_to(lab.wlan);
    lab.seconds(2);
    assert_transport(&mut lab, WLAN, GATEWAY);
}

/// Behind a trap it is the next packet that brings it back.
#[test]
fn m_1_2_1_what_waits_for_packets_is_not_made_before_one_comes() {
    let mut plan = second(BOTH);
    plan.client_policy.trap = true;
    let mut lab = Lab::new(plan);
    lab.world.command(lab.client, Command::Trap(CONNECTION)).expect("a trap");
    let (local, remote) = (selector(WLAN), selector(GATEWAY));
    let packet = bewick_ike::Packet { local, remote };
    lab.world.caught(lab.client, 1, packet);
    lab.seconds(2);
    assert_transport(&mut lab, WLAN, GATEWAY);
    lab.move_to(lab.lte());
    lab.seconds(2);
    assert!(lab.children(lab.client).is_empty(), "{}", lab.story());
    let packet = bewick_ike::Packet { local: selector(LTE), remote };
    lab.world.caught(lab.client, 1, packet);
    lab.seconds(2);
    assert_transport(&mut lab, LTE, GATEWAY);
}

/// The peer is told with DELETE, also where it would have moved it.
#[test]
fn m_1_2_1_the_peer_is_told_of_what_is_deleted() {
    let mut lab = Lab::new(Plan { puppet_client: true, ..second(BOTH) });
    let client = lab.client;
    let way = Path::new((lab.address(lab.wlan), 500).into(), (lab.gateway_ips[0], 500).into());
    lab.world.play(client, |puppet, now| puppet.connect(now, way));
    lab.rest();
    let gateway = lab.gateway;
    let child = of_mode(&lab, gateway, Mode::Transport).pop().expect("one in transport mode");
    ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
    lab.rest();
    let told: Vec<Payload> = heard(&mut lab, client).into_iter().flat_map(|h| h.payloads).collect();
    let deletes =
        |p: &Payload| matches!(p, Payload::Delete(Delete::Esp(s)) if s == &[child.spi_in]);
    assert!(told.iter().any(deletes), "{told:?}");
    assert!(of_mode(&lab, gateway, Mode::Transport).is_empty(), "{}", lab.story());
    assert_eq!(left_behind(&lab, gateway), [1]);
}

/// Whatever moves on a bad network, with rekeys in between: in the end both are there, on the same pair.
#[test]
fn m_1_2_1_whatever_moves_both_modes_are_there_in_the_end() {
    let (mut left, mut moves) = (0, 0);
    for seed in 0..150 {
        let mut random = stream(seed, "transport");
        let mut plan = Plan { seed, ..second(BOTH) };
        plan.client_policy.keep_up = true;
        plan.gateway_policy.return_routability = match below(&mut random, 3) {
            0 => ReturnRoutability::Off,
            1 => ReturnRoutability::After,
            _ => ReturnRoutability::Before,
        };
        let window = 1 + below(&mut random, 3) as u32;
        (plan.client.window, plan.gateway.window) = (window, window);
        let mut lab = Lab::established(plan);
        let loss = Chance::percent(below(&mut random, 20) as u32);
        let delay = Duration::from_millis(1 + below(&mut random, 80));
        lab.world.net.set_default_link(Link { delay, loss, ..Link::default() });
        let uplinks = [lab.wlan, lab.lte()];
        for _ in 0..8 {
            let uplink = uplinks[below(&mut random, 2) as usize];
            match below(&mut random, 5) {
                0 | 1 => lab.world.set_up(uplink, below(&mut random, 2) == 0),
                2 => {
                    // It may be where it is already, or have no link.
                    let target = MoveTarget::Interface(interface(uplink));
                    let _ = lab.world.command(lab.client, Command::Move(CONNECTION, target));
                }
                _ => {
                    let end = [lab.client, lab.gateway][below(&mut random, 2) as usize];
                    let _ = lab.world.command(end, Command::Rekey(CONNECTION));
                }
            }
            lab.ms(below(&mut random, 600));
        }
        uplinks.into_iter().for_each(|uplink| lab.world.set_up(uplink, true));
        lab.world.net.set_default_link(Link::default());
        lab.seconds(300);
        let at = lab.sas(lab.client)[0].path.local.ip().to_string();
        println!("seed {seed}");
        assert_transport(&mut lab, &at, GATEWAY);
        assert_eq!(of_mode(&lab, lab.client, Mode::Tunnel).len(), 1, "{}", lab.story());
        for end in [lab.client, lab.gateway] {
            assert_eq!(lab.count(end, "move-failed"), 0, "{}", lab.story());
        }
        left += left_behind(&lab, lab.client).len();
        moves += lab.count(lab.client, "moved");
    }
    assert!(left > 100 && moves > 150, "{left} were left behind in {moves} moves");
}
