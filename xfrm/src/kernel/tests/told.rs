//! Events from the kernel: what is read of them, and whose they are.

use std::net::{IpAddr, SocketAddr};

use bewick_ike::ChildId;
use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{
    Address, Id, UserExpire, UserMapping, UserPolicyInfo, UserSaId, UserSaInfo, UserTemplate,
    constants::*,
};

use super::{gcm, sent};
use crate::{
    kernel::{
        events,
        ledger::{Entry, Shared},
        message::Message,
        policy::{self, Direction, Tag},
        state::{Place, Side, Spent, Usage},
    },
    plane::PlaneEvent,
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
    let mut acquire = vec![0; 96];
    acquire.extend_from_slice(&emitted(&UserPolicyInfo::default()));
    acquire.resize(280, 0);
    acquire.extend_from_slice(&[68, 0, 5, 0]);
    acquire.extend_from_slice(&emitted(&UserTemplate { reqid: 99, ..UserTemplate::default() }));
    let id = ChildId(5);
    [
        (XFRM_MSG_EXPIRE, expire, PlaneEvent::Expire { id, hard: true }),
        (XFRM_MSG_MAPPING, mapping, PlaneEvent::Mapping { id, seen }),
        (XFRM_MSG_ACQUIRE, acquire, PlaneEvent::Acquire { reqid: 99 }),
    ]
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
    for kind in [XFRM_MSG_FLUSHSA, XFRM_MSG_FLUSHPOLICY] {
        assert_eq!(read(kind, &[50], &known()), disturbed);
        assert_eq!(read(kind, &[50], &Shared::default()), None, "there are none of ours");
    }
}

#[test]
fn of_many_removals_one_is_told_until_it_is_looked_after() {
    let ledger = known();
    let told = || ledger.lock().disturb();
    assert!(told() && !told() && !told());
    ledger.lock().settle();
    assert!(told() && !told());
}
