//! Quick crash detection (RFC 6290): a restarted gateway proves that it has lost the IKE_SA.

use std::time::Duration;

use bewick_ike::{
    CloseReason, ConnectionId, CrashSecrets, Path, Secret,
    wire::{self, ExchangeType, Flags, Header, Message, NotifyType, Payload},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Link, Plan, Verdict,
    lab::{ip, path},
    net::Datagram,
    puppet::{find, kinds, notify},
    scene::{
        GATEWAY, LTE, WLAN, answers, ask, assert_carries, from, heard, ike_header, mobike,
        nat_detection, puppet_client, puppet_gateway, update,
    },
};

const TOKEN: NotifyType = NotifyType::QUICK_CRASH_DETECTION;

fn plan() -> Plan {
    let mut plan = Plan { crash_tokens: true, ..Plan::default() };
    plan.client_policy.keep_up = true;
    plan
}

fn restart_gateway(lab: &mut Lab) {
    let (gateway, fresh) = (lab.gateway, lab.gateway_machine(1));
    lab.world.restart(gateway, fresh);
}

/// The gateway has been restarted: the first question of the client's ends the old IKE_SA, and the next
/// comes up, without a second one beside it and without waiting.
fn assert_noticed(lab: &mut Lab) {
    let old = lab.sas(lab.client)[0].spis;
    restart_gateway(lab);
    let client = lab.client;
    let gone = lab.world.run_while_not(Duration::from_secs(40), |world| {
        world.end(client).machine.host().status().all(|sa| sa.spis != old)
    });
    assert!(gone, "{}", lab.story());
    assert_eq!(lab.reasons(client), [CloseReason::PeerRestarted], "{}", lab.story());
    lab.seconds(2);
    assert!(lab.is_up(), "{}", lab.story());
    assert_carries(lab);
}

#[test]
fn rfc_6290_4_5_a_restarted_gateway_is_noticed_with_the_first_question() {
    let mut lab = Lab::established(plan());
    assert_noticed(&mut lab);
}

#[test]
fn rfc_6290_4_2_the_token_comes_with_ike_auth_behind_auth_and_before_the_child_sa() {
    let mut lab = puppet_client(plan(), mobike());
    let client = lab.client;
    let said = lab.world.play(client, |puppet, _| puppet.script.auth_heard.clone());
    let at = |wanted: fn(&Payload) -> bool| said.iter().position(wanted).expect("a payload");
    let auth = at(|p| matches!(p, Payload::Authentication { .. }));
    let token = at(|p| matches!(p, Payload::Notify(n) if n.kind == TOKEN));
    let sa = at(|p| matches!(p, Payload::SecurityAssociation(_)));
    let cp = at(|p| matches!(p, Payload::Configuration(_)));
    assert!(auth < token && token < sa && token < cp, "{said:?}");
    let data = find(&said, TOKEN).expect("a token");
    assert!((16..=128).contains(&data.len()), "RFC 6290 §5");
    // Without a secret there is none.
    let mut lab = puppet_client(Plan { crash_tokens: false, ..plan() }, mobike());
    let client = lab.client;
    let said = lab.world.play(client, |puppet, _| puppet.script.auth_heard.clone());
    assert_eq!(find(&said, TOKEN), None);
}

#[test]
fn x_22_a_new_token_comes_in_the_exchange_that_updates_the_address() {
    let mut lab = puppet_client(plan(), mobike());
    let client = lab.client;
    let said = lab.world.play(client, |puppet, _| puppet.script.auth_heard.clone());
    let mut tokens = vec![find(&said, TOKEN).expect("a token").to_vec()];
    let told = |lab: &mut Lab, way: Path, payloads: &[Payload]| {
        let before = answers(lab, client).len();
        ask(lab, client, way, payloads);
        lab.rest();
        let answers = answers(lab, client);
        assert_eq!(answers.len(), before + 1, "{}", lab.story());
        find(&answers[before].1, TOKEN).map(<[u8]>::to_vec)
    };
    let (wlan, lte) = (from(WLAN, GATEWAY), from(LTE, GATEWAY));
    // The address is the same, or it is a probe that moves nothing (RFC 6290 §4.4: SHOULD NOT).
    assert_eq!(told(&mut lab, wlan, &[update()]), None);
    let question = nat_detection(&mut lab, client, lte);
    assert_eq!(told(&mut lab, lte, &question), None);
    let next = told(&mut lab, lte, &[update()]).expect("a token for the new address");
    assert!(!tokens.contains(&next), "it is for another address");
    tokens.push(next);
    assert_eq!(told(&mut lab, lte, &[update()]), None, "it has that one");
    // Back again: the first one, which is that address's.
    assert_eq!(told(&mut lab, wlan, &[update()]), Some(tokens[0].clone()));
}

#[test]
fn x_22_a_client_that_has_moved_notices_a_restart_as_fast() {
    let mut lab = Lab::established(plan());
    let lte = lab.lte();
    lab.move_to(lte);
    lab.seconds(2);
    assert!(lab.is_up(), "{}", lab.story());
    assert_noticed(&mut lab);
}

#[test]
fn x_22_so_does_one_whose_nat_has_another_address_for_it_than_it_knows() {
    let mut lab = Lab::established(Plan { nat_wlan: true, nat_lte: true, ..plan() });
    assert_noticed(&mut lab);
    let lte = lab.lte();
    lab.move_to(lte);
    lab.seconds(2);
    let (old, gateway) = (lab.sas(lab.client)[0].spis, lab.gateway);
    let fresh = lab.gateway_machine(2);
    lab.world.restart(gateway, fresh);
    lab.seconds(40);
    assert!(lab.is_up() && lab.sas(lab.client)[0].spis != old, "{}", lab.story());
    let restarted = CloseReason::PeerRestarted;
    assert_eq!(lab.reasons(lab.client), [restarted.clone(), restarted], "{}", lab.story());
}

#[test]
fn rfc_6290_4_3_a_rekeyed_ike_sa_has_a_token_of_its_own_whoever_has_rekeyed_it() {
    for by_client in [true, false] {
        let mut lab = Lab::established(plan());
        let (old, end) =
            (lab.sas(lab.client)[0].spis, if by_client { lab.client } else { lab.gateway });
        let rekey = Command::RekeyIke(ConnectionId(0));
        lab.world.command(end, rekey).expect("a connection");
        lab.seconds(2);
        assert_ne!(lab.sas(lab.client)[0].spis, old, "{}", lab.story());
        assert_noticed(&mut lab);
    }
}

#[test]
fn rfc_6290_9_2_no_token_is_told_of_an_ike_sa_that_is_here() {
    for rekeyed in [false, true] {
        let mut lab = Lab::established(plan());
        if rekeyed {
            // The gateway is the initiator of this exchange: its SPI is the other one.
            let rekey = Command::RekeyIke(ConnectionId(0));
            lab.world.command(lab.gateway, rekey).expect("a connection");
            lab.seconds(2);
        }
        let (i, r) = lab.sas(lab.client)[0].spis;
        lab.world.net.capture.set_on(true);
        let mut ids = 0..;
        for spis in [(i, r), (r, i), (i, 9), (9, r), (r, 9), (9, i), (i, i), (r, r)] {
            for initiator in [true, false] {
                let flags = Flags { initiator, response: false, version: false };
                let id = ids.next().unwrap_or(0);
                let header = Header::new(spis, ExchangeType::INFORMATIONAL, flags, id);
                let question = [notify(NotifyType::COOKIE2, [1; 32])];
                let mut payload = vec![0; 4];
                payload.extend(wire::emit_message(&header, &question).expect("a message"));
                // From the taker's own address, as somebody behind the same NAT would.
                let way = path(&format!("{WLAN}:4500"), &format!("{GATEWAY}:4500"));
                lab.world.net.inject(Datagram::udp(way.local, way.remote, payload));
                lab.ms(100);
            }
        }
        let sent = lab.world.net.capture.sent();
        for record in sent.filter(|r| r.datagram.src.ip() == ip(GATEWAY)) {
            let Some(message) = record.datagram.payload.get(4..) else { continue };
            let Ok(message) = Message::parse(message) else { continue };
            let pair = (message.header.spi_i, message.header.spi_r);
            let is_one = [(i, r), (r, i)].contains(&pair);
            assert!(!is_one || find(&message.payloads, TOKEN).is_none(), "{message:?}");
        }
        lab.seconds(1);
        assert!(lab.is_up(), "{}", lab.story());
    }
}

#[test]
fn rfc_6290_4_5_a_token_that_is_not_ours_ends_nothing() {
    let mut lab = Lab::established(plan());
    let spis = lab.sas(lab.client)[0].spis;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let asks = ike_header(datagram).is_some_and(|h| {
            !h.flags.response && h.flags.initiator && h.exchange == ExchangeType::INFORMATIONAL
        });
        let Some(header) = ike_header(datagram).filter(|_| asks) else { return Verdict::Pass };
        let flags = Flags { initiator: false, response: true, version: false };
        let head =
            Header::new((header.spi_i, header.spi_r), header.exchange, flags, header.message_id);
        let mut said = vec![notify(NotifyType::INVALID_IKE_SPI, [])];
        said.extend((0..8).map(|n| notify(TOKEN, [n; 16])));
        let mut payload = vec![0; 4];
        payload.extend(wire::emit_message(&head, &said).expect("a message"));
        let lie = Datagram::udp(datagram.dst, datagram.src, payload);
        Verdict::Replace(vec![lie, datagram.clone()])
    })));
    lab.seconds(200);
    assert!(lab.is_up(), "{}", lab.story());
    assert_eq!(lab.sas(lab.client)[0].spis, spis);
}

#[test]
fn rfc_6290_4_4_a_token_is_taken_from_any_protected_exchange() {
    // A gateway of another make gives its token in a request of its own.
    let mut plan = plan();
    plan.client_policy.keep_up = false;
    let mut lab = puppet_gateway(plan, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    let token = [42; 24];
    let way = from(GATEWAY, WLAN);
    ask(&mut lab, gateway, way, &[notify(TOKEN, token)]);
    lab.rest();
    assert_eq!(kinds(&answers(&mut lab, gateway)[0].1), [], "it is answered");
    assert_eq!(heard(&mut lab, gateway).len(), 0);
    // Now it has lost the IKE_SA, and tells so.
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let Some(header) = ike_header(datagram).filter(|h| !h.flags.response) else {
            return Verdict::Pass;
        };
        let flags = Flags { initiator: false, response: true, version: false };
        let spis = (header.spi_i, header.spi_r);
        let head = Header::new(spis, header.exchange, flags, header.message_id);
        let said = [notify(NotifyType::INVALID_IKE_SPI, []), notify(TOKEN, token)];
        let mut payload = vec![0; 4];
        payload.extend(wire::emit_message(&head, &said).expect("a message"));
        Verdict::Replace(vec![Datagram::udp(datagram.dst, datagram.src, payload)])
    })));
    lab.seconds(40);
    assert_eq!(lab.reasons(client), [CloseReason::PeerRestarted], "{}", lab.story());
}

#[test]
fn rfc_6290_4_5_four_generations_of_the_secret_are_told_with() {
    let mut lab = Lab::established(plan());
    let gateway = lab.gateway;
    let mut fresh = lab.gateway_machine(1);
    // The secret has been changed three times since the peer got its token.
    let secrets = [1, 2, 3, 7].map(|n| Secret::new(vec![n; 32])).to_vec();
    fresh.host_mut().set_crash_secrets(CrashSecrets(secrets));
    lab.world.restart(gateway, fresh);
    lab.link(Link::of_delay(Duration::from_millis(10)));
    lab.seconds(40);
    assert_eq!(lab.reasons(lab.client), [CloseReason::PeerRestarted], "{}", lab.story());
    assert!(lab.is_up(), "{}", lab.story());
}
