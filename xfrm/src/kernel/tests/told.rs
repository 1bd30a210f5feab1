//! Events from the kernel: what is read of them, and whose they are.

use std::net::{IpAddr, SocketAddr};

use bewick_ike::{ChildId, Packet};
use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{
    Address, Id, Selector, UserExpire, UserMapping, UserPolicyInfo, UserSaId, UserSaInfo,
    UserTemplate, constants::*,
};

use super::{gcm, sent};
use crate::{
    kernel::{
        events,
        ledger::{Entry, Shared},
        message::Message,
        policy::{self, Direction, Tag},
        state::{Place, Side, Spent, Usage},
        trap,
    },
    plane::{PlaneEvent, TrapId},
};

pub(super) fn known() -> Shared {
    let ledger = Shared::default();
    let sa = gcm();
    let place = Place::of(&sa);
    for side in [Side::In, Side::Out] {
        let remote = sa.path.remote;
        let entry = Entry {
            id: sa.id,
            side,
            reqid: sa.reqid,
            remote,
            source: remote.ip(),
            began: Spent::default(),
            encap: sa.encap,
            left: None,
        };
        ledger.lock().insert(place.key(&sa, side), entry);
    }
    ledger
}

fn emitted(body: &impl Emitable) -> Vec<u8> {
    let mut octets = vec![0; body.buffer_len()];
    body.emit(&mut octets);
    octets
}

/// One well-formed event of each kind, about a state of [`known`].
fn events() -> [(u16, Vec<u8>, PlaneEvent); 3] {
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    let seen: SocketAddr = "203.0.113.9:1024".parse().unwrap();
    let state = UserSaInfo {
        id: Id { daddr: Address::from_ip(&ip), spi: 0xc000_0001, proto: IPPROTO_ESP },
        family: AF_INET,
        ..UserSaInfo::default()
    };
    let expire = emitted(&UserExpire { state, hard: 1 });
    let mapping = emitted(&UserMapping {
        id: UserSaId {
            daddr: Address::from_ip(&ip),
            spi: 0xc000_0001,
            family: AF_INET,
            proto: IPPROTO_ESP,
        },
        new_saddr: Address::from_ip(&seen.ip()),
        new_sport: seen.port(),
        ..UserMapping::default()
    });
    let id = ChildId(5);
    let packet = Packet {
        local: "10.9.0.7[tcp/40000]".parse().unwrap(),
        remote: "10.1.0.9[tcp/443]".parse().unwrap(),
    };
    let trap = TrapId(3);
    let acquire = acquire(0x8e1c_0003, trap::nowhere());
    [
        (XFRM_MSG_EXPIRE, expire, PlaneEvent::Expire { id, hard: true }),
        (XFRM_MSG_MAPPING, mapping, PlaneEvent::Mapping { id, seen }),
        (XFRM_MSG_ACQUIRE, acquire, PlaneEvent::Acquire { trap, packet }),
    ]
}

/// What the kernel sends for a packet from 10.9.0.7:40000 to 10.1.0.9:443 over TCP.
fn acquire(reqid: u32, (source, destination): (IpAddr, IpAddr)) -> Vec<u8> {
    let selector = Selector {
        saddr: Address::from_ip(&"10.9.0.7".parse().unwrap()),
        daddr: Address::from_ip(&"10.1.0.9".parse().unwrap()),
        sport: 40000,
        sport_mask: u16::MAX,
        dport: 443,
        dport_mask: u16::MAX,
        family: AF_INET,
        prefixlen_s: 32,
        prefixlen_d: 32,
        proto: 6,
        ..Selector::default()
    };
    let template = UserTemplate {
        id: Id { daddr: Address::from_ip(&destination), spi: 0, proto: IPPROTO_ESP },
        family: AF_INET,
        saddr: Address::from_ip(&source),
        reqid,
        ..UserTemplate::default()
    };
    // struct xfrm_user_acquire: id, source, selector, policy, algorithms and a number
    let mut body = vec![0; 40];
    body.extend_from_slice(&emitted(&selector));
    body.extend_from_slice(&emitted(&UserPolicyInfo::default()));
    body.resize(280, 0);
    body.extend_from_slice(&[68, 0, 5, 0]);
    body.extend_from_slice(&emitted(&template));
    body
}

#[test]
fn an_acquire_for_what_is_no_trap_of_ours_is_skipped() {
    let ledger = known();
    let seen = |body: &[u8]| read(XFRM_MSG_ACQUIRE, body, &ledger);
    assert!(seen(&acquire(0x8e1c_0003, trap::nowhere())).is_some());
    let elsewhere = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
    assert_eq!(seen(&acquire(0x8e1c_0003, elsewhere)), None, "of another program");
    assert_eq!(seen(&acquire(3, trap::nowhere())), None, "of a CHILD_SA");
    assert_eq!(seen(&acquire(0x8e1d_0003, trap::nowhere())), None, "of another plane");
    let mut mixed = acquire(0x8e1c_0003, trap::nowhere());
    mixed[80] = 99; // the selector's family
    assert_eq!(seen(&mixed), None);
}

pub(super) fn read(kind: u16, body: &[u8], ledger: &Shared) -> Option<PlaneEvent> {
    events::read(&Message { kind, flags: 0, sequence: 0, body }, ledger, Tag::of(0xbe1c))
}

#[test]
fn events_about_our_states_are_read() {
    for (kind, body, event) in events() {
        assert_eq!(read(kind, &body, &known()), Some(event));
    }
}

#[test]
fn events_about_others_states_and_our_own_moves_are_skipped() {
    for (kind, body, _) in events().iter().take(2) {
        assert_eq!(read(*kind, body, &Shared::default()), None, "not ours");
    }
    let ledger = known();
    let sa = gcm();
    let key = Place::of(&sa).key(&sa, Side::In);
    ledger.lock().linger(&key, Usage::default());
    for (kind, body, _) in events().iter().take(2) {
        assert_eq!(read(*kind, body, &ledger), None, "left behind by a move");
    }
    assert_eq!(ledger.lock().get(&key), None, "expired");
}

#[test]
fn a_truncated_event_is_skipped() {
    for (kind, body, event) in events() {
        for length in 0..body.len() {
            let got = read(kind, &body[..length], &known());
            assert!(got.is_none() || got == Some(event.clone()), "{kind:#x} {length}");
        }
    }
}

#[test]
fn removals_of_ours_and_of_all_are_told() {
    let disturbed = Some(PlaneEvent::Disturbed);
    let sa = gcm();
    for (spi, expected) in [(0xc000_0001, &disturbed), (0xc000_0009, &None)] {
        let daddr = Address::from_ip(&"192.0.2.1".parse().unwrap());
        let id = emitted(&UserSaId { daddr, spi, family: AF_INET, proto: IPPROTO_ESP });
        assert_eq!(&read(XFRM_MSG_DELSA, &id, &known()), expected);
    }
    for (mark, expected) in [(0xbe1c, &disturbed), (0xbe1d, &None)] {
        let flow = policy::flows(&sa).unwrap()[0];
        let put = policy::put(Tag::of(mark), &flow, Direction::In, sa.reqid, Place::of(&sa));
        let (_, _, policy) = sent(put);
        // What the request named, by which no index comes, and the policy in an attribute.
        let mut body = vec![0; 64];
        body.extend_from_slice(&172_u16.to_ne_bytes());
        body.extend_from_slice(&XFRMA_POLICY.to_ne_bytes());
        body.extend_from_slice(&policy[..168]);
        assert_eq!(&read(XFRM_MSG_DELPOLICY, &body, &known()), expected);
        for length in 0..body.len() {
            assert_eq!(read(XFRM_MSG_DELPOLICY, &body[..length], &known()), None, "{length}");
        }
    }
    assert_eq!(read(XFRM_MSG_FLUSHSA, &[50], &known()), disturbed);
    assert_eq!(read(XFRM_MSG_FLUSHSA, &[50], &Shared::default()), None, "there are none of ours");
    assert_eq!(read(XFRM_MSG_FLUSHPOLICY, &[], &Shared::default()), disturbed, "a trap's, maybe");
}

#[test]
fn of_many_removals_one_is_told_until_it_is_looked_after() {
    let ledger = known();
    let told = || ledger.lock().disturb();
    assert!(told() && !told() && !told());
    ledger.lock().settle();
    assert!(told() && !told());
}
