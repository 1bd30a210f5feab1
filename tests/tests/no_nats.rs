//! Tunnels without NAT traversal (RFC 4555 §3.9): what says that no NAT is allowed for, and what follows
//! when there is one.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{
    CloseReason, Path,
    wire::{ExchangeType, NotifyType, Payload},
};
use bewick_mobike::Event;
use bewick_tests::{
    Datagram, Lab, Plan, Verdict,
    lab::{ip, path},
    pair::EndId,
    puppet::{Heard, find, kinds, notify},
    scene::{
        GATEWAY, LTE, WLAN, answer_with, answers, ask, assert_at, assert_carries, heard,
        ike_header, mobike, paths, puppet_client, puppet_gateway, third_uplink, turned, update,
    },
};

const VICTIM: &str = "203.0.113.66";
const COOKIE: [u8; 9] = [9, 8, 7, 6, 5, 4, 3, 2, 1];

/// A plan whose ends neither look for NATs nor allow for one.
fn plan() -> Plan {
    let mut plan = Plan::default();
    (plan.client.nat_traversal, plan.gateway.nat_traversal) = (false, false);
    plan
}

/// Between the client at that address and the gateway, on port 500, as it is without NAT traversal.
fn way(client: &str) -> Path {
    path(&format!("{client}:500"), &format!("{GATEWAY}:500"))
}

/// What NO_NATS_ALLOWED says of a message that is sent on `path` (RFC 4555 §4.2.6).
fn said(path: Path) -> Vec<u8> {
    let mut data = Vec::new();
    for end in [path.local, path.remote] {
        match end.ip() {
            IpAddr::V4(address) => data.extend(address.octets()),
            IpAddr::V6(address) => data.extend(address.octets()),
        }
    }
    data.extend(path.local.port().to_be_bytes());
    data.extend(path.remote.port().to_be_bytes());
    data
}

fn no_nats(path: Path) -> Payload {
    notify(NotifyType::NO_NATS_ALLOWED, said(path))
}

fn cookie() -> Payload {
    notify(NotifyType::COOKIE2, COOKIE)
}

/// Each request that says something of addresses says which it is sent from and to, and no other one does.
fn assert_said(heard: &[Heard]) -> BTreeSet<u16> {
    let of_addresses = [
        NotifyType::UPDATE_SA_ADDRESSES,
        NotifyType::ADDITIONAL_IP4_ADDRESS,
        NotifyType::ADDITIONAL_IP6_ADDRESS,
        NotifyType::NO_ADDITIONAL_ADDRESSES,
    ];
    let mut seen = BTreeSet::new();
    for heard in heard {
        let kinds = kinds(&heard.payloads);
        let ours: Vec<u16> =
            kinds.iter().filter(|k| of_addresses.contains(k)).map(|kind| kind.0).collect();
        let data = find(&heard.payloads, NotifyType::NO_NATS_ALLOWED);
        // As the puppet sees it, the sender is the remote end.
        let expected = said(turned(heard.path));
        assert_eq!(data.is_some(), !ours.is_empty(), "{heard:?}");
        assert!(data.is_none_or(|data| data == expected), "{heard:?}");
        assert!(!kinds.contains(&NotifyType::NAT_DETECTION_SOURCE_IP), "{heard:?}");
        assert!(!kinds.contains(&NotifyType::NAT_DETECTION_DESTINATION_IP), "{heard:?}");
        seen.extend(ours);
    }
    seen
}

/// RFC 4555 §3.9: without NAT traversal NO_NATS_ALLOWED stands in the first request of IKE_AUTH and in each
/// INFORMATIONAL request with an update or a list, with 12 octets or with 36; with NAT traversal nowhere.
#[test]
fn m_3_9_1_no_nats_allowed_stands_in_ike_auth_updates_and_lists() {
    for v6 in [false, true] {
        let mut lab = puppet_gateway(Plan { v6, ..plan() }, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let at = lab.sas(client)[0].path;
        assert_eq!((at.local.port(), at.remote.port()), (500, 500));
        let auth = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
        let data = find(&auth, NotifyType::NO_NATS_ALLOWED).expect("in IKE_AUTH");
        assert_eq!((data, data.len()), (&said(at)[..], if v6 { 36 } else { 12 }));
        // An update, a list, and a list of one address alone.
        lab.move_to(lab.lte());
        lab.rest();
        let eth = if v6 { None } else { Some(third_uplink(&mut lab)) };
        lab.world.tell_all();
        lab.rest();
        let mut gone = vec![lab.wlan];
        gone.extend(eth);
        for uplink in gone {
            lab.world.set_up(uplink, false);
            lab.rest();
        }
        lab.seconds(40);
        let heard = heard(&mut lab, gateway);
        let seen = assert_said(&heard);
        let additional = if v6 {
            NotifyType::ADDITIONAL_IP6_ADDRESS
        } else {
            NotifyType::ADDITIONAL_IP4_ADDRESS
        };
        for kind in
            [NotifyType::UPDATE_SA_ADDRESSES, additional, NotifyType::NO_ADDITIONAL_ADDRESSES]
        {
            assert!(seen.contains(&kind.0), "{kind:?} was not sent: {heard:?}");
        }
        assert!(heard.iter().any(|h| h.payloads.is_empty()), "nor in a liveness check: {heard:?}");

        // The gateway says it with its own lists; there is no IKE_AUTH request of its own.
        let mut lab = Lab::new(Plan { v6, puppet_client: true, second_gateway: true, ..plan() });
        let (client, wan2) = (lab.client, lab.wan2.expect("a second uplink"));
        let to = Path::new((lab.address(lab.wlan), 500).into(), (lab.gateway_ips[0], 500).into());
        lab.world.play(client, |puppet, now| {
            puppet.script.auth.push(no_nats(to));
            puppet.connect(now, to);
        });
        lab.rest();
        assert!(lab.is_up(), "{}", lab.story());
        for up in [false, true] {
            lab.world.set_up(wan2, up);
            lab.rest();
        }
        let heard = self::heard(&mut lab, client);
        let expected = [additional.0, NotifyType::NO_ADDITIONAL_ADDRESSES.0];
        assert_eq!(assert_said(&heard), expected.into(), "{heard:?}");
    }
    let mut lab = puppet_gateway(Plan::default(), mobike());
    let gateway = lab.gateway;
    lab.move_to(lab.lte());
    lab.rest();
    let auth = lab.world.play(gateway, |puppet, _| puppet.script.auth_heard.clone());
    let heard = heard(&mut lab, gateway);
    let mut all = heard.iter().map(|h| &h.payloads).chain([&auth]);
    assert!(all.all(|payloads| find(payloads, NotifyType::NO_NATS_ALLOWED).is_none()));
}

/// What is true of a message on `path`, and everything that is not.
fn lies(path: Path) -> Vec<Vec<u8>> {
    let truth = said(path);
    let mut lies: Vec<Vec<u8>> = (0..truth.len())
        .map(|at| {
            let mut lie = truth.clone();
            lie[at] ^= 1;
            lie
        })
        .collect();
    lies.push(truth[..truth.len() - 1].to_vec());
    lies.push(truth.iter().copied().chain([0]).collect());
    lies.push(Vec::new());
    lies.push(said(turned(path)));
    lies
}

/// RFC 4555 §3.9: the receiver compares addresses and ports, of both ends, with those of the header, in
/// IKE_AUTH and in each later request, whatever it thinks of NATs itself.
#[test]
fn m_3_9_2_each_address_and_each_port_is_compared_with_the_header() {
    for gateway_too in [false, true] {
        let mut plan = plan();
        plan.gateway.nat_traversal = !gateway_too;
        let mut lab = puppet_client(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let at = lab.sas(client)[0].path;
        let lte = Path::new((ip(LTE), at.local.port()).into(), at.remote);
        let before = (lab.sas(gateway)[0].path, lab.children(gateway));
        for lie in lies(lte) {
            let payload = notify(NotifyType::NO_NATS_ALLOWED, lie.clone());
            ask(&mut lab, client, lte, &[update(), payload, cookie()]);
            lab.rest();
            let answer = answers(&mut lab, client).pop().expect("an answer");
            let refused = notify(NotifyType::UNEXPECTED_NAT_DETECTED, []);
            assert_eq!(answer, (lte, vec![refused, cookie()]), "{lie:?}");
            assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
        }
        ask(&mut lab, client, lte, &[update(), no_nats(lte), cookie()]);
        lab.rest();
        let answer = answers(&mut lab, client).pop().expect("an answer");
        assert_eq!(answer, (lte, vec![cookie()]));
        assert_eq!(lab.sas(gateway)[0].path, turned(lte), "{}", lab.story());
    }
    // The source's port comes first: one that says what the NAT has made of it is right.
    let mapped: SocketAddr = "198.51.100.130:1234".parse().expect("an address");
    for is_right in [true, false] {
        let mut lab = puppet_client(plan(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        middlebox(&mut lab, ExchangeType::INFORMATIONAL, 1, mapped);
        let mut data = said(Path::new(mapped, way(LTE).remote));
        if !is_right {
            data[8..].rotate_left(2);
        }
        let payload = notify(NotifyType::NO_NATS_ALLOWED, data);
        ask(&mut lab, client, way(LTE), &[update(), cookie(), payload]);
        lab.ms(30);
        let answer = answers(&mut lab, client).pop().expect("an answer").1;
        let refused = find(&answer, NotifyType::UNEXPECTED_NAT_DETECTED).is_some();
        assert_eq!(refused, !is_right, "{answer:?}");
        assert_eq!(lab.sas(gateway)[0].path.remote == mapped, is_right, "{}", lab.story());
    }
    // In IKE_AUTH it ends the attempt.
    for lie in lies(way(WLAN)) {
        let mut lab = Lab::new(Plan { puppet_client: true, ..plan() });
        let client = lab.client;
        lab.world.play(client, |puppet, now| {
            puppet.script.auth.push(notify(NotifyType::NO_NATS_ALLOWED, lie.clone()));
            puppet.connect(now, way(WLAN));
        });
        lab.rest();
        assert!(lab.sas(lab.gateway).is_empty(), "{lie:?}: {}", lab.story());
        assert!(lab.children(lab.gateway).is_empty(), "{lie:?}: {}", lab.story());
        let why = lab.world.play(client, |puppet, _| {
            puppet.events.iter().find_map(|(_, event)| match event {
                bewick_ike::Event::Closed { reason, .. } => Some(reason.clone()),
                _ => None,
            })
        });
        assert_eq!(why, Some(CloseReason::NatDetected), "{lie:?}");
    }
}

/// RFC 4555 §3.5: NO_NATS_ALLOWED comes before all else: before the policy on addresses, before the update
/// itself and before the list. If it is right, all of that goes on as without it.
#[test]
fn m_3_5_15_no_nats_allowed_is_looked_at_before_the_update() {
    for denied in [false, true] {
        let mut plan = plan();
        if denied {
            plan.gateway_policy.accept.deny = vec!["198.51.100.128/25".parse().expect("a net")];
        }
        let mut lab = puppet_client(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let before = (lab.sas(gateway)[0].path, lab.children(gateway));
        let list = notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, 9]);
        let wrong = no_nats(way(VICTIM));
        ask(&mut lab, client, way(LTE), &[update(), list.clone(), cookie(), wrong]);
        lab.rest();
        let answer = answers(&mut lab, client).pop().expect("an answer");
        let refused = notify(NotifyType::UNEXPECTED_NAT_DETECTED, []);
        assert_eq!(answer, (way(LTE), vec![refused, cookie()]));
        assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
        assert_eq!(lab.count(gateway, "peer-addresses"), 0, "{}", lab.story());
        ask(&mut lab, client, way(LTE), &[update(), list, cookie(), no_nats(way(LTE))]);
        lab.rest();
        let answer = answers(&mut lab, client).pop().expect("an answer");
        let mut expected = vec![cookie()];
        if denied {
            expected.insert(0, notify(NotifyType::UNACCEPTABLE_ADDRESSES, []));
        }
        assert_eq!(answer, (way(LTE), expected));
        let at = if denied { before.0 } else { turned(way(LTE)) };
        assert_eq!(lab.sas(gateway)[0].path, at, "{}", lab.story());
        assert_eq!(paths(&lab, gateway), [at].into(), "{}", lab.story());
    }
}

/// The lists that an end was told.
fn told(lab: &Lab, end: EndId) -> Vec<Vec<IpAddr>> {
    let list = |event: &&Event| match event {
        Event::PeerAddresses { addresses, .. } => Some(addresses.clone()),
        _ => None,
    };
    lab.events(end).iter().filter_map(list).collect()
}

/// RFC 4555 §3.6: a list that comes through a NAT where none is allowed for is answered with
/// UNEXPECTED_NAT_DETECTED, by either side, and the list of before stays.
#[test]
fn m_3_6_4_a_list_with_a_wrong_no_nats_allowed_is_refused_and_not_taken() {
    let list = |last: u8| notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [203, 0, 113, last]);
    for by_client in [true, false] {
        let mut lab = match by_client {
            true => puppet_client(plan(), mobike()),
            false => puppet_gateway(plan(), mobike()),
        };
        let (puppet, ours) = match by_client {
            true => (lab.client, lab.gateway),
            false => (lab.gateway, lab.client),
        };
        let at = lab.sas(puppet)[0].path;
        ask(&mut lab, puppet, at, &[list(1), no_nats(at)]);
        lab.rest();
        let first = vec![vec![at.local.ip(), ip("203.0.113.1")]];
        assert_eq!(told(&lab, ours), first, "{}", lab.story());
        for lie in lies(at) {
            let wrong = notify(NotifyType::NO_NATS_ALLOWED, lie);
            for list in [list(2), notify(NotifyType::NO_ADDITIONAL_ADDRESSES, [])] {
                ask(&mut lab, puppet, at, &[list, cookie(), wrong.clone()]);
                lab.rest();
                let answer = answers(&mut lab, puppet).pop().expect("an answer").1;
                let refused = notify(NotifyType::UNEXPECTED_NAT_DETECTED, []);
                assert_eq!(answer, [refused, cookie()]);
            }
        }
        assert_eq!(told(&lab, ours), first, "{}", lab.story());
        ask(&mut lab, puppet, at, &[list(3), no_nats(at)]);
        lab.rest();
        assert_eq!(told(&lab, ours).len(), 2, "{}", lab.story());
    }
}

/// A middlebox that gives the client's `nth` datagram of that exchange another source port, or another
/// address, and lets the answers back in.
fn middlebox(lab: &mut Lab, wanted: ExchangeType, nth: usize, other: SocketAddr) {
    let (mut count, mut inside) = (0, None);
    lab.world.net.set_tap(Some(Box::new(move |_, datagram: &Datagram| {
        let mut changed = datagram.clone();
        if let Some(inside) = inside.filter(|_| datagram.dst == other) {
            changed.dst = inside;
            return Verdict::Replace(vec![changed]);
        }
        let header = ike_header(datagram)
            .filter(|h| h.exchange == wanted && h.flags.initiator && !h.flags.response);
        if header.is_some() {
            count += 1;
            if count == nth {
                inside = Some(datagram.src);
                changed.src = other;
                return Verdict::Replace(vec![changed]);
            }
        }
        Verdict::Pass
    })));
}

/// RFC 4555 §3.9: the refusal goes to where the message came from, and not to the address that it names.
#[test]
fn m_3_9_3_the_refusal_goes_to_the_packet_s_source() {
    for other in ["198.51.100.130:1234", "203.0.113.77:500"] {
        let other: SocketAddr = other.parse().expect("an address");
        let mut lab = puppet_client(plan(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let before = (lab.sas(gateway)[0].path, lab.children(gateway));
        middlebox(&mut lab, ExchangeType::INFORMATIONAL, 1, other);
        lab.world.net.capture.set_on(true);
        ask(&mut lab, client, way(LTE), &[update(), cookie(), no_nats(way(LTE))]);
        lab.ms(100);
        let sent = lab.world.net.capture.sent();
        let sent: Vec<_> = sent.filter(|r| r.datagram.src.ip() == ip(GATEWAY)).collect();
        assert_eq!(sent.len(), 1, "{sent:?}");
        assert_eq!((sent[0].datagram.src, sent[0].datagram.dst), (way(LTE).remote, other));
        let answer = answers(&mut lab, client).pop().expect("an answer").1;
        assert_eq!(kinds(&answer)[0], NotifyType::UNEXPECTED_NAT_DETECTED, "{answer:?}");
        assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
    }
}

/// RFC 4555 §3.9: somebody on the way may have changed one packet alone. Of a refusal in IKE_AUTH the client
/// begins anew with IKE_SA_INIT, of a later one with a new request, several times.
#[test]
fn m_3_9_4_one_packet_that_was_changed_on_the_way_is_not_the_end() {
    for other in ["198.51.100.2:1234", "203.0.113.77:500"] {
        let other: SocketAddr = other.parse().expect("an address");
        for nth in [1, 2] {
            let mut lab = Lab::new(plan());
            middlebox(&mut lab, ExchangeType::IKE_AUTH, nth, other);
            lab.world.net.capture.set_on(true);
            lab.up();
            lab.seconds(20);
            assert!(lab.is_up(), "{other} {nth}: {}", lab.story());
            let inits = lab.world.net.capture.sent().filter(|r| {
                ike_header(&r.datagram)
                    .is_some_and(|h| h.exchange == ExchangeType::IKE_SA_INIT && !h.flags.response)
            });
            let spis: BTreeSet<u64> =
                inits.filter_map(|r| Some(ike_header(&r.datagram)?.spi_i)).collect();
            assert_eq!(spis.len(), if nth == 1 { 2 } else { 1 }, "{}", lab.story());
            assert_carries(&mut lab);
        }
        let mut lab = Lab::established(plan());
        middlebox(&mut lab, ExchangeType::INFORMATIONAL, 1, other);
        lab.world.net.capture.set_on(true);
        lab.move_to(lab.lte());
        lab.seconds(5);
        assert_at(&lab, LTE, GATEWAY);
        assert_eq!(lab.sas(lab.gateway)[0].path, turned(way(LTE)), "{}", lab.story());
        let updates = lab.world.net.capture.sent().filter_map(|r| {
            let header = ike_header(&r.datagram)?;
            (!header.flags.response && header.flags.initiator).then_some(header.message_id)
        });
        assert_eq!(updates.collect::<BTreeSet<u32>>().len(), 2, "{}", lab.story());
        for end in [lab.client, lab.gateway] {
            assert_eq!(lab.count(end, "closed"), 0, "{}", lab.story());
        }
        assert_carries(&mut lab);
    }
    // A list that is refused once is told again.
    let mut lab = puppet_gateway(plan(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let mut refused = false;
    answer_with(&mut lab, gateway, move |heard, mut honest| {
        let told = find(&heard.payloads, NotifyType::NO_NATS_ALLOWED).is_some();
        if told && !std::mem::replace(&mut refused, true) {
            honest.insert(0, notify(NotifyType::UNEXPECTED_NAT_DETECTED, []));
        }
        honest
    });
    third_uplink(&mut lab);
    lab.world.tell_addresses(client);
    lab.rest();
    let lists: Vec<Heard> = heard(&mut lab, gateway);
    assert_eq!(lists.len(), 2, "{lists:?}");
    assert_eq!(lists[0].payloads, lists[1].payloads);
    assert_ne!(lists[0].message_id, lists[1].message_id);
}

/// RFC 4555 §3.9: the addresses in NO_NATS_ALLOWED are for the log alone: they lead no packet and no SA
/// anywhere, whether they are right or wrong.
#[test]
fn m_3_9_5_what_no_nats_allowed_says_is_used_for_nothing_else() {
    let mut lab = puppet_client(plan(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let at = lab.sas(client)[0].path;
    let victim = |from: &str, to: &str| no_nats(path(&format!("{from}:500"), &format!("{to}:500")));
    let flows = lab.flows(Duration::from_secs(30));
    let before = (lab.sas(gateway)[0].path, lab.children(gateway));
    let list = notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []);
    for lie in [victim(VICTIM, GATEWAY), victim(WLAN, VICTIM), victim(VICTIM, VICTIM)] {
        for company in [vec![], vec![update()], vec![list.clone()], vec![update(), list.clone()]] {
            let mut asked = company.clone();
            asked.push(lie.clone());
            ask(&mut lab, client, at, &asked);
            lab.rest();
            assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
        }
    }
    lab.seconds(30);
    assert_eq!(lab.lost(flows), [[0u64; 0]; 2], "{}", lab.story());
    assert_eq!(lab.world.net.sent_to(ip(VICTIM)).datagrams, 0);
    let known: BTreeSet<IpAddr> = [WLAN, GATEWAY].map(ip).into();
    let sent: BTreeSet<IpAddr> = lab.world.net.destinations().keys().copied().collect();
    assert!(sent.is_subset(&known), "{sent:?}");
}

/// Without NAT traversal a NAT is the end: behind one no tunnel comes up, whatever translates; one that is
/// up does not move there, and is back where it was.
#[test]
fn x_9_without_nat_traversal_nothing_comes_up_or_moves_behind_a_nat() {
    for keep_up in [false, true] {
        let mut plan = Plan { nat_wlan: true, second_uplink: false, ..plan() };
        plan.client_policy.keep_up = keep_up;
        let mut lab = Lab::new(plan);
        lab.up();
        lab.seconds(60);
        assert!(lab.children(lab.gateway).is_empty(), "{}", lab.story());
        assert!(lab.children(lab.client).is_empty(), "{}", lab.story());
        assert_eq!(lab.count(lab.client, "established"), 0, "{}", lab.story());
        let reasons = lab.reasons(lab.client);
        assert!(reasons.iter().all(|r| *r == CloseReason::NatDetected), "{reasons:?}");
        assert!((2..=20).contains(&reasons.len()), "several times, not for ever: {reasons:?}");
    }
    let mut lab = Lab::established(Plan { nat_lte: true, ..plan() });
    let flows = lab.flows(Duration::from_secs(5));
    lab.seconds(1);
    let before = lab.sas(lab.gateway)[0].path;
    lab.move_to(lab.lte());
    lab.seconds(5);
    assert_at(&lab, WLAN, GATEWAY);
    assert_eq!(lab.sas(lab.gateway)[0].path, before, "{}", lab.story());
    assert_eq!(lab.count(lab.gateway, "moving"), 0, "it never went: {}", lab.story());
    let [_, back] = lab.lost(flows);
    assert!(back.is_empty(), "nor did its traffic: {}", lab.story());
    assert_carries(&mut lab);
}
