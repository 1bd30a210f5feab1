//! COOKIE and INVALID_KE_PAYLOAD in one set-up, in any order (RFC 7296 §2.6.1).

use std::time::Duration;

use bewick_ike::{
    ConnectionConfig, ConnectionId, Endpoint, Event, Output, Path, Random, Time,
    endpoint::HalfOpenLimits,
    extension::Plain,
    wire::{ExchangeType, Flags, Header, Message, NotifyType, Payload, emit_message},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Link, Plan,
    lab::{ECP256_CBC, X25519_GCM, client_config, gateway_config, path},
    puppet::{find, kinds, notify},
};

const X25519: u16 = 31;
const ECP256: u16 = 19;

/// What a responder that keeps nothing says to an IKE_SA_INIT.
#[derive(Clone, Copy, Debug)]
enum Says {
    Cookie(&'static [u8]),
    Group(u16),
}

use Says::*;

/// The payloads that stay as they were, the group, and the cookie if it is where it must be: in front
/// (RFC 7296 §2.6).
fn parts(payloads: &[Payload]) -> (Vec<Payload>, u16, Option<Vec<u8>>) {
    let cookie = find(&payloads[..1], NotifyType::COOKIE).map(<[u8]>::to_vec);
    let same = |p: &&Payload| matches!(p, Payload::SecurityAssociation(_) | Payload::Nonce(_));
    let group = payloads.iter().find_map(|payload| match payload {
        Payload::KeyExchange { group, .. } => Some(*group),
        _ => None,
    });
    (payloads.iter().filter(same).cloned().collect(), group.expect("KE"), cookie)
}

fn sent(endpoint: &mut Endpoint) -> Vec<(Path, Vec<u8>)> {
    let mut sent = Vec::new();
    while let Some(output) = endpoint.poll_output() {
        match output {
            Output::Transmit(transmit) => sent.push((transmit.path, transmit.bytes)),
            Output::Keys(_) => panic!("nobody has asked for keys"),
            Output::Action { id, .. } => endpoint.answer(Time::ZERO, id, Ok(()), &mut Plain),
            Output::Event(Event::Reached { .. } | Event::Answering { .. }) => {}
            Output::Event(event) => assert!(matches!(event, Event::Established(_)), "{event:?}"),
        }
    }
    sent
}

fn initiator() -> Endpoint {
    let mut client = Endpoint::new(Random::from_seed([4; 32]), vec![client_config()], false);
    let way = path("198.51.100.2:500", "192.0.2.1:500");
    client.connect(Time::ZERO, ConnectionId(0), way, &mut Plain).expect("a connection");
    client
}

/// The only request that the initiator has sent, if it sent one.
fn request(client: &mut Endpoint) -> Option<(Path, Vec<u8>)> {
    let mut all = sent(client);
    assert!(all.len() <= 1, "one request at a time");
    all.pop()
}

/// The initiator keeps its SPI, its proposals and its nonce, says the last cookie again with each further
/// try, and guesses no group that was not asked for; whatever the order, it comes through.
#[test]
fn k_2_6_2_cookies_and_another_group_are_followed_in_any_order() {
    let orders: [&[Says]; 7] = [
        &[],
        &[Cookie(b"one")],
        // RFC 7296 §2.6.1: the responder takes the cookie that it gave to the first group.
        &[Cookie(b"one"), Group(ECP256)],
        // The same, of a responder whose cookies are bound to KE: it asks for another one.
        &[Cookie(b"one"), Group(ECP256), Cookie(b"two")],
        &[Group(ECP256), Cookie(b"one")],
        // Its secret has changed meanwhile (RFC 7296 §2.6).
        &[Group(ECP256), Cookie(b"one"), Cookie(b"two")],
        &[Cookie(b"one"), Cookie(b"two"), Group(ECP256), Cookie(b"three")],
    ];
    for order in orders {
        let mut client = initiator();
        let (mut way, mut octets) = request(&mut client).expect("IKE_SA_INIT");
        let (mut group, mut cookie) = (X25519, None);
        let first = Message::parse(&octets).expect("IKE_SA_INIT");
        let (spi, same) = (first.header.spi_i, parts(&first.payloads).0);
        for says in order {
            let payload = match *says {
                Cookie(data) => {
                    cookie = Some(data.to_vec());
                    notify(NotifyType::COOKIE, data)
                }
                Group(wanted) => {
                    group = wanted;
                    notify(NotifyType::INVALID_KE_PAYLOAD, wanted.to_be_bytes())
                }
            };
            let flags = Flags { initiator: false, response: true, version: false };
            let head = Header::new((spi, 0), ExchangeType::IKE_SA_INIT, flags, 0);
            let answer = emit_message(&head, &[payload]).expect("it fits");
            // A repeated answer brings no further request (RFC 7296 §2.1).
            client.datagram(Time::ZERO, way, &answer, &mut Plain);
            (way, octets) = request(&mut client).unwrap_or_else(|| panic!("{order:?}, {says:?}"));
            client.datagram(Time::ZERO, way, &answer, &mut Plain);
            assert!(request(&mut client).is_none(), "{order:?}, {says:?} again");
            let next = Message::parse(&octets).expect("IKE_SA_INIT");
            assert_eq!((next.header.spi_i, next.header.message_id), (spi, 0), "{order:?}");
            assert_eq!(
                parts(&next.payloads),
                (same.clone(), group, cookie.clone()),
                "{order:?}, {says:?}"
            );
        }
        // Somebody who takes the last one takes all: AUTH covers that request (RFC 7296 §2.15).
        let suite = if group == X25519 { X25519_GCM } else { ECP256_CBC };
        let config = ConnectionConfig { ike_proposals: vec![suite], ..gateway_config() };
        let mut gateway = Endpoint::new(Random::from_seed([5; 32]), vec![config], false);
        for _ in 0..2 {
            let back = Path::new(way.remote, way.local);
            gateway.datagram(Time::ZERO, back, &octets, &mut Plain);
            let (_, answer) = sent(&mut gateway).pop().expect("an answer");
            client.datagram(Time::ZERO, way, &answer, &mut Plain);
            if let Some(next) = request(&mut client) {
                (way, octets) = next;
            }
        }
        for end in [&client, &gateway] {
            let sa = end.status().next().expect("an IKE_SA");
            assert_eq!((sa.state, sa.children.len()), ("established", 1), "{order:?}");
        }
    }
}

/// Both orders against our own responder: what it answers first depends on whether it has a crowd by then.
#[test]
fn k_2_6_2_the_responder_asks_for_a_cookie_and_a_group_in_either_order() {
    use NotifyType as N;
    for crowd_first in [true, false] {
        let mut plan = Plan { puppet_gateway: true, second_uplink: false, ..Plan::default() };
        plan.client.ike_proposals = vec![X25519_GCM, ECP256_CBC];
        plan.gateway.ike_proposals = vec![ECP256_CBC];
        let mut lab = Lab::new(plan);
        lab.link(Link::of_delay(Duration::from_millis(10)));
        lab.world.net.capture.set_on(true);
        let (client, gateway) = (lab.client, lab.gateway);
        let crowded = HalfOpenLimits { cookies_from: 0, ..HalfOpenLimits::default() };
        let crowd = |lab: &mut Lab| {
            lab.world.play(gateway, |puppet, _| puppet.endpoint.set_half_open_limits(crowded));
        };
        if crowd_first {
            crowd(&mut lab);
        }
        lab.world.command(client, Command::Up(ConnectionId(0))).expect("a connection");
        lab.ms(15);
        crowd(&mut lab);
        lab.seconds(2);
        assert!(lab.is_up(), "{}", lab.story());
        let answers: Vec<Vec<N>> = lab
            .world
            .net
            .capture
            .sent()
            .filter_map(|record| Message::parse(&record.datagram.payload).ok())
            .filter(|message| message.header.flags.response)
            .map(|message| kinds(&message.payloads))
            .collect();
        let mut wanted = [N::COOKIE, N::INVALID_KE_PAYLOAD];
        if !crowd_first {
            wanted.reverse();
        }
        assert_eq!(answers[..2], wanted.map(|kind| vec![kind]), "{}", lab.story());
        assert_eq!(answers.len(), 3, "no more than these two: {answers:?}");
    }
}
