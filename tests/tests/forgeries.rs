//! What anyone can say without a key, and what comes of it: COOKIE and INVALID_IKE_SPI (RFC 7296 §2.1,
//! §2.6, §2.21.4).

use bewick_ike::{
    CloseReason,
    wire::{self, ExchangeType, Flags, Header, NotifyType, Payload},
};
use bewick_tests::{
    Datagram, Lab, Plan, Verdict,
    lab::{ip, path},
    puppet::notify,
};

/// What the header of an IKE message on port 500 or 4500 says.
fn header(datagram: &Datagram) -> Option<Header> {
    let payload = &datagram.payload;
    let marked = datagram.dst.port() == 4500 || datagram.src.port() == 4500;
    Header::parse(if marked { payload.strip_prefix(&[0; 4])? } else { payload }).ok()
}

/// An answer to the request in `datagram` that nobody has protected.
fn forged(datagram: &Datagram, payload: Payload) -> Datagram {
    let asked = header(datagram).expect("an IKE message");
    let flags = Flags { initiator: false, response: true, version: false };
    let spi_r = if asked.exchange == ExchangeType::IKE_SA_INIT { 0 } else { asked.spi_r };
    let answer = Header::new((asked.spi_i, spi_r), asked.exchange, flags, asked.message_id);
    let mut bytes = vec![0; if datagram.dst.port() == 4500 { 4 } else { 0 }];
    bytes.extend(wire::emit_message(&answer, &[payload]).expect("a message"));
    Datagram::udp(datagram.dst, datagram.src, bytes)
}

/// The first `times` IKE_SA_INIT requests get a forged COOKIE before their answer.
fn forge_cookies(lab: &mut Lab, times: usize) {
    let mut left = times;
    let mut seen = Vec::new();
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let init = header(datagram)
            .filter(|h| h.exchange == ExchangeType::IKE_SA_INIT && !h.flags.response);
        // One for each try: what it makes of it is let through.
        let Some(init) = init.filter(|h| left > 0 && !seen.contains(&h.spi_i)) else {
            return Verdict::Pass;
        };
        seen.push(init.spi_i);
        left -= 1;
        let cookie = forged(datagram, notify(NotifyType::COOKIE, [7; 16]));
        Verdict::Replace(vec![cookie, datagram.clone()])
    })));
}

#[test]
fn k_2_6_1_a_forged_cookie_costs_one_try_and_not_the_connection() {
    for times in 1..=3 {
        let mut lab = Lab::new(Plan::default());
        forge_cookies(&mut lab, times);
        lab.world
            .command(lab.client, bewick_mobike::Command::Up(bewick_ike::ConnectionId(0)))
            .expect("its connection");
        // Half-open IKE_SAs that nobody completes stay for 30 s.
        lab.seconds(40);
        assert!(lab.is_up(), "{times}: {}", lab.story());
    }
}

#[test]
fn k_2_6_1_tries_that_forged_cookies_spoil_are_bounded() {
    let mut lab = Lab::new(Plan::default());
    forge_cookies(&mut lab, usize::MAX);
    lab.up();
    lab.seconds(60);
    assert!(lab.sas(lab.client).is_empty(), "{}", lab.story());
    let reasons = lab.reasons(lab.client);
    assert_eq!(reasons, vec![CloseReason::Misled; reasons.len()]);
    assert_eq!(reasons.len(), 4, "the first and three more");
}

#[test]
fn k_2_1_1_requests_with_the_same_spi_are_told_apart_by_what_is_in_them() {
    // Somebody sees the first message and makes another of it, with the same SPI from the same address,
    // which arrives first; what the gateway says to that one never arrives.
    let mut lab = Lab::new(Plan::default());
    let (mut asked, mut answered) = (false, false);
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let Some(header) = header(datagram).filter(|h| h.exchange == ExchangeType::IKE_SA_INIT)
        else {
            return Verdict::Pass;
        };
        if header.flags.response {
            return if std::mem::replace(&mut answered, true) {
                Verdict::Pass
            } else {
                Verdict::Drop
            };
        }
        if std::mem::replace(&mut asked, true) {
            return Verdict::Pass;
        }
        let message = wire::Message::parse(&datagram.payload).expect("a message");
        let mut payloads = message.payloads.clone();
        for payload in &mut payloads {
            if let Payload::Nonce(nonce) = payload {
                nonce.reverse();
            }
        }
        let mut other = datagram.clone();
        other.payload = wire::emit_message(&message.header, &payloads).expect("a message");
        Verdict::Replace(vec![other, datagram.clone()])
    })));
    lab.up();
    lab.seconds(40);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "connecting"), 1, "the first try: {}", lab.story());
}

#[test]
fn k_2_21_4_a_request_on_an_unknown_ike_sa_is_told_so_and_a_response_is_not() {
    let mut lab = Lab::established(Plan::default());
    lab.world.net.capture.set_on(true);
    let (client, gateway) = ("198.51.100.9:4500", "192.0.2.1:4500");
    let send = |lab: &mut Lab, response: bool, count: u32| {
        for id in 0..count {
            let flags = Flags { initiator: true, response, version: false };
            let header = Header::new((5, 9), ExchangeType::INFORMATIONAL, flags, id);
            let payloads = [notify(NotifyType::COOKIE2, [1; 32])];
            let mut payload = vec![0; 4];
            payload.extend(wire::emit_message(&header, &payloads).expect("a message"));
            let way = path(client, gateway);
            lab.world.net.inject(Datagram::udp(way.local, way.remote, payload));
        }
        lab.ms(100);
        let sent = lab.world.net.capture.sent();
        let answers: Vec<_> =
            sent.filter(|r| r.datagram.dst.ip() == ip("198.51.100.9")).cloned().collect();
        lab.world.net.capture.clear();
        answers
    };
    assert!(send(&mut lab, true, 10).is_empty(), "RFC 7296 §2.21.4: a response gets none");
    let answers = send(&mut lab, false, 1);
    assert_eq!(answers.len(), 1);
    let said = &answers[0].datagram.payload[4..];
    let message = wire::Message::parse(said).expect("a message");
    assert_eq!((message.header.spi_i, message.header.spi_r, message.header.message_id), (5, 9, 0));
    assert!(message.header.flags.response && !message.header.flags.initiator);
    assert_eq!(message.payloads, [notify(NotifyType::INVALID_IKE_SPI, [])]);
    lab.seconds(2);
    assert_eq!(send(&mut lab, false, 1000).len(), 20, "not to everybody in a flood");
}

#[test]
fn k_2_21_4_a_restarted_gateway_is_met_again_within_seconds() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::established(plan);
    let fresh = lab.gateway_machine(1);
    let gateway = lab.gateway;
    lab.world.restart(gateway, fresh);
    // The first liveness check, its repetition, and a new IKE_SA.
    lab.seconds(33);
    assert!(lab.sas(gateway).len() == 1, "{}", lab.story());
    lab.seconds(10);
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn k_2_21_4_a_forged_invalid_ike_spi_ends_nothing() {
    let mut lab = Lab::established(Plan::default());
    // Each request is answered so by somebody on the way, before the true answer.
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let request = header(datagram).is_some_and(|h| {
            !h.flags.response && h.flags.initiator && h.exchange == ExchangeType::INFORMATIONAL
        });
        if !request {
            return Verdict::Pass;
        }
        let lie = forged(datagram, notify(NotifyType::INVALID_IKE_SPI, []));
        Verdict::Replace(vec![lie, datagram.clone()])
    })));
    let spis = lab.sas(lab.client)[0].spis;
    lab.seconds(300);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.sas(lab.client)[0].spis, spis, "the true answers came too");
    // And now the true ones are kept away: a new one may come, which the gateway has authenticated.
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let Some(header) = header(datagram) else { return Verdict::Pass };
        let exchange = header.exchange == ExchangeType::INFORMATIONAL;
        if !exchange || (header.spi_i, header.spi_r) != spis {
            return Verdict::Pass;
        }
        if header.flags.response {
            return Verdict::Drop;
        }
        let lie = forged(datagram, notify(NotifyType::INVALID_IKE_SPI, []));
        Verdict::Replace(vec![lie])
    })));
    lab.seconds(300);
    assert!(lab.is_up(), "{}", lab.story());
    assert_ne!(lab.sas(lab.client)[0].spis, spis);
}
