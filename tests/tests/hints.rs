//! What makes an end ask whether its pair still works, and what follows from the answer or from silence
//! (RFC 4555 §3.5, §3.7, §3.8, §5.3).

use std::{collections::BTreeSet, time::Duration};

use bewick_ike::{
    ConnectionId, Path, Time,
    wire::{ExchangeType, NotifyType, Payload},
};
use bewick_mobike::{Cause, Command, Event};
use bewick_tests::{
    Lab, Link, Plan, Record,
    handover::many_pairs,
    lab::ip,
    pair::{EndId, Input},
    puppet::{Heard, find, kinds, notify},
    scene::{
        GATEWAY, GATEWAY2, LTE, WLAN, answer_with, assert_at, assert_carries, esp_from, from,
        heard, ike_header, mobike, paths, puppet_client, puppet_gateway, turned,
    },
};

const MS: Duration = Duration::from_millis(1);
const HOLE: Link = Link { black_hole: true, ..Link::of_delay(Duration::from_millis(10)) };

fn has(heard: &Heard, kind: NotifyType) -> bool {
    find(&heard.payloads, kind).is_some()
}

/// The IKE requests that were sent from an address, oldest first.
fn requests(lab: &Lab, source: &str) -> Vec<Record> {
    let is_request = |r: &&Record| {
        ike_header(&r.datagram).is_some_and(|h| !h.flags.response)
            && r.datagram.src.ip() == ip(source)
    };
    lab.world.net.capture.sent().filter(is_request).cloned().collect()
}

fn causes(lab: &Lab, end: EndId) -> Vec<Cause> {
    let cause = |event: &&Event| match event {
        Event::Moving { cause, .. } => Some(*cause),
        _ => None,
    };
    lab.events(end).iter().filter_map(cause).collect()
}

/// RFC 4555 §3.5: what anybody can forge is a hint and no more. However many errors come in, nothing moves,
/// and no more than one question a second goes out, to the pair in use alone.
#[test]
fn m_3_5_2_a_thousand_forged_errors_move_nothing_and_cost_a_question_a_second() {
    for (apart, most) in [(0, 1), (10, 11), (40, 41)] {
        let plan = Plan { second_gateway: true, ..Plan::default() };
        let mut lab = puppet_gateway(plan, mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let other = notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [192, 0, 2, 129]);
        bewick_tests::scene::ask(&mut lab, gateway, turned(from(WLAN, GATEWAY)), &[other]);
        lab.rest();
        let before = (lab.sas(client)[0].path, lab.children(client));
        let asked = heard(&mut lab, gateway).len();
        lab.world.net.capture.set_on(true);
        for _ in 0..1000 {
            lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
            // Of pairs that are not in use it is not even a hint.
            lab.world.input(client, Input::Unreachable(from(LTE, GATEWAY)));
            lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY2)));
            lab.ms(apart);
        }
        lab.ms(500);
        let sent = requests(&lab, WLAN).len();
        assert!((1..=most).contains(&sent), "{apart} ms: {sent} questions: {}", lab.story());
        let heard = heard(&mut lab, gateway);
        assert_eq!(heard.len() - asked, sent, "each once");
        for question in &heard[asked..] {
            assert_eq!(question.path, turned(from(WLAN, GATEWAY)));
            assert!(!has(question, NotifyType::UPDATE_SA_ADDRESSES), "{question:?}");
        }
        assert!(requests(&lab, LTE).is_empty(), "{}", lab.story());
        assert_eq!((lab.sas(client)[0].path, lab.children(client)), before);
        assert_eq!(causes(&lab, client), [], "{}", lab.story());
    }
}

/// RFC 4555 §3.5: a hint leads to the question whether the peer is there, on the pair in use and at once. A
/// peer that answers is left alone; if there was something in it, the client is soon elsewhere.
#[test]
fn m_3_5_3_an_error_makes_the_client_ask_on_its_pair_at_once() {
    for is_true in [false, true] {
        let mut lab = Lab::established(Plan::default());
        let (client, wlan, wan) = (lab.client, lab.wlan, lab.wan);
        if is_true {
            lab.world.net.set_links(wlan, wan, HOLE);
        }
        lab.world.net.capture.set_on(true);
        let now = lab.world.now();
        lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
        let first = requests(&lab, WLAN);
        assert_eq!(first.len(), 1, "{}", lab.story());
        let header = ike_header(&first[0].datagram).expect("IKE");
        assert_eq!(header.exchange, ExchangeType::INFORMATIONAL);
        assert_eq!((first[0].time, first[0].datagram.dst.ip()), (now, ip(GATEWAY)));
        assert_eq!(lab.count(client, "suspected"), 1);
        lab.seconds(2);
        if is_true {
            assert_at(&lab, LTE, GATEWAY);
            assert_eq!(causes(&lab, client), [Cause::NoAnswer]);
        } else {
            lab.seconds(8);
            assert_eq!(requests(&lab, WLAN).len(), 1, "one: {}", lab.story());
            assert!(requests(&lab, LTE).is_empty());
            assert_eq!(lab.count(client, "alive"), 1, "{}", lab.story());
            assert_at(&lab, WLAN, GATEWAY);
        }
    }
}

/// Traffic each ten milliseconds, in either direction, for so many seconds.
fn traffic(lab: &mut Lab, seconds: u64) -> [bewick_tests::pair::FlowId; 2] {
    let (client, gateway, time) = (lab.client, lab.gateway, Duration::from_secs(seconds));
    let [out, back] = [(client, gateway), (gateway, client)];
    [out, back].map(|(from, to)| lab.world.start_flow(from, to, 10 * MS, time))
}

/// RFC 4555 §3.5: a pair that dies without a word is left when it does not answer any more. Traffic shows
/// that within seconds; whichever other pair works is found.
#[test]
fn m_3_5_4_traffic_finds_a_silent_death_within_seconds_whichever_pair_is_left() {
    for nth in 1..16 {
        let plan = Plan { seed: nth, ..Plan::default() };
        let size = if nth == 1 { (2, 1) } else { (4, 4) };
        let (mut lab, ours, theirs) = many_pairs(plan, 20 * MS, size);
        let flows = traffic(&mut lab, 8);
        lab.seconds(1);
        let from = lab.world.now();
        let pairs = ours.iter().flat_map(|one| theirs.iter().map(move |other| (*one, *other)));
        let pairs: Vec<_> = pairs.collect();
        let last = usize::try_from(nth).expect("it is small");
        let dead = pairs.iter().enumerate().filter(|(n, _)| *n != last);
        dead.for_each(|(_, (one, other))| lab.world.net.set_links(*one, *other, HOLE));
        lab.seconds(6);
        let to = lab.world.now();
        lab.seconds(2);
        assert!(lab.is_up(), "{nth}: {}", lab.story());
        let limit = Duration::from_millis(if nth == 1 { 2600 } else { 4000 });
        for flow in flows {
            let gap = lab.world.flow(flow).longest_gap(from, to);
            assert!(gap <= limit, "{nth}: {gap:?}: {}", lab.story());
        }
        assert_eq!(causes(&lab, lab.client), [Cause::Silence], "{nth}: {}", lab.story());
        let at = lab.sas(lab.client)[0].path;
        assert_eq!(at.local.ip(), lab.address(pairs[last].0), "{nth}: {}", lab.story());
        assert_eq!(at.remote.ip(), lab.address(pairs[last].1), "{nth}: {}", lab.story());
    }
}

/// RFC 4555 §3.5, §3.8: an answer whose NAT_DETECTION_DESTINATION_IP is another than before shows that the
/// peer sees the client elsewhere: an update follows, on the same pair. What it says of its own side
/// alone, or says again, leads to nothing.
#[test]
fn m_3_5_7_another_destination_hash_in_an_answer_leads_to_an_update() {
    let (source, destination) =
        (NotifyType::NAT_DETECTION_SOURCE_IP, NotifyType::NAT_DETECTION_DESTINATION_IP);
    for changed in [source, destination] {
        let mut lab = puppet_gateway(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        answer_with(&mut lab, gateway, move |_, honest| {
            let other = |payload| match payload {
                Payload::Notify(n) if n.kind == changed => notify(changed, [9; 20]),
                payload => payload,
            };
            honest.into_iter().map(other).collect()
        });
        for round in 0..3 {
            let before = heard(&mut lab, gateway).len();
            lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
            lab.seconds(2);
            let heard = heard(&mut lab, gateway).split_off(before);
            let updates: Vec<&Heard> =
                heard.iter().filter(|h| has(h, NotifyType::UPDATE_SA_ADDRESSES)).collect();
            let expected = usize::from(changed == destination && round == 0);
            assert_eq!(updates.len(), expected, "{round}: {}", lab.story());
            for update in updates {
                assert_eq!(update.path, turned(from(WLAN, GATEWAY)));
                let after = update.time.since(heard[0].time);
                assert!(after <= 25 * MS, "with the answer: {after:?}");
            }
        }
        let expected: &[Cause] = if changed == destination { &[Cause::NatMapping] } else { &[] };
        assert_eq!(causes(&lab, client), expected, "{}", lab.story());
    }
}

/// RFC 4555 §3.8: after a sleep the client does not wait for its liveness check: it asks at once, and what a
/// NAT has forgotten meanwhile is repaired within two round trips.
#[test]
fn m_3_8_5_who_has_slept_asks_at_once() {
    for (nat_wlan, forgets) in [(false, false), (true, false), (true, true)] {
        let mut lab = Lab::established(Plan { nat_wlan, ..Plan::default() });
        let (client, gateway) = (lab.client, lab.gateway);
        let before = lab.sas(gateway)[0].path;
        if forgets {
            lab.world.net.forget_mappings(lab.wlan_nat.expect("a NAT"));
        }
        lab.world.net.capture.set_on(true);
        let (now, at) = (lab.world.now(), lab.address(lab.wlan).to_string());
        lab.world.input(client, Input::Resumed);
        let asked = requests(&lab, &at);
        assert_eq!(asked.len(), 1, "{}", lab.story());
        assert_eq!(asked[0].time, now);
        lab.ms(85);
        assert_eq!(lab.sas(gateway)[0].path != before, forgets, "{}", lab.story());
        assert_carries(&mut lab);
        let most = if forgets { 2 } else { 1 };
        lab.seconds(5);
        assert_eq!(requests(&lab, &at).len(), most, "{}", lab.story());
    }
    // If the pair is dead too, another one is found without waiting for traffic or for a liveness check.
    let mut lab = Lab::established(Plan::default());
    let (client, wlan, wan) = (lab.client, lab.wlan, lab.wan);
    lab.world.net.set_links(wlan, wan, HOLE);
    lab.world.input(client, Input::Resumed);
    lab.seconds(2);
    assert_at(&lab, LTE, GATEWAY);
}

/// RFC 4555 §3.7: an answer to a request that went to several addresses does not show which of them the
/// peer is at. Before traffic goes to a new one, a COOKIE2 of its own has been there and back.
#[test]
fn m_3_7_10_copies_of_a_race_prove_nothing_and_a_new_cookie_does() {
    let mut auth = mobike();
    auth.push(notify(NotifyType::ADDITIONAL_IP4_ADDRESS, [192, 0, 2, 129]));
    let mut lab = puppet_gateway(Plan { second_gateway: true, ..Plan::default() }, auth);
    let (client, gateway) = (lab.client, lab.gateway);
    let (wlan, wan) = (lab.wlan, lab.wan);
    let lte = lab.lte();
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(client, gateway, MS, Duration::from_secs(4));
    lab.world.net.set_links(wlan, wan, HOLE);
    lab.world.net.set_links(lte, wan, HOLE);
    let before = heard(&mut lab, gateway).len();
    lab.world.input(client, Input::Unreachable(from(WLAN, GATEWAY)));
    lab.seconds(4);
    let at = lab.sas(client)[0].path;
    assert_eq!(at.remote.ip(), ip(GATEWAY2), "{}", lab.story());
    let heard = heard(&mut lab, gateway).split_off(before);
    let copy = &heard[0];
    assert!(!has(copy, NotifyType::UPDATE_SA_ADDRESSES), "{copy:?}");
    // What was copied went to several of the gateway's addresses, with the same octets.
    let all = lab.world.net.capture.sent();
    let of_copy = all.filter(|r| {
        ike_header(&r.datagram).is_some_and(|h| {
            !h.flags.response && h.flags.initiator && h.message_id == copy.message_id
        })
    });
    let of_copy: Vec<Record> = of_copy.cloned().collect();
    let to: BTreeSet<_> = of_copy.iter().map(|r| r.datagram.dst.ip()).collect();
    assert_eq!(to, [ip(GATEWAY), ip(GATEWAY2)].into());
    assert_eq!(of_copy.iter().map(|r| &r.datagram.payload).collect::<BTreeSet<_>>().len(), 1);
    // The proof is another exchange, with a cookie, and on one pair.
    let proof = heard.iter().find(|h| has(h, NotifyType::COOKIE2)).expect("a COOKIE2");
    assert!(proof.message_id > copy.message_id);
    assert_eq!(proof.path, turned(at), "{}", lab.story());
    let esp = esp_from(&lab, &[WLAN, LTE]);
    let first = esp.iter().find(|r| r.datagram.dst.ip() == ip(GATEWAY2)).expect("traffic again");
    let echoed = proof.time + 10 * MS;
    assert!(first.time >= echoed, "{:?} before {echoed:?}: {}", first.time, lab.story());
    assert_eq!(paths(&lab, client), [at].into());
}

/// RFC 4555 §5.3: an ICMP error from where the peer is said to be may come from a victim: the gateway asks
/// with a COOKIE2 whether the peer is there, once a second at most, and changes nothing by itself.
#[test]
fn m_5_3_1_an_error_at_the_gateway_leads_to_a_cookie_exchange_with_the_peer() {
    for (errors, most) in [(1, 1), (1000, 11)] {
        let mut lab = puppet_client(Plan::default(), mobike());
        let (client, gateway) = (lab.client, lab.gateway);
        let before = (lab.sas(gateway)[0].path, lab.children(gateway));
        let victim = Path::new(before.0.local, "203.0.113.66:4500".parse().expect("an address"));
        let asked = heard(&mut lab, client).len();
        for _ in 0..errors {
            lab.world.input(gateway, Input::Unreachable(before.0));
            lab.world.input(gateway, Input::Unreachable(victim));
            lab.ms(10);
        }
        lab.rest();
        let heard = heard(&mut lab, client).split_off(asked);
        assert!((1..=most).contains(&heard.len()), "{errors}: {}", heard.len());
        let mut cookies = BTreeSet::new();
        for question in &heard {
            assert_eq!(question.path, turned(before.0));
            assert!(kinds(&question.payloads).contains(&NotifyType::COOKIE2), "{question:?}");
            let cookie = find(&question.payloads, NotifyType::COOKIE2);
            assert!(cookies.insert(cookie), "each with a cookie of its own");
        }
        assert_eq!((lab.sas(gateway)[0].path, lab.children(gateway)), before);
        assert_eq!(lab.world.net.sent_to(victim.remote.ip()).datagrams, 0);
    }
    // Who echoes something else is not the peer.
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    answer_with(&mut lab, client, |_, _| vec![notify(NotifyType::COOKIE2, [9; 16])]);
    let at = lab.sas(gateway)[0].path;
    lab.world.input(gateway, Input::Unreachable(at));
    lab.rest();
    assert!(lab.children(gateway).is_empty() && lab.sas(gateway).is_empty(), "{}", lab.story());
}

/// With a window of one, the request that is out when the pair dies is the question itself (RFC 4555
/// §3.10): it goes to the other pairs with the same octets. The update is the first request that is begun
/// once the client has decided; before that, the pair in use may have been asked once more.
#[test]
fn x_1_what_is_outstanding_is_the_probe_and_the_update_is_the_next_to_begin() {
    for with_traffic in [false, true] {
        let mut lab = Lab::established(Plan::default());
        let (client, gateway, wlan, wan) = (lab.client, lab.gateway, lab.wlan, lab.wan);
        let old = lab.children(client)[0].id;
        lab.world.net.set_links(wlan, wan, HOLE);
        lab.world.net.capture.set_on(true);
        if with_traffic {
            traffic(&mut lab, 10);
        }
        lab.world.command(client, Command::Rekey(ConnectionId(0))).expect("a rekey");
        lab.seconds(20);
        assert_at(&lab, LTE, GATEWAY);
        assert_ne!(lab.children(client)[0].id, old, "the rekey is done: {}", lab.story());
        let header = |r: &Record| ike_header(&r.datagram).expect("IKE");
        let mut sent = requests(&lab, WLAN);
        sent.extend(requests(&lab, LTE));
        sent.sort_by_key(|r| r.time);
        assert_eq!(header(&sent[0]).exchange, ExchangeType::CREATE_CHILD_SA);
        let decided = lab
            .world
            .end(client)
            .events
            .iter()
            .find_map(|(time, event)| matches!(event, Event::Moving { .. }).then_some(*time));
        let decided = decided.expect("a move");
        let mut previous: Option<Time> = None;
        let ids: BTreeSet<u32> = sent.iter().map(|r| header(r).message_id).collect();
        for (n, id) in ids.iter().enumerate() {
            let copies: Vec<&Record> =
                sent.iter().filter(|r| header(r).message_id == *id).collect();
            let octets: BTreeSet<_> = copies.iter().map(|r| &r.datagram.payload).collect();
            assert_eq!(octets.len(), 1, "the same octets: {}", lab.story());
            assert!(previous.is_none_or(|at| copies[0].time >= at), "one at a time");
            let from_lte = copies.iter().any(|r| r.datagram.src.ip() == ip(LTE));
            assert!(from_lte, "{n}: {}", lab.story());
            // Whatever goes out first on the new pair alone is the update, and the last of all.
            let is_update = copies.iter().all(|r| r.datagram.src.ip() == ip(LTE));
            assert_eq!(is_update, n + 1 == ids.len(), "{}", lab.story());
            assert_eq!(is_update, copies[0].time >= decided, "{n}: {}", lab.story());
            let answered = lab.world.net.capture.delivered().find(|r| {
                ike_header(&r.datagram)
                    .is_some_and(|h| h.flags.response && !h.flags.initiator && h.message_id == *id)
            });
            previous = Some(answered.expect("an answer").time);
        }
        assert!((2..=3).contains(&ids.len()), "{ids:?}: {}", lab.story());
        assert_eq!(lab.count(gateway, "moved"), 1, "{}", lab.story());
        assert_carries(&mut lab);
    }
}
