//! IKE messages in fragments (RFC 7383) on the simulated network: set-up over bad links, paths that
//! carry less, and peers that lie.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use bewick_ike::{
    CloseReason,
    wire::{ExchangeType, Fragment, Header, Message, NotifyType, Payload},
};
use bewick_tests::{
    Chance, Datagram, Lab, Link, Plan, Record, Verdict,
    lab::{ip, path, selectors},
    puppet::{kinds, notify},
};

/// Counts what the thread has on the heap: each test has a thread of its own.
struct Counting;

thread_local! {
    static HEAP: Cell<isize> = const { Cell::new(0) };
}

fn note(octets: usize, sign: isize) {
    // While a thread ends there is nothing to count with, and nothing to count for.
    let _ = HEAP.try_with(|heap| heap.set(heap.get() + sign * octets.cast_signed()));
}

// SAFETY: all work is the system allocator's, called as we are called.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 1);
        // SAFETY: the caller keeps what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(layout.size(), -1);
        // SAFETY: it came from `System`, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn heap() -> isize {
    HEAP.with(Cell::get)
}

/// The IKE message in a datagram.
fn ike(datagram: &Datagram) -> Option<&[u8]> {
    if datagram.dst.port() == 500 {
        Some(&datagram.payload)
    } else {
        datagram.payload.strip_prefix(&[0; 4])
    }
}

fn header(datagram: &Datagram) -> Option<Header> {
    Header::parse(ike(datagram)?).ok()
}

fn fragment(datagram: &Datagram) -> Option<Fragment> {
    Message::parse(ike(datagram)?).ok()?.encrypted?.fragment
}

/// What was sent in exchanges of that kind, requests or responses.
fn sent(lab: &Lab, exchange: ExchangeType, response: bool) -> Vec<Record> {
    let is = |record: &&Record| {
        header(&record.datagram)
            .is_some_and(|h| h.exchange == exchange && h.flags.response == response)
    };
    lab.world.net.capture.sent().filter(is).cloned().collect()
}

fn numbers(records: &[Record]) -> Vec<(u16, u16)> {
    let of = |r: &Record| fragment(&r.datagram).map_or((0, 0), |f| (f.number, f.total));
    records.iter().map(of).collect()
}

/// A plan whose IKE_AUTH messages have about 1000 octets, and IP packets no more than these.
fn plan(client: Option<u16>, gateway: Option<u16>) -> Plan {
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    let nets: Vec<String> = (0..40).map(|n| format!("10.1.{n}.0/24")).collect();
    plan.client.ts_remote = selectors(&nets.iter().map(String::as_str).collect::<Vec<_>>());
    plan.client.fragment_size = client;
    plan.gateway.fragment_size = gateway;
    plan
}

/// A plan with a puppet as client, whose IKE_SA comes up at once.
fn puppet(size: u16) -> Lab {
    let mut lab = Lab::new(Plan { puppet_client: true, ..plan(Some(size), Some(size)) });
    lab.world.net.capture.set_on(true);
    connect(&mut lab);
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
    lab.world.net.capture.clear();
    lab
}

fn connect(lab: &mut Lab) {
    let client = lab.client;
    lab.world
        .play(client, |puppet, now| puppet.connect(now, path("198.51.100.2:500", "192.0.2.1:500")));
}

/// The puppet sends a request with so many octets.
fn ask(lab: &mut Lab, octets: usize) {
    let client = lab.client;
    let payloads: Vec<Payload> = vec![10_000; octets / 10_000]
        .into_iter()
        .chain(Some(octets % 10_000))
        .map(|len| notify(NotifyType(40_000), vec![7; len]))
        .collect();
    let way = path("198.51.100.2:4500", "192.0.2.1:4500");
    lab.world.play(client, |puppet, now| puppet.ask(now, way, &payloads));
}

fn responses(lab: &mut Lab) -> usize {
    let client = lab.client;
    lab.world.play(client, |puppet, _| puppet.responses().count())
}

fn established(plan: Plan) -> Lab {
    let mut lab = Lab::new(plan);
    lab.world.net.capture.set_on(true);
    lab.up();
    assert!(lab.is_up(), "{}", lab.story());
    lab
}

#[test]
fn k_7383_2_3_both_say_that_they_can_and_only_then_is_a_message_cut() {
    for (client, gateway) in
        [(Some(576), Some(576)), (Some(576), None), (None, Some(576)), (None, None)]
    {
        let lab = established(plan(client, gateway));
        let init = |response: bool| {
            let records = sent(&lab, ExchangeType::IKE_SA_INIT, response);
            let message = Message::parse(ike(&records[0].datagram).expect("IKE")).expect("IKE");
            kinds(&message.payloads).contains(&NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)
        };
        let both = client.is_some() && gateway.is_some();
        assert_eq!((init(false), init(true)), (client.is_some(), both));
        for response in [false, true] {
            let records = sent(&lab, ExchangeType::IKE_AUTH, response);
            assert_eq!(records.len() > 1, both, "F-9");
            assert_eq!(fragment(&records[0].datagram).is_some(), both, "F-9");
        }
    }
}

#[test]
fn k_7383_2_6_a_tunnel_comes_up_over_links_that_lose_double_and_shuffle_fragments() {
    for seed in 0..30 {
        for (v6, size) in [(false, 256), (false, 576), (true, 576)] {
            let mut plan = Plan { seed, v6, ..plan(Some(size), Some(size)) };
            // Time enough for a dozen fragments to come through together.
            for config in [&mut plan.client, &mut plan.gateway] {
                config.retransmission.longest = Duration::from_secs(1);
            }
            let mut lab = Lab::new(plan);
            let link = Link {
                jitter: Duration::from_millis(5),
                loss: Chance::percent(10),
                duplicate: Chance::percent(20),
                reorder: Chance::percent(20),
                reorder_by: Duration::from_millis(15),
                ..Link::default()
            };
            lab.world.net.set_links(lab.wlan, lab.wan, link);
            lab.world.net.capture.set_on(true);
            lab.up();
            lab.seconds(2);
            assert!(lab.is_up(), "seed {seed}: {}", lab.story());
            assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 1, "one IKE_SA");
            for response in [false, true] {
                let records = sent(&lab, ExchangeType::IKE_AUTH, response);
                let packets = records.iter().map(|r| r.datagram.octets());
                assert!(packets.max() <= Some(size.into()), "F-10: {size}");
                let first = &records[0].datagram;
                let total = fragment(first).expect("a fragment").total;
                // Each time the same octets, all of them.
                let of = |n: usize| &records[n % usize::from(total)].datagram.payload;
                assert!(records.iter().enumerate().all(|(n, r)| r.datagram.payload == *of(n)));
            }
        }
    }
}

#[test]
fn k_7383_f6_a_request_that_is_done_is_answered_again_for_its_first_fragment_alone() {
    let mut lab = established(plan(Some(576), Some(576)));
    let requests = sent(&lab, ExchangeType::IKE_AUTH, false);
    let answers = sent(&lab, ExchangeType::IKE_AUTH, true);
    assert_eq!(numbers(&requests), [(1, 2), (2, 2)]);
    lab.world.net.capture.clear();
    for request in &requests[1..] {
        lab.world.net.inject(request.datagram.clone());
    }
    lab.ms(100);
    assert_eq!(sent(&lab, ExchangeType::IKE_AUTH, true), []);
    let mut bad = requests[0].datagram.clone();
    *bad.payload.last_mut().expect("an octet") ^= 1;
    lab.world.net.inject(bad);
    lab.ms(100);
    assert_eq!(sent(&lab, ExchangeType::IKE_AUTH, true), []);
    lab.world.net.inject(requests[0].datagram.clone());
    lab.ms(100);
    let again = sent(&lab, ExchangeType::IKE_AUTH, true);
    let octets =
        |records: &[Record]| records.iter().map(|r| r.datagram.payload.clone()).collect::<Vec<_>>();
    assert_eq!(octets(&again), octets(&answers));
    lab.rest();
    assert!(lab.is_up(), "{}", lab.story());
}

/// Copies of a fragment with lies in it.
fn lies(datagram: &Datagram) -> Vec<Datagram> {
    let at = datagram.payload.len() - ike(datagram).expect("IKE").len() + 32;
    let lie = |number: u16, total: u16| {
        let mut copy = datagram.clone();
        copy.payload[at..at + 2].copy_from_slice(&number.to_be_bytes());
        copy.payload[at + 2..at + 4].copy_from_slice(&total.to_be_bytes());
        copy
    };
    let mut bad = datagram.clone();
    *bad.payload.last_mut().expect("an octet") ^= 1;
    vec![lie(1, 255), lie(2, 200), lie(1, 1), lie(0, 0), lie(9, 3), lie(7, 65_535), bad]
}

#[test]
fn k_7383_f4_an_attacker_with_lying_totals_and_bad_fragments_changes_nothing() {
    let mut lab = Lab::new(plan(Some(576), Some(576)));
    lab.world.net.set_tap(Some(Box::new(|_, datagram| {
        if fragment(datagram).is_none() {
            return Verdict::Pass;
        }
        let mut all = lies(datagram);
        all.push(datagram.clone());
        Verdict::Replace(all)
    })));
    lab.world.net.capture.set_on(true);
    lab.up();
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(numbers(&sent(&lab, ExchangeType::IKE_AUTH, false)), [(1, 2), (2, 2)]);
    assert_eq!(sent(&lab, ExchangeType::IKE_AUTH, true).len(), 2, "no one was asked twice");
}

#[test]
fn k_7383_f4_ten_thousand_bad_fragments_cost_no_memory() {
    let mut lab = puppet(576);
    ask(&mut lab, 1500);
    lab.rest();
    assert_eq!(responses(&mut lab), 1);
    let mut bad = sent(&lab, ExchangeType::INFORMATIONAL, false)[0].datagram.clone();
    assert_eq!(fragment(&bad).map(|f| f.number), Some(1));
    lab.world.net.capture.set_on(false);
    lab.world.net.capture.clear();
    let sent = lab.world.end(lab.gateway).transmitted;
    let mut flood = |lab: &mut Lab| {
        for n in 0..10_000_u32 {
            // The Message ID that is due, each time with another number and total.
            bad.payload[4 + 20..4 + 24].copy_from_slice(&3_u32.to_be_bytes());
            bad.payload[4 + 32..4 + 34].copy_from_slice(&[0, (n % 100) as u8 + 1]);
            bad.payload[4 + 34..4 + 36].copy_from_slice(&[0, 200 - (n % 100) as u8]);
            lab.world.net.inject(bad.clone());
            if n % 10 == 0 {
                lab.ms(1);
            }
        }
        lab.ms(100);
    };
    flood(&mut lab);
    let before = heap();
    flood(&mut lab);
    let grown = heap() - before;
    assert!(grown < 1024, "{grown} octets");
    assert_eq!(lab.world.end(lab.gateway).transmitted, sent);
    ask(&mut lab, 1500);
    lab.rest();
    assert_eq!(responses(&mut lab), 2, "{}", lab.story());
}

#[test]
fn k_7383_f7_a_set_that_is_never_complete_is_forgotten() {
    // Of a peer that we don't know yet.
    let mut lab = Lab::new(plan(Some(576), Some(576)));
    let drop_second = |_, datagram: &Datagram| {
        let second = fragment(datagram).is_some_and(|f| f.number == 2);
        if second { Verdict::Drop } else { Verdict::Pass }
    };
    lab.world.net.set_tap(Some(Box::new(drop_second)));
    lab.up();
    lab.seconds(25);
    assert!(!lab.is_up());
    assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 0, "{}", lab.story());
    // Of one that we know: the IKE_SA does not suffer.
    let mut lab = puppet(576);
    let before = heap();
    lab.world.net.capture.set_on(false);
    lab.world.net.set_tap(Some(Box::new(drop_second)));
    ask(&mut lab, 30_000);
    lab.ms(100);
    let with_fragments = heap() - before;
    assert!(with_fragments > 60_000, "the request and its fragments: {with_fragments}");
    lab.seconds(62);
    let without = heap() - before;
    assert!(without < with_fragments - 28_000, "the request alone: {without}");
    assert_eq!(responses(&mut lab), 0);
    assert_eq!(lab.sas(lab.gateway)[0].state, "established");
    lab.world.net.set_tap(None);
    lab.seconds(70);
    assert!(responses(&mut lab) >= 1, "{}", lab.story());
}

#[test]
fn k_7383_f8_fragments_without_end_close_the_ike_sa() {
    let mut lab = puppet(1280);
    ask(&mut lab, 60_000);
    lab.rest();
    assert_eq!(responses(&mut lab), 1, "as long as a message can be");
    ask(&mut lab, 70_000);
    lab.rest();
    let reasons = lab.reasons(lab.gateway);
    assert!(matches!(&reasons[..], [CloseReason::Protocol(text)] if text.contains("too long")));
    assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 0);
    assert!(lab.children(lab.gateway).is_empty());

    let mut lab = Lab::new(Plan { puppet_client: true, ..plan(Some(1280), Some(1280)) });
    let client = lab.client;
    lab.world.play(client, |puppet, _| {
        puppet.script.auth.push(notify(NotifyType(40_000), vec![0; 40_000]));
    });
    connect(&mut lab);
    lab.rest();
    assert_eq!(lab.world.end(lab.gateway).machine.host().len(), 0, "{}", lab.story());
}

#[test]
fn k_7383_f10_a_path_that_carries_less_is_found_by_going_down() {
    for (up, down) in [(true, true), (true, false), (false, true)] {
        let mut lab = Lab::new(plan(Some(1280), Some(1280)));
        let narrow = Some(700);
        lab.world.net.link(lab.wlan, lab.wan).mtu = narrow.filter(|_| up);
        lab.world.net.link(lab.wan, lab.wlan).mtu = narrow.filter(|_| down);
        lab.world.net.capture.set_on(true);
        lab.up();
        assert!(lab.is_up(), "up {up} down {down}: {}", lab.story());
        let requests = sent(&lab, ExchangeType::IKE_AUTH, false);
        let tries = numbers(&requests);
        assert_eq!(tries, [(0, 0), (0, 0), (0, 0), (1, 2), (2, 2)]);
        let ids = requests.iter().filter_map(|r| header(&r.datagram)).map(|h| h.message_id);
        assert!(ids.into_iter().all(|id| id == 1), "one and the same request");
        let answers = numbers(&sent(&lab, ExchangeType::IKE_AUTH, true));
        // Cut anew if it had been sent whole before.
        let before = if up { 0 } else { 3 };
        assert_eq!(answers[..before], vec![(0, 0); before]);
        assert_eq!(answers[before..], [(1, 2), (2, 2)]);
    }
}

#[test]
fn k_7383_2_5_2_a_request_in_flight_is_cut_smaller_after_a_move_to_a_smaller_path() {
    let mut lab = puppet(1280);
    let client = lab.client;
    // So far the path is a hole.
    let hole = Link { black_hole: true, ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    ask(&mut lab, 2000);
    lab.ms(100);
    let small = Link { mtu: Some(576), ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, small);
    for size in [1280, 4000, 576, 576] {
        lab.world.play(client, |puppet, now| {
            let sa = puppet.sa();
            let cut = puppet.endpoint.refragment(sa, size);
            puppet.endpoint.hasten(now, sa, true, &mut puppet.script);
            cut
        });
    }
    lab.rest();
    assert_eq!(responses(&mut lab), 1, "{}", lab.story());
    let requests = sent(&lab, ExchangeType::INFORMATIONAL, false);
    assert_eq!(numbers(&requests[..6]), [(1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2)]);
    assert_eq!(numbers(&requests[6..10]), [(1, 5), (2, 5), (3, 5), (4, 5)]);
    assert_eq!(requests.len(), 16);
    let octets = |from: usize, n: usize| {
        requests[from..from + n].iter().map(|r| r.datagram.payload.clone()).collect::<Vec<_>>()
    };
    assert_eq!(octets(0, 2), octets(2, 2), "the same octets while they fit");
    assert_eq!(octets(0, 2), octets(4, 2));
    assert_eq!(octets(6, 5), octets(11, 5));
    let sizes = requests[6..].iter().map(|r| r.datagram.octets());
    assert!(sizes.max() <= Some(576));
    assert!(lab.sas(lab.gateway)[0].path.remote.ip() == ip("198.51.100.2"));
}
