//! Peers and people on the way who want traffic to go where it should not, or nowhere (RFC 4555 §3.7, §5).

use std::time::Duration;

use bewick_ike::ConnectionId;
use bewick_mobike::{Command, Input, ReturnRoutability};
use bewick_tests::{
    Lab, Plan, Verdict,
    lab::ip,
    scene::{
        GATEWAY, LTE, WLAN, ask, from, ike_header, is_esp, mobike, puppet_client, turned, update,
    },
};

const MS: Duration = Duration::from_millis(1);
const VICTIM: &str = "203.0.113.66";

/// The puppet's requests come from that port of the victim's, and it needs no answers: they reach it by
/// magic. With `answers` its answers come from there too.
fn forge(lab: &mut Lab, port: u16, answers: bool) {
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let Some(header) = ike_header(datagram) else { return Verdict::Pass };
        let mut other = datagram.clone();
        if datagram.src.ip() == ip(WLAN) && (answers || !header.flags.response) {
            other.src = (ip(VICTIM), port).into();
        } else if datagram.dst.ip() == ip(VICTIM) && header.flags.response {
            other.dst = (ip(WLAN), 4500).into();
        }
        Verdict::Replace(vec![other])
    })));
}

fn esp_to_victim(lab: &Lab) -> usize {
    let sent = lab.world.net.capture.sent();
    sent.filter(|r| r.datagram.dst.ip() == ip(VICTIM) && is_esp(&r.datagram)).count()
}

#[test]
fn another_port_of_an_address_that_was_never_shown_does_not_lift_the_limit() {
    let mut plan = Plan::default();
    plan.gateway_policy.return_routability = ReturnRoutability::After;
    let mut lab = puppet_client(plan, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(gateway, client, MS, Duration::from_secs(5));
    for port in [4500, 4501, 4502, 4501] {
        forge(&mut lab, port, false);
        ask(&mut lab, client, from(WLAN, GATEWAY), &[update()]);
        lab.ms(500);
    }
    lab.seconds(60);
    assert_eq!(esp_to_victim(&lab), 0, "{}", lab.story());
    let there = lab.sas(gateway)[0].path;
    assert_eq!(there.remote.ip(), ip(WLAN), "{}", lab.story());
    assert_eq!(lab.world.end(gateway).plane.path(), Some(there), "{}", lab.story());
}

#[test]
fn a_cookie_that_the_peer_got_elsewhere_does_not_prove_an_address() {
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    // A question from the victim's address, and the cookie that is asked for there, again, where the peer is.
    forge(&mut lab, 4500, true);
    ask(&mut lab, client, from(WLAN, GATEWAY), &[]);
    lab.seconds(10);
    lab.world.net.capture.set_on(true);
    lab.world.start_flow(gateway, client, MS, Duration::from_secs(5));
    forge(&mut lab, 4500, false);
    ask(&mut lab, client, from(WLAN, GATEWAY), &[update()]);
    lab.seconds(5);
    assert_eq!(esp_to_victim(&lab), 0, "{}", lab.story());
}

#[test]
fn an_answer_from_a_port_that_nobody_asked_takes_the_ike_sa_nowhere() {
    let mut lab = Lab::established(Plan::default());
    let client = lab.client;
    // Answers are lost until the client asks elsewhere; then one comes with another port.
    let mut answers = 0;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        if datagram.dst.ip() == ip(GATEWAY) && !matches!(datagram.dst.port(), 500 | 4500) {
            return Verdict::Drop;
        }
        let from_gateway = datagram.src.ip() == ip(GATEWAY);
        if !from_gateway || !ike_header(datagram).is_some_and(|h| h.flags.response) {
            return Verdict::Pass;
        }
        answers += 1;
        let mut other = datagram.clone();
        other.src.set_port(4600);
        match answers {
            ..=8 => Verdict::Drop,
            9 => Verdict::Replace(vec![other]),
            _ => Verdict::Pass,
        }
    })));
    lab.seconds(200);
    let here = lab.sas(client)[0].path;
    assert_eq!(here.remote.port(), 4500, "{}", lab.story());
    assert!(lab.is_up(), "{}", lab.story());
}

#[test]
fn an_address_that_was_given_up_is_not_gone_back_to_when_our_own_change() {
    let mut lab = puppet_client(Plan::default(), mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    forge(&mut lab, 4500, false);
    ask(&mut lab, client, from(WLAN, GATEWAY), &[update()]);
    lab.seconds(60);
    assert_eq!(lab.sas(gateway)[0].path.remote.ip(), ip(WLAN), "{}", lab.story());
    let sent = lab.world.net.sent_to(ip(VICTIM));
    let wan = lab.wan;
    lab.world.net.add_address(wan, ip("192.0.2.9"));
    lab.world.tell_addresses(gateway);
    lab.seconds(1);
    assert_eq!(lab.sas(gateway)[0].path.remote.ip(), ip(WLAN), "{}", lab.story());
    assert_eq!(format!("{:?}", lab.world.net.sent_to(ip(VICTIM))), format!("{sent:?}"));
}

#[test]
fn answers_that_all_come_from_another_port_are_not_asked_for_without_end() {
    let mut lab = Lab::established(Plan::default());
    let client = lab.client;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let mut other = datagram.clone();
        if datagram.src.ip() == ip(GATEWAY) && ike_header(datagram).is_some() {
            other.src.set_port(4600);
        }
        Verdict::Replace(vec![other])
    })));
    let before = lab.world.end(client).transmitted;
    lab.move_to(lab.lte());
    lab.seconds(20);
    let sent = lab.world.end(client).transmitted - before;
    assert!(sent < 60, "{sent} in 20 seconds: {}", lab.story());
    // And when it is over, all is well.
    lab.world.net.set_tap(None);
    lab.seconds(10);
    assert_eq!(lab.count(client, "moved"), 1, "{}", lab.story());
}

/// The gateway's data plane says that the client's ESP comes from that port.
fn esp_comes_from(lab: &mut Lab, port: u16) {
    let (gateway, now) = (lab.gateway, lab.world.now());
    let child = lab.children(gateway)[0].id;
    let mapping = Input::Mapping { child, remote: (ip(WLAN), port).into() };
    lab.world.end_mut(gateway).machine.host_mut().handle(now, mapping);
    lab.world.pump(gateway);
}

/// The client behind something that gives it other ports from 5000 on.
fn many_ports(lab: &mut Lab) {
    let mut last = 4500;
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        let mut other = datagram.clone();
        if datagram.dst.ip() == ip(WLAN) {
            last = datagram.dst.port();
            other.dst.set_port(4500);
        } else if datagram.src.ip() == ip(WLAN)
            && ike_header(datagram).is_some_and(|h| h.flags.response)
        {
            other.src.set_port(last);
        }
        Verdict::Replace(vec![other])
    })));
}

#[test]
fn where_esp_came_from_before_an_update_does_not_undo_it() {
    let mut plan = Plan::default();
    plan.gateway_policy.esp_follow = true;
    let mut lab = puppet_client(plan, mobike());
    let (client, gateway) = (lab.client, lab.gateway);
    many_ports(&mut lab);
    // A request that is under way makes the question wait.
    let now = lab.world.now();
    let host = lab.world.end_mut(gateway).machine.host_mut();
    host.command(now, Command::Rekey(ConnectionId(0))).expect("established");
    esp_comes_from(&mut lab, 5000);
    ask(&mut lab, client, from(LTE, GATEWAY), &[update()]);
    lab.seconds(5);
    let there = turned(from(LTE, GATEWAY));
    assert_eq!(lab.sas(gateway)[0].path, there, "{}", lab.story());
    assert_eq!(lab.world.end(gateway).plane.path(), Some(there), "{}", lab.story());
    // Without an update it is followed.
    let mut plan = Plan::default();
    plan.gateway_policy.esp_follow = true;
    let mut lab = puppet_client(plan, mobike());
    many_ports(&mut lab);
    esp_comes_from(&mut lab, 5000);
    lab.seconds(5);
    assert_eq!(lab.sas(lab.gateway)[0].path.remote.port(), 5000, "{}", lab.story());
}

#[test]
fn an_icmp_error_does_not_shorten_the_time_that_a_peer_is_waited_for() {
    for icmp in [false, true] {
        let mut lab = Lab::established(Plan::default());
        let gateway = lab.gateway;
        lab.cut(true);
        lab.seconds(20);
        if icmp {
            let at = lab.sas(gateway)[0].path;
            lab.world.input(gateway, bewick_tests::pair::Input::Unreachable(at));
        }
        lab.seconds(900);
        assert_eq!(lab.sas(gateway).len(), 1, "{icmp}: {}", lab.story());
    }
}
