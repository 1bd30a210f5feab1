//! IKE and ESP over TCP (RFC 9329): what the machines do where UDP finds no answer, and on the way back.

use std::{cell::Cell, rc::Rc, time::Duration};

use bewick_ike::{Path, wire::ExchangeType};
use bewick_mobike::{Event, Input, TcpUse};
use bewick_tests::{
    Lab, Plan, Protocol, Record, Verdict,
    lab::ip,
    scene::{GATEWAY, LTE, assert_carries, ike_header, is_esp},
};

fn plan(tcp: TcpUse) -> Plan {
    let mut plan = Plan::default();
    plan.client_policy.tcp = tcp;
    plan.client_policy.back_after = Duration::from_secs(4);
    plan
}

/// A network that lets UDP through or not, as the switch says.
fn with_switch(lab: &mut Lab) -> Rc<Cell<bool>> {
    let open = Rc::new(Cell::new(true));
    let seen = open.clone();
    lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
        match datagram.protocol == Protocol::Tcp || seen.get() {
            true => Verdict::Pass,
            false => Verdict::Drop,
        }
    })));
    lab.world.net.capture.set_on(true);
    open
}

fn current(lab: &Lab) -> Path {
    lab.sas(lab.client)[0].path
}

fn sent(lab: &Lab, protocol: Protocol) -> Vec<Record> {
    let capture = &lab.world.net.capture;
    capture.sent().filter(|r| r.datagram.protocol == protocol).cloned().collect()
}

fn requests(records: &[Record]) -> Vec<(u32, Vec<u8>)> {
    let request = |r: &Record| {
        let header = ike_header(&r.datagram)?;
        let ours = r.datagram.dst.ip() == ip(GATEWAY) && !header.flags.response;
        (ours && header.exchange == ExchangeType::INFORMATIONAL)
            .then(|| (header.message_id, r.datagram.payload.clone()))
    };
    records.iter().filter_map(request).collect()
}

fn disconnect(lab: &mut Lab, path: Path) {
    let (now, client) = (lab.world.now(), lab.client);
    lab.world.end_mut(client).machine.host_mut().handle(now, Input::Disconnected(path));
    lab.world.pump(client);
}

/// RFC 9329 §5.1: UDP first and more than once, then TCP with a new SPI.
#[test]
fn rfc_9329_a_connection_comes_up_over_tcp_where_udp_finds_no_answer() {
    let mut lab = Lab::new(plan(TcpUse::Fallback));
    let open = with_switch(&mut lab);
    open.set(false);
    lab.up();
    lab.rest();
    assert!(current(&lab).is_tcp(), "{}", lab.story());
    assert_eq!(current(&lab).remote, "192.0.2.1:4500".parse().unwrap());
    let inits = |protocol| {
        let sent = sent(&lab, protocol);
        let init = |r: &Record| ike_header(&r.datagram).filter(|h| h.spi_r == 0).map(|h| h.spi_i);
        let at = |r: &Record| Some((r.time, init(r)?));
        sent.iter().filter_map(at).collect::<Vec<_>>()
    };
    let (udp, tcp) = (inits(Protocol::Udp), inits(Protocol::Tcp));
    let before = udp.iter().filter(|(time, _)| *time < tcp[0].0).collect::<Vec<_>>();
    assert!(before.iter().filter(|(_, spi)| *spi == udp[0].1).count() >= 2, "{udp:?} {tcp:?}");
    assert!(udp.iter().all(|(_, spi)| *spi != tcp[0].1), "{udp:?} {tcp:?}");
    assert_carries(&mut lab);
    let esp = |r: &Record| is_esp(&r.datagram);
    assert!(sent(&lab, Protocol::Tcp).iter().any(esp));
    assert!(!sent(&lab, Protocol::Udp).iter().any(esp));
}

/// RFC 9329 §5: only where that is configured.
#[test]
fn rfc_9329_nothing_goes_over_tcp_unless_that_is_configured() {
    let mut lab = Lab::new(plan(TcpUse::Off));
    let open = with_switch(&mut lab);
    open.set(false);
    lab.up();
    assert!(!lab.is_up());
    assert!(sent(&lab, Protocol::Tcp).is_empty());
    let mut lab = Lab::new(plan(TcpUse::Always));
    with_switch(&mut lab);
    lab.up();
    lab.rest();
    assert!(lab.is_up() && sent(&lab, Protocol::Udp).is_empty(), "{}", lab.story());
}

/// RFC 9329 §7.1: the update goes over UDP first, then the same message over TCP; after its answer comes a
/// new one with the hashes of the TCP ports, and the gateway checks no address.
#[test]
fn x_21_an_update_goes_over_udp_then_the_same_over_tcp_then_a_fresh_one() {
    let mut lab = Lab::established(plan(TcpUse::Fallback));
    let open = with_switch(&mut lab);
    open.set(false);
    let wlan = lab.wlan;
    lab.world.set_up(wlan, false);
    lab.seconds(3);
    let path = current(&lab);
    assert!(path.is_tcp() && path.local.ip() == ip(LTE), "{}", lab.story());
    let udp = requests(&sent(&lab, Protocol::Udp));
    let tcp = requests(&sent(&lab, Protocol::Tcp));
    let (id, message) = &tcp[0];
    assert!(udp.iter().filter(|(other, _)| other == id).count() >= 2, "UDP has its chance first");
    assert!(udp.iter().all(|(other, bytes)| other != id || bytes == message), "the same message");
    assert!(tcp.iter().any(|(other, _)| *other == id + 1), "a fresh update after it");
    let asked = sent(&lab, Protocol::Tcp).iter().any(|r| {
        let to_us = r.datagram.src.ip() == ip(GATEWAY);
        to_us && ike_header(&r.datagram).is_some_and(|h| !h.flags.response)
    });
    assert!(!asked, "no return routability check over TCP");
    assert_eq!(lab.sas(lab.gateway)[0].path.remote, path.local);
    assert_carries(&mut lab);
}

/// RFC 9329 §1, §7.1: when UDP works again the tunnel goes back to it.
#[test]
fn x_21_the_tunnel_returns_to_udp_when_that_works_again() {
    let mut lab = Lab::established(plan(TcpUse::Fallback));
    let open = with_switch(&mut lab);
    open.set(false);
    lab.move_to(lab.lte());
    lab.seconds(3);
    assert!(current(&lab).is_tcp(), "{}", lab.story());
    open.set(true);
    lab.seconds(120);
    assert!(!current(&lab).is_tcp(), "{}", lab.story());
    assert!(!lab.sas(lab.gateway)[0].path.is_tcp());
    assert_carries(&mut lab);
}

/// RFC 9329 §6.2: a request that waits on a connection is not sent there again; §6.6: nor are NAT keepalives.
#[test]
fn rfc_9329_nothing_is_repeated_on_a_connection() {
    let mut plan = plan(TcpUse::Always);
    plan.nat_wlan = true;
    let mut lab = Lab::established(plan);
    lab.world.net.capture.set_on(true);
    let old = current(&lab);
    lab.seconds(90);
    let keepalive =
        |r: &Record| r.datagram.payload.ends_with(&[0xff]) && r.datagram.payload.len() < 6;
    assert!(!sent(&lab, Protocol::Tcp).iter().any(keepalive));
    lab.cut(true);
    lab.seconds(60);
    let on_old: Vec<Record> =
        sent(&lab, Protocol::Tcp).into_iter().filter(|r| r.datagram.src == old.local).collect();
    let mut ids: Vec<u32> = requests(&on_old).into_iter().map(|(id, _)| id).collect();
    let all = ids.len();
    ids.dedup();
    assert!(all > 0 && ids.len() == all, "{ids:?}");
}

/// RFC 9329 §6.1: the SAs outlive a connection, and its originator opens another one, on which traffic goes on.
#[test]
fn rfc_9329_the_originator_opens_another_connection_and_both_go_on_there() {
    for mobike in [true, false] {
        let mut plan = plan(TcpUse::Always);
        plan.client.mobike = mobike;
        let mut lab = Lab::established(plan);
        let old = current(&lab);
        lab.world.net.set_tap(Some(Box::new(move |_, datagram| {
            match [datagram.src, datagram.dst].contains(&old.local) {
                true => Verdict::Drop,
                false => Verdict::Pass,
            }
        })));
        disconnect(&mut lab, old);
        lab.seconds(5);
        let new = current(&lab);
        assert!(new.is_tcp() && new != old, "{mobike}: {}", lab.story());
        assert_eq!(lab.sas(lab.gateway)[0].path.remote, new.local, "{mobike}: {}", lab.story());
        assert!(!lab.events(lab.client).iter().any(|e| matches!(e, Event::Closed { .. })));
        assert_carries(&mut lab);
    }
}

/// RFC 9329 §7.1: a NAT is no trouble to TCP, whatever NO_NATS_ALLOWED says.
#[test]
fn x_21_no_nats_allowed_is_ignored_on_tcp() {
    for tcp in [TcpUse::Off, TcpUse::Always] {
        let mut plan = plan(tcp);
        plan.nat_wlan = true;
        plan.client.nat_traversal = false;
        let mut lab = Lab::new(plan);
        lab.up();
        lab.rest();
        assert_eq!(lab.is_up(), tcp == TcpUse::Always, "{}", lab.story());
    }
}
