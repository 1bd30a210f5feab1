//! What goes wrong at set-up: the right reason at both ends, and nothing left behind.

use std::time::Duration;

use bewick_ike::{CloseReason, ConnectionConfig, ConnectionId, Secret, auth::LocalAuth};
use bewick_mobike::{Command, CommandError, MoveTarget};
use bewick_tests::{
    Lab, Link, Plan, Verdict,
    lab::{ECP256_CBC, ESP_CBC, ESP_GCM, X25519_GCM, ip, selectors},
};

/// Tries to set up, and shows that nothing is left when all has been said.
fn refused(change: impl FnOnce(&mut ConnectionConfig, &mut ConnectionConfig)) -> Lab {
    let mut plan = Plan::default();
    change(&mut plan.client, &mut plan.gateway);
    let mut lab = Lab::new(plan);
    lab.up();
    lab.seconds(60);
    assert!(lab.is_empty(), "{}", lab.story());
    assert_eq!(lab.count(lab.client, "established"), 0, "{}", lab.story());
    assert_eq!(lab.count(lab.client, "closed"), 1, "{}", lab.story());
    assert_eq!(lab.count(lab.client, "retrying"), 0, "it need not be kept up");
    lab
}

/// All that an end said of why, in one line.
fn said(lab: &Lab, client: bool) -> String {
    let end = if client { lab.client } else { lab.gateway };
    lab.reasons(end).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn k_2_21_1_a_wrong_key_is_authentication_failed_at_both_ends() {
    let lab = refused(|client, _| {
        client.local_auth = LocalAuth::Psk(Secret::new(b"another key".to_vec()));
    });
    assert!(matches!(lab.reasons(lab.client)[..], [CloseReason::Authentication(_)]));
    assert!(matches!(lab.reasons(lab.gateway)[..], [CloseReason::Authentication(_)]));
    assert!(said(&lab, false).contains("laptop@example.com does not have the pre-shared key"));
}

#[test]
fn k_1_2_3_an_unknown_identity_is_authentication_failed_at_both_ends() {
    let lab = refused(|client, _| {
        client.local_id = "laptop@elsewhere.org".parse().expect("an identity");
    });
    assert!(matches!(lab.reasons(lab.client)[..], [CloseReason::Authentication(_)]));
    assert!(said(&lab, false).contains("no connection expects laptop@elsewhere.org"));
}

#[test]
fn k_1_2_3_the_wrong_gateway_is_authentication_failed_at_both_ends() {
    let lab = refused(|client, _| {
        client.remote_id = "other.example.com".parse().expect("a pattern");
    });
    assert!(matches!(lab.reasons(lab.client)[..], [CloseReason::Authentication(_)]));
    assert!(said(&lab, false).contains("other.example.com, which is not our identity"));
    // The gateway has no identity to be asked for, and shows one that does not fit.
    let lab = refused(|client, _| client.remote_id = "*.example.org".parse().expect("a pattern"));
    let told = "the peer says it is vpn.example.com, expected is *.example.org";
    assert!(said(&lab, true).contains(told), "{}", said(&lab, true));
    let reason = lab.reasons(lab.gateway).pop().expect("a reason");
    assert!(matches!(reason, CloseReason::Authentication(_)), "{reason}");
}

#[test]
fn k_2_7_1_no_common_ike_proposal_is_said_by_both_ends() {
    let lab = refused(|client, gateway| {
        client.ike_proposals = vec![X25519_GCM];
        gateway.ike_proposals = vec![ECP256_CBC];
    });
    assert!(matches!(lab.reasons(lab.client)[..], [CloseReason::NoProposal(_)]));
    assert!(matches!(lab.reasons(lab.gateway)[..], [CloseReason::NoProposal(_), ..]));
    assert_eq!(lab.count(lab.gateway, "closed"), 0, "there never was an IKE_SA");
}

#[test]
fn k_2_7_1_no_common_esp_proposal_is_said_by_both_ends() {
    let lab = refused(|client, gateway| {
        client.esp_proposals = vec![ESP_GCM];
        gateway.esp_proposals = vec![ESP_CBC];
    });
    assert!(said(&lab, true).contains("NO_PROPOSAL_CHOSEN"), "{}", said(&lab, true));
    assert!(said(&lab, false).contains("no common proposal"), "{}", said(&lab, false));
}

#[test]
fn k_2_9_1_foreign_selectors_are_ts_unacceptable_at_both_ends() {
    let lab = refused(|client, _| client.ts_remote = selectors(&["10.77.0.0/16"]));
    assert!(said(&lab, true).contains("TS_UNACCEPTABLE"), "{}", said(&lab, true));
    assert!(said(&lab, false).contains("10.77.0.0/16"), "{}", said(&lab, false));
}

#[test]
fn k_2_19_1_an_exhausted_pool_is_internal_address_failure() {
    let mut plan = Plan::default();
    plan.gateway.pools = vec!["10.9.0.1/32".parse().expect("a network")];
    let mut lab = Lab::established(plan);
    let host = lab.world.net.add_host("other");
    lab.world.net.add_uplink(host, "eth0", bewick_tests::Realm::Internet, &[ip("203.0.113.50")]);
    let mut plan = Plan { seed: 9, ..Plan::default() };
    plan.client.local_id = "other@example.com".parse().expect("an identity");
    let other = Lab::new(plan).client_machine(0);
    let other = lab.world.add_end(host, other);
    let up = Command::Up(bewick_ike::ConnectionId(0));
    lab.world.command(other, up.clone()).expect("a connection");
    lab.seconds(15);
    let told = lab.reasons(other).pop().expect("a reason").to_string();
    assert!(told.contains("INTERNAL_ADDRESS_FAILURE"), "{told}");
    let words = "the pool 10.9.0.1/32 has no free address left of 1";
    assert!(said(&lab, false).contains(words), "{}", said(&lab, false));
    assert!(lab.world.end(other).machine.host().is_empty());
    assert!(lab.is_up(), "the first one is not touched");
    // The address is free when the first one has gone, and not sooner.
    let down = Command::Down(bewick_ike::ConnectionId(0));
    lab.world.command(lab.client, down).expect("a connection");
    lab.seconds(1);
    lab.world.command(other, up).expect("a connection");
    lab.seconds(1);
    assert_eq!(lab.children(other)[0].virtual_ips, [ip("10.9.0.1")]);
}

#[test]
fn k_2_19_1_a_peer_that_must_ask_for_an_address_and_does_not_is_told_so() {
    let lab = refused(|client, _| {
        client.request_ipv4 = false;
        client.ts_local = selectors(&["10.9.0.0/24"]);
    });
    assert!(said(&lab, true).contains("FAILED_CP_REQUIRED"), "{}", said(&lab, true));
}

#[test]
fn a_data_plane_that_refuses_the_install_leaves_nothing_at_either_end() {
    for at_client in [true, false] {
        let mut lab = Lab::new(Plan::default());
        let end = if at_client { lab.client } else { lab.gateway };
        lab.world.end_mut(end).plane.refuse_next(1);
        lab.up();
        lab.seconds(60);
        assert!(lab.is_empty(), "{}", lab.story());
        assert!(said(&lab, at_client).contains("told to refuse"), "{}", said(&lab, at_client));
        let other = said(&lab, !at_client);
        let expected = if at_client { "the peer deleted it" } else { "TEMPORARY_FAILURE" };
        assert!(other.contains(expected), "{other}");
    }
}

#[test]
fn a_gateway_that_is_not_there_is_given_up_and_tried_again_if_it_is_to_be_kept_up() {
    let mut plan = Plan { second_uplink: false, ..Plan::default() };
    let mut lab = Lab::new(Plan { second_uplink: false, ..Plan::default() });
    let hole = Link { black_hole: true, ..Link::default() };
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    lab.up();
    lab.seconds(60);
    assert!(matches!(lab.reasons(lab.client)[..], [CloseReason::Unanswered(_)]));
    assert!(lab.is_empty());
    plan.client_policy.keep_up = true;
    let mut lab = Lab::new(plan);
    lab.world.net.set_links(lab.wlan, lab.wan, hole);
    lab.up();
    lab.seconds(300);
    assert!(lab.count(lab.client, "retrying") > 3);
    lab.world.net.set_links(lab.wlan, lab.wan, Link::default());
    lab.seconds(95);
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn a_client_without_an_address_waits_and_connects_when_one_comes() {
    for keep_up in [false, true] {
        let mut plan = Plan { second_uplink: false, ..Plan::default() };
        plan.client_policy.keep_up = keep_up;
        let mut lab = Lab::new(plan);
        let wlan = lab.wlan;
        lab.world.set_up(wlan, false);
        let up = Command::Up(bewick_ike::ConnectionId(0));
        lab.world.command(lab.client, up).expect("a connection");
        lab.seconds(200);
        assert!(lab.count(lab.client, "waiting") >= 1);
        lab.world.set_up(wlan, true);
        lab.ms(100);
        assert!(lab.is_up(), "{keep_up}: {}", lab.story());
    }
}

#[test]
fn a_gateway_without_an_address_is_tried_again_when_the_name_leads_somewhere() {
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::new(plan);
    let (client, gateways) = (lab.client, lab.gateway_ips.clone());
    lab.world.end_mut(client).machine.set_gateways(Vec::new());
    lab.up();
    assert!(!lab.is_up());
    lab.world.end_mut(client).machine.set_gateways(gateways);
    lab.seconds(60);
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn k_2_21_1_a_forged_error_does_not_stop_the_set_up() {
    use bewick_ike::wire::{
        ExchangeType, Flags, Header, Notify, NotifyType, Payload, emit_message,
    };
    for kind in [
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::INVALID_SYNTAX,
        NotifyType::INVALID_KE_PAYLOAD,
        NotifyType::AUTHENTICATION_FAILED,
        NotifyType::INVALID_MAJOR_VERSION,
    ] {
        let mut lab = Lab::new(Plan::default());
        // An attacker answers every IKE_SA_INIT before the gateway can.
        lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
            let request = Header::parse(&datagram.payload).ok();
            let request = request.filter(|h| {
                h.exchange == ExchangeType::IKE_SA_INIT && !h.flags.response && h.version == (2, 0)
            });
            let Some(request) = request.filter(|_| datagram.dst.port() == 500) else {
                return Verdict::Pass;
            };
            let flags = Flags { initiator: false, response: true, version: false };
            let header = Header::new((request.spi_i, 0), ExchangeType::IKE_SA_INIT, flags, 0);
            let notify = Payload::Notify(Notify::new(kind, [0, 77]));
            let bytes = emit_message(&header, &[notify]).expect("a message");
            let forged = bewick_tests::Datagram::udp(datagram.dst, datagram.src, bytes);
            Verdict::Replace(vec![forged, datagram.clone()])
        })));
        lab.up();
        lab.rest();
        assert!(lab.is_up(), "{kind:?}: {}", lab.story());
    }
}

#[test]
fn commands_that_make_no_sense_say_why() {
    let mut lab = Lab::new(Plan::default());
    let id = bewick_ike::ConnectionId;
    let to = |text: &str| MoveTarget::Interface(text.to_owned());
    let (client, gateway) = (lab.client, lab.gateway);
    let mut tell = |end, command| lab.world.command(end, command);
    assert_eq!(tell(client, Command::Up(id(7))), Err(CommandError::UnknownConnection));
    assert_eq!(tell(gateway, Command::Up(id(0))), Err(CommandError::NotInitiator));
    assert_eq!(tell(client, Command::Move(id(0), to("up1"))), Err(CommandError::NotEstablished));
    assert_eq!(tell(gateway, Command::Move(id(0), to("up1"))), Err(CommandError::PeerDecides));
    let mut lab = Lab::established(Plan::default());
    let error = lab.world.command(client, Command::Move(id(0), to("up9"))).expect_err("no up9");
    assert!(error.to_string().contains("198.51.100.130 (up1)"), "{error}");
    let mut plan = Plan::default();
    plan.gateway.mobike = false;
    let mut lab = Lab::established(plan);
    let error = lab.world.command(client, Command::Move(id(0), to("up1")));
    assert_eq!(error, Err(CommandError::NoMobike));
}

/// RFC 7296 §2.6.1: a cookie and then another group, on a path so slow that each answer comes more than
/// once, since the requests were sent again meanwhile.
#[test]
fn k_2_6_2_a_cookie_and_another_group_on_a_slow_path_lead_to_an_ike_sa() {
    for one_way in [10, 700, 1600] {
        // One pair: a second one would be tried meanwhile.
        let mut plan = Plan { second_uplink: false, ..Plan::default() };
        plan.gateway.ike_proposals.reverse();
        plan.gateway.ike_proposals.truncate(1);
        let mut lab = Lab::new(plan);
        let gateway = lab.gateway;
        let limits = bewick_ike::endpoint::HalfOpenLimits { cookies_from: 0, ..Default::default() };
        lab.world.end_mut(gateway).machine.host_mut().set_half_open_limits(limits);
        lab.link(Link::of_delay(Duration::from_millis(one_way)));
        let client = lab.client;
        lab.world.command(client, Command::Up(ConnectionId(0))).expect("a connection");
        lab.seconds(29);
        assert!(lab.is_up(), "{one_way} ms: {}", lab.story());
    }
}

/// RFC 7296 §2.21.1: what anyone can send does not end a set-up at once. Whoever knows our SPI can spoil
/// this try, for the request that the answer is to is not the last one any more, but not the next.
#[test]
fn k_2_21_1_forged_cookies_and_groups_do_not_keep_a_set_up_from_coming() {
    use bewick_ike::wire::{ExchangeType, Flags, Header, NotifyType, emit_message};
    use bewick_tests::{Datagram, puppet::notify};
    let mut plan = Plan::default();
    plan.client_policy.keep_up = true;
    let mut lab = Lab::new(plan);
    lab.link(Link::of_delay(Duration::from_millis(50)));
    let client = lab.client;
    lab.world.command(client, Command::Up(ConnectionId(0))).expect("a connection");
    lab.ms(1);
    let spi_i = lab.sas(client)[0].spis.0;
    let flags = Flags { initiator: false, response: true, version: false };
    let head = Header::new((spi_i, 0), ExchangeType::IKE_SA_INIT, flags, 0);
    for n in 0..10_u8 {
        let forged = match n % 2 {
            0 => notify(NotifyType::COOKIE, vec![n; 16]),
            _ => notify(NotifyType::INVALID_KE_PAYLOAD, [0, if n % 4 == 1 { 19 } else { 31 }]),
        };
        let message = emit_message(&head, &[forged]).expect("it fits");
        let (from, to) = ("192.0.2.1:500", "198.51.100.2:500");
        let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
        lab.world.net.inject(Datagram::udp(from, to, message));
        lab.ms(1);
    }
    assert_eq!(lab.count(client, "closed"), 0, "{}", lab.story());
    lab.seconds(60);
    assert!(lab.is_up(), "{}", lab.story());
}

/// A flood of strangers that have nothing in common with us does not flood the operator.
#[test]
fn rfc_8019_4_refusals_of_strangers_are_told_a_few_times_a_second() {
    use bewick_ike::wire::{ExchangeType, Flags, Header, Payload, emit_message};
    use bewick_tests::{Datagram, hand};
    let mut lab = Lab::new(Plan::default());
    let gateway = lab.gateway;
    for n in 0..200_u64 {
        let flags = Flags { initiator: true, response: false, version: false };
        let head = Header::new((n + 1, 0), ExchangeType::IKE_SA_INIT, flags, 0);
        // ESP is not what an IKE_SA is made of.
        let payloads = [
            hand::esp_proposal(0x1234),
            Payload::KeyExchange { group: 31, data: vec![9; 32] },
            Payload::Nonce(vec![1; 32]),
        ];
        let message = emit_message(&head, &payloads).expect("it fits");
        let (from, to) = ("203.0.113.9:500", "192.0.2.1:500");
        let (from, to) = (from.parse().expect("an address"), to.parse().expect("an address"));
        lab.world.net.inject(Datagram::udp(from, to, message));
    }
    lab.seconds(1);
    assert_eq!(lab.count(gateway, "refused"), 20);
    assert!(lab.is_empty(), "and nothing is kept of them");
}
