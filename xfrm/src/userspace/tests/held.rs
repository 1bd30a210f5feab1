//! Packets that are there before their CHILD_SA.

use super::*;
use crate::{Trap, TrapId};

fn trap() -> Trap {
    let child = child(1);
    Trap { id: TrapId(7), ts_local: child.ts_local, ts_remote: child.ts_remote, if_id: None }
}

/// Client and gateway without a CHILD_SA, and the one that they are to have.
fn strangers() -> (End, End, ChildSa) {
    let (mut client, mut gateway, sa) = pair(SUITE, false);
    for end in [&mut client, &mut gateway] {
        now(end.plane.remove(sa.id)).unwrap();
    }
    (client, gateway, sa)
}

#[test]
fn rfc_4301_5_1_what_asks_for_a_child_sa_is_carried_by_it() {
    let (mut client, mut gateway, sa) = strangers();
    let mut events = client.plane.take_events().unwrap();
    for round in 0..3 {
        now(client.plane.set_trap(&trap())).unwrap();
        let numbers = round * 10..round * 10 + 5;
        for number in numbers.clone() {
            client.device.push(ask(number));
        }
        let event = wait_for(|| events.try_recv().ok());
        let PlaneEvent::Acquire { trap, packet } = event else { panic!("{event:?}") };
        assert_eq!(trap, TrapId(7));
        assert_eq!(packet.local, "10.9.0.1[udp/1000]".parse().unwrap());
        assert_eq!(packet.remote, "10.1.0.1[udp/7]".parse().unwrap());
        // Another selector's packets are nobody's.
        client.device.push(udp_packet("10.9.0.1", "10.2.0.1", (1000, 7), b""));
        wait_for(|| (client.plane.drops().no_sa == u64::from(round) + 1).then_some(()));
        assert!(events.try_recv().is_err(), "it tells once");
        now(gateway.plane.install(&mirror(&sa))).unwrap();
        now(client.plane.install(&sa)).unwrap();
        for number in numbers {
            assert_eq!(gateway.receive(), ask(number));
        }
        for end in [&mut client, &mut gateway] {
            now(end.plane.remove(sa.id)).unwrap();
        }
    }
    now(client.plane.clear_trap(TrapId(7))).unwrap();
    client.device.push(ask(0));
    wait_for(|| (client.plane.drops().no_sa == 4).then_some(()));
    assert!(events.try_recv().is_err());
}

#[test]
fn rfc_4301_5_1_no_packet_is_between_the_trap_and_the_child_sa() {
    let (mut client, mut gateway, sa) = strangers();
    for round in 0..200 {
        now(client.plane.set_trap(&trap())).unwrap();
        now(gateway.plane.install(&mirror(&sa))).unwrap();
        client.device.push(ask(round));
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        now(client.plane.install(&sa)).unwrap();
        assert_eq!(gateway.receive(), ask(round), "round {round}");
        for end in [&mut client, &mut gateway] {
            now(end.plane.remove(sa.id)).unwrap();
        }
    }
}

#[test]
fn k_2_8_1_what_the_answerer_sends_before_its_answer_is_dealt_with_is_delivered() {
    let (mut client, mut gateway, sa) = strangers();
    now(gateway.plane.install(&mirror(&sa))).unwrap();
    for number in 0..5 {
        gateway.device.push(answer(number));
    }
    wait_for(|| (client.plane.drops().unknown_spi == 5).then_some(()));
    assert!(client.delivered.try_recv().is_err());
    now(client.plane.install(&sa)).unwrap();
    for number in 0..5 {
        assert_eq!(client.receive(), answer(number));
    }
    assert_eq!(client.plane.drops().unknown_spi, 0);
    // What comes then is as good as ever, and nothing comes twice.
    gateway.device.push(answer(5));
    assert_eq!(client.receive(), answer(5));
    assert!(client.delivered.try_recv().is_err());
}
