//! What MOBIKE is for and what not, and who is who in it (RFC 4555 §1.2, §1.3, §4.2.1).

use std::{collections::BTreeSet, time::Duration};

use bewick_ike::{ConnectionId, Path, wire::NotifyType};
use bewick_mobike::{Command, Event};
use bewick_tests::{
    Lab, Plan, Realm,
    lab::ip,
    pair::EndId,
    puppet::{find, notify},
    scene::{
        GATEWAY, GATEWAY2, LTE, WLAN, answers, ask, assert_at, esp_from, from, heard, mobike,
        paths, puppet_client, puppet_gateway, send_by, turned, update, with_three,
    },
};

/// RFC 4555 §1.2: one pair at a time and no load sharing. At each moment all CHILD_SAs of an end are on
/// one pair, and each pair is left once and for all.
#[test]
fn m_1_2_2_all_traffic_of_an_ike_sa_is_on_one_pair_at_a_time() {
    let mut lab = Lab::new(with_three());
    lab.up();
    lab.rest();
    let ends = [lab.client, lab.gateway];
    assert!(ends.iter().all(|end| lab.children(*end).len() == 3), "{}", lab.story());
    lab.world.net.capture.set_on(true);
    for ms in 0..400 {
        match ms {
            100 => lab.move_to(lab.lte()),
            250 => lab.move_to(lab.wlan),
            _ => {}
        }
        for end in ends {
            assert_eq!(paths(&lab, end).len(), 1, "after {ms} ms: {}", lab.story());
            for child in lab.children(end) {
                send_by(&mut lab, end, child.id, ms);
            }
        }
        lab.ms(1);
    }
    for sources in [[WLAN, LTE].as_slice(), &[GATEWAY]] {
        let mut pairs: Vec<Path> = Vec::new();
        let sent = esp_from(&lab, sources);
        assert_eq!(sent.len(), 3 * 400);
        for record in sent {
            pairs.push(Path::new(record.datagram.src, record.datagram.dst));
        }
        pairs.dedup();
        assert_eq!(pairs.len(), 3, "there and back again: {pairs:?}");
    }
}

/// RFC 4555 §1.2: an answer goes to where the request came from, and comes from where it went to. A
/// request on another pair than the IKE_SA's changes nothing else.
#[test]
fn m_1_2_3_an_answer_takes_the_way_of_its_request_back() {
    let elsewhere = from(LTE, GATEWAY2);
    let mut lab = puppet_client(Plan { second_gateway: true, ..Plan::default() }, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let before = (lab.sas(gateway)[0].path, lab.children(gateway));
    ask(&mut lab, client, elsewhere, &[]);
    lab.rest();
    assert_eq!(answers(&mut lab, client), [(elsewhere, vec![])]);
    assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);

    let plan = Plan { second_gateway: true, ..Plan::default() };
    let mut lab = puppet_gateway(plan, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let before = (lab.sas(client)[0].path, lab.children(client));
    ask(&mut lab, gateway, turned(elsewhere), &[]);
    lab.rest();
    assert_eq!(answers(&mut lab, gateway), [(turned(elsewhere), vec![])]);
    assert_eq!((lab.sas(client)[0].path, lab.children(client)), before);
}

/// The addresses that anything was sent to.
fn destinations(lab: &Lab) -> BTreeSet<String> {
    lab.world.net.destinations().keys().map(ToString::to_string).collect()
}

/// RFC 4555 §1.2: there is no rendezvous. Ends that lose their addresses at once meet again where one of
/// them told that it can be; if neither did, the IKE_SA ends by itself, and nothing was ever sent to an
/// address that nobody told.
#[test]
fn m_1_2_4_ends_that_move_at_once_meet_at_known_addresses_or_the_ike_sa_ends() {
    for (client_first, apart) in [(true, 0), (true, 5), (true, 15), (false, 5), (false, 15)] {
        let mut lab = Lab::established(Plan { second_gateway: true, ..Plan::default() });
        let (mut gone, wan) = (vec![lab.wlan, lab.wan], lab.wan);
        if !client_first {
            gone.reverse();
        }
        lab.world.set_up(gone[0], false);
        lab.ms(apart);
        lab.world.set_up(gone[1], false);
        lab.seconds(60);
        assert!(!lab.world.net.is_up(wan));
        assert_at(&lab, LTE, GATEWAY2);
        let known = [WLAN, LTE, GATEWAY, GATEWAY2].map(str::to_owned);
        assert!(destinations(&lab).is_subset(&known.into()), "{:?}", destinations(&lab));
    }
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    plan.client_policy.hold = Duration::from_secs(300);
    plan.gateway_policy.hold = Duration::from_secs(300);
    let mut lab = Lab::established(plan);
    let (wlan, wan) = (lab.wlan, lab.wan);
    lab.world.net.reattach(wlan, Realm::Internet, &[ip("203.0.113.77")]);
    lab.world.net.reattach(wan, Realm::Internet, &[ip("203.0.113.88")]);
    lab.world.tell_all();
    lab.seconds(600);
    assert!(lab.is_empty(), "{}", lab.story());
    let known = [WLAN, GATEWAY].map(str::to_owned);
    assert!(destinations(&lab).is_subset(&known.into()), "{:?}", destinations(&lab));
}

fn rekey_ike(lab: &mut Lab, end: EndId) {
    lab.world.play(end, |puppet, now| {
        let sa = puppet.sa();
        puppet.endpoint.rekey_ike(now, sa, &mut puppet.script);
    });
    lab.rest();
}

/// RFC 4555 §1.3: the initiator is who started the first IKE_SA, whoever rekeyed it, and only its updates
/// count, although the header's flag has changed sides (RFC 7296 §2.18).
#[test]
fn m_1_3_1_the_initiator_is_who_started_the_first_ike_sa() {
    let mut lab = puppet_gateway(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    rekey_ike(&mut lab, gateway);
    assert_eq!(lab.count(client, "rekeyed"), 1, "{}", lab.story());
    lab.move_to(lab.lte());
    lab.rest();
    let last = heard(&mut lab, gateway).pop().expect("an update");
    assert!(find(&last.payloads, NotifyType::UPDATE_SA_ADDRESSES).is_some(), "{last:?}");
    assert_eq!(last.path, turned(from(LTE, GATEWAY)));
    let before = (lab.sas(client)[0].path, lab.children(client));
    ask(&mut lab, gateway, turned(from(WLAN, GATEWAY)), &[update()]);
    lab.rest();
    let answer = answers(&mut lab, gateway).pop().expect("an answer");
    assert_eq!(answer, (turned(from(WLAN, GATEWAY)), vec![]));
    assert_eq!((lab.sas(client)[0].path, lab.children(client)), before);

    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    lab.world.command(gateway, Command::RekeyIke(ConnectionId(0))).expect("a rekey");
    lab.rest();
    assert_eq!(lab.count(gateway, "rekeyed"), 1, "{}", lab.story());
    ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
    lab.rest();
    assert_eq!(lab.sas(gateway)[0].path, turned(from(LTE, GATEWAY)), "{}", lab.story());
    assert_eq!(lab.children(gateway)[0].path, turned(from(LTE, GATEWAY)), "{}", lab.story());
}

/// RFC 4555 §4.2.1: the notification has no data.
#[test]
fn m_4_2_1_1_mobike_supported_is_sent_without_data() {
    let mut client = puppet_client(Plan::default(), mobike());
    let mut gateway = puppet_gateway(Plan::default(), mobike());
    let puppets = [(&mut client, true), (&mut gateway, false)];
    for (lab, is_client) in puppets {
        let end = if is_client { lab.client } else { lab.gateway };
        let said = lab.world.play(end, |puppet, _| puppet.script.auth_heard.clone());
        assert_eq!(find(&said, NotifyType::MOBIKE_SUPPORTED), Some(&[][..]), "{said:?}");
    }
}

/// RFC 4555 §4.2.1: what data there is is ignored, and MOBIKE is on.
#[test]
fn m_4_2_1_2_data_in_mobike_supported_is_ignored() {
    let junk = || vec![notify(NotifyType::MOBIKE_SUPPORTED, [1, 2, 3, 4, 5])];
    let is_on = |lab: &Lab, end: EndId| {
        let on = |event: &&Event| matches!(event, Event::Established { mobike: true, .. });
        lab.events(end).iter().filter(|event| on(event)).count() == 1
    };
    let mut lab = puppet_gateway(Plan::default(), junk());
    assert!(is_on(&lab, lab.client), "{}", lab.story());
    lab.move_to(lab.lte());
    lab.rest();
    assert_eq!(paths(&lab, lab.client), [from(LTE, GATEWAY)].into(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "moved"), 1, "{}", lab.story());

    let mut lab = puppet_client(Plan::default(), junk());
    let (client, gateway) = (lab.client, lab.gateway);
    assert!(is_on(&lab, gateway), "{}", lab.story());
    ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
    lab.rest();
    assert_eq!(paths(&lab, gateway), [turned(from(LTE, GATEWAY))].into(), "{}", lab.story());
}
