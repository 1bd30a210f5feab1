//! The rules of RFC 7383 for one message at a time; `tests/tests/fragmentation.rs` has whole tunnels.

use crate::{
    child::HmacSha2,
    config::Role,
    crypto::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf, derive_ike},
    random::Random,
    secret::Secret,
    wire::{self, Encrypted, Flags, Header},
};

use super::*;

const GCM: IkeSuite = IkeSuite {
    encryption: IkeEncryption::AesGcm16 { key_bits: 256 },
    prf: Prf::HmacSha256,
    key_exchange: KeyExchangeMethod::X25519,
};
const CBC: IkeSuite = IkeSuite {
    encryption: IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 },
    ..GCM
};

fn keys(suite: IkeSuite, role: Role) -> Keys {
    let secret = Secret::new(vec![7; 32]);
    let sk = derive_ike(suite, &secret, &[1; 32], &[2; 32], &[3; 8], &[4; 8]).unwrap();
    Keys::new(suite, sk, role).unwrap()
}

/// The initiator's keys, the responder's, and what the responder has of fragments.
struct Ends {
    ours: Keys,
    theirs: Keys,
    fragments: Fragments,
    random: Random,
}

fn ends(suite: IkeSuite) -> Ends {
    Ends {
        ours: keys(suite, Role::Initiator),
        theirs: keys(suite, Role::Responder),
        fragments: Fragments::new(true),
        random: Random::from_seed([9; 32]),
    }
}

fn path() -> Path {
    Path::new("192.0.2.1:4500".parse().unwrap(), "198.51.100.2:4500".parse().unwrap())
}

/// Payloads with `octets` octets of content in all, headers included.
fn payloads(octets: usize) -> Vec<Payload> {
    let fill = |at: usize| u8::try_from(at % 251).unwrap();
    let data: Vec<u8> = (0..octets - 8).map(fill).collect();
    vec![Payload::Notify(Notify::new(NotifyType::COOKIE2, data))]
}

fn header(message_id: u32) -> Header {
    let spis = (u64::from_be_bytes([3; 8]), u64::from_be_bytes([4; 8]));
    let flags = Flags { initiator: true, response: false, version: false };
    Header::new(spis, ExchangeType::INFORMATIONAL, flags, message_id)
}

impl Ends {
    fn send(&mut self, message_id: u32, octets: usize, limit: usize) -> Vec<Vec<u8>> {
        let (header, payloads) = (header(message_id), payloads(octets));
        self.ours.seal(&mut self.random, &header, &payloads, Some(limit)).unwrap()
    }

    fn receive_at(&mut self, now: Time, datagram: &[u8]) -> Received {
        let message = Message::parse(datagram).unwrap();
        self.fragments.request(now, &self.theirs, path(), &message, true)
    }

    fn receive(&mut self, datagram: &[u8]) -> Received {
        self.receive_at(Time::ZERO, datagram)
    }

    /// How many fragments wait, and their octets.
    fn waiting(&self) -> (usize, usize) {
        self.fragments.requests.set.as_ref().map_or((0, 0), |set| (set.parts.len(), set.octets))
    }

    /// One fragment as a peer could make it that does as it likes.
    fn forge(&mut self, message_id: u32, number: u16, total: u16, content: &[u8]) -> Vec<u8> {
        let fragment = Some(Fragment { number, total });
        self.ours.seal_one(&mut self.random, &header(message_id), 41, fragment, content).unwrap()
    }
}

fn is_part(received: &Received) -> bool {
    matches!(received, Received::Part)
}

fn is_nothing(received: &Received) -> bool {
    matches!(received, Received::Nothing)
}

/// The payloads of what has become whole.
fn whole(received: Received) -> Vec<Payload> {
    match received {
        Received::Whole(inside) => inside.payloads().unwrap(),
        _ => panic!("not whole"),
    }
}

fn encrypted(datagram: &[u8]) -> Encrypted<'_> {
    Message::parse(datagram).unwrap().encrypted.unwrap()
}

fn totals(datagrams: &[Vec<u8>]) -> Vec<(u16, u16)> {
    let of = |d: &Vec<u8>| encrypted(d).fragment.map_or((0, 0), |f| (f.number, f.total));
    datagrams.iter().map(of).collect()
}

#[test]
fn k_7383_2_5_fragments_in_any_order_become_the_message_again() {
    for suite in [GCM, CBC] {
        for limit in [204, 205, 220, 544, 1248] {
            let mut ends = ends(suite);
            let mut datagrams = ends.send(5, 2000, limit);
            assert!(datagrams.len() > 1);
            assert!(datagrams.iter().all(|d| d.len() <= limit));
            // All but the last could not be longer, up to a block of CBC.
            let full = datagrams.len() - 1;
            assert!(datagrams[..full].iter().all(|d| d.len() + 16 > limit));
            datagrams.reverse();
            let last = datagrams.pop().unwrap();
            for datagram in &datagrams {
                assert!(is_part(&ends.receive(datagram)));
            }
            assert_eq!(whole(ends.receive(&last)), payloads(2000));
            assert_eq!(ends.waiting(), (0, 0));
        }
    }
}

#[test]
fn k_7383_f1_numbers_of_zero_or_above_the_total_are_not_fragments() {
    let mut ends = ends(GCM);
    for (number, total) in [(0, 0), (0, 2), (1, 0), (3, 2)] {
        let datagram = ends.forge(0, number, total, b"x");
        assert!(Message::parse(&datagram).is_err(), "{number} of {total}");
    }
    let only = ends.send(0, 40, 1000);
    let alone = ends.forge(0, 1, 1, &wire::emit_chain(&payloads(40)).unwrap().1);
    assert_eq!(whole(ends.receive(&alone)), payloads(40), "one of one is allowed");
    assert_eq!(whole(ends.receive(&only[0])), payloads(40));
}

#[test]
fn k_7383_f2_a_larger_total_begins_anew_and_a_smaller_one_is_dropped() {
    let mut ends = ends(GCM);
    let big = ends.send(0, 2000, 1248);
    let small = ends.send(0, 2000, 600);
    assert_eq!((big.len(), small.len()), (2, 4));
    assert!(is_part(&ends.receive(&big[0])));
    assert!(is_part(&ends.receive(&small[3])));
    assert_eq!(ends.waiting().0, 1, "what belongs to the set before is gone");
    assert!(is_nothing(&ends.receive(&big[1])));
    assert_eq!(ends.waiting().0, 1);
    for datagram in &small[..2] {
        assert!(is_part(&ends.receive(datagram)));
    }
    assert_eq!(whole(ends.receive(&small[2])), payloads(2000));
    // A total that lies keeps the message from becoming whole, and costs its sender alone.
    let liar = ends.forge(1, 1, 200, b"never to be whole");
    assert!(is_part(&ends.receive(&liar)));
    let honest = ends.send(1, 2000, 600);
    assert!(honest.iter().all(|d| is_nothing(&ends.receive(d))));
    let next = ends.send(2, 2000, 600);
    assert!(next[..3].iter().all(|d| is_part(&ends.receive(d))), "another message has its own set");
    assert_eq!(whole(ends.receive(&next[3])), payloads(2000));
}

#[test]
fn k_7383_f3_a_fragment_that_is_there_already_is_dropped() {
    let mut ends = ends(GCM);
    let datagrams = ends.send(0, 2000, 1248);
    assert!(is_part(&ends.receive(&datagrams[0])));
    let before = ends.waiting();
    for _ in 0..3 {
        assert!(is_nothing(&ends.receive(&datagrams[0])));
    }
    let other = ends.forge(0, 1, 2, b"other content");
    assert!(is_nothing(&ends.receive(&other)), "the first one stands");
    assert_eq!(ends.waiting(), before);
    assert_eq!(whole(ends.receive(&datagrams[1])), payloads(2000));
}

#[test]
fn k_7383_f4_what_fails_its_integrity_check_changes_nothing() {
    let mut ends = ends(GCM);
    let datagrams = ends.send(0, 2000, 1248);
    let mut bad = datagrams[1].clone();
    *bad.last_mut().unwrap() ^= 1;
    for number in 1..10_000_u16 {
        assert!(is_nothing(&ends.receive(&bad)));
        // Another number or total, as an attacker would write it.
        let mut lie = datagrams[0].clone();
        lie[32..34].copy_from_slice(&(number % 255 + 1).to_be_bytes());
        lie[34..36].copy_from_slice(&255_u16.to_be_bytes());
        assert!(is_nothing(&ends.receive(&lie)));
    }
    assert_eq!(ends.waiting(), (0, 0));
    assert!(is_part(&ends.receive(&datagrams[0])));
    let before = ends.waiting();
    let mut lie = datagrams[1].clone();
    lie[35] = 9;
    assert!(is_nothing(&ends.receive(&lie)), "a larger total must be genuine too");
    assert_eq!(ends.waiting(), before);
    assert_eq!(whole(ends.receive(&datagrams[1])), payloads(2000));
}

#[test]
fn k_7383_f5_the_first_fragment_alone_names_the_first_payload() {
    let mut ends = ends(GCM);
    let datagrams = ends.send(7, 2000, 600);
    let next: Vec<u8> = datagrams.iter().map(|d| d[28]).collect();
    assert_eq!(next, [41, 0, 0, 0]);
    assert_eq!(totals(&datagrams), [(1, 4), (2, 4), (3, 4), (4, 4)]);
    for datagram in &datagrams {
        // RFC 7383 §2.5: the header as ever, but for the length and the kind of the first payload.
        let header = Message::parse(datagram).unwrap().header;
        let expected = Header {
            next_payload: 53,
            length: u32::try_from(datagram.len()).unwrap(),
            ..self::header(7)
        };
        assert_eq!(header, expected);
    }
}

#[test]
fn k_7383_f7_fragments_that_wait_too_long_are_dropped() {
    let mut ends = ends(GCM);
    let datagrams = ends.send(0, 2000, 600);
    assert!(is_part(&ends.receive(&datagrams[0])));
    let deadline = ends.fragments.deadline().unwrap();
    assert_eq!(deadline, Time::ZERO + REASSEMBLY_TIME);
    let later = Time::ZERO + REASSEMBLY_TIME / 2;
    assert!(is_part(&ends.receive_at(later, &datagrams[1])));
    assert_eq!(ends.fragments.deadline(), Some(deadline), "the first fragment counts");
    ends.fragments.expire(later);
    assert_eq!(ends.waiting().0, 2);
    ends.fragments.expire(deadline);
    assert_eq!(ends.waiting(), (0, 0));
    assert_eq!(ends.fragments.deadline(), None);
    // As if nothing had come: all fragments again make the message.
    assert!(datagrams[..3].iter().all(|d| is_part(&ends.receive_at(deadline, d))));
    assert_eq!(whole(ends.receive_at(deadline, &datagrams[3])), payloads(2000));
}

#[test]
fn k_7383_f8_fragments_that_make_too_long_a_message_are_dropped() {
    for (authenticated, most) in [(true, MOST_OCTETS), (false, MOST_OCTETS_HALF_OPEN)] {
        let mut ends = ends(GCM);
        let mut stored = 0;
        for number in 1..=MOST_FRAGMENTS {
            let datagram = ends.forge(0, number, MOST_FRAGMENTS, &[0; 1000]);
            let message = Message::parse(&datagram).unwrap();
            let received =
                ends.fragments.request(Time::ZERO, &ends.theirs, path(), &message, authenticated);
            if matches!(received, Received::TooMuch) {
                assert_eq!(ends.waiting(), (0, 0));
                break;
            }
            assert!(is_part(&received));
            stored = ends.waiting().1;
        }
        assert_eq!(stored, most / 1000 * 1000);
    }
    let mut ends = ends(GCM);
    let datagram = ends.forge(0, 1, MOST_FRAGMENTS + 1, b"x");
    assert!(is_nothing(&ends.receive(&datagram)));
}

#[test]
fn k_7383_f9_fragments_are_nothing_unless_both_sides_can_do_them() {
    let mut ends = ends(GCM);
    let datagrams = ends.send(0, 2000, 600);
    ends.fragments = Fragments::new(false);
    assert!(datagrams.iter().all(|d| is_nothing(&ends.receive(d))));
    let message = Message::parse(&datagrams[0]).unwrap();
    assert!(!ends.fragments.is_genuine(&ends.theirs, &message));
    assert_eq!(ends.fragments.limit(None, path()), None, "and nothing is cut");
    assert_eq!(ends.fragments.answer_limit(None, path()), None);
    let header = header(0);
    let sealed = ends.ours.seal(&mut ends.random, &header, &payloads(2000), None).unwrap();
    assert_eq!(totals(&sealed), [(0, 0)]);
}

#[test]
fn k_7383_f10_sizes_are_of_ip_packets_and_go_down_in_coarse_steps() {
    let v6 = Path::new("[2001:db8::1]:500".parse().unwrap(), "[2001:db8::2]:500".parse().unwrap());
    let mut fragments = Fragments::new(true);
    assert_eq!(fragments.limit(None, path()), Some(1280 - 20 - 8 - 4));
    assert_eq!(fragments.limit(None, v6), Some(1280 - 40 - 8 - 4));
    assert_eq!(fragments.smaller(None, path(), 1248), Some(576));
    assert_eq!(fragments.smaller(None, path(), 544), None, "it would change nothing");
    assert_eq!(fragments.smaller(None, v6, 1228), None, "every IPv6 path carries 1280");
    fragments.set_ceiling(576);
    assert_eq!(fragments.limit(None, path()), Some(576 - 32));
    assert_eq!(fragments.smaller(None, path(), 544), None);
    fragments.set_ceiling(1);
    assert_eq!(fragments.limit(None, path()), Some(usize::from(MIN_FRAGMENT_SIZE) - 32));
    fragments.set_ceiling(9000);
    assert_eq!(fragments.limit(None, path()), Some(1248), "never more than is configured");
}

#[test]
fn k_7383_f10_a_message_cut_anew_has_truly_more_fragments_or_the_same_octets() {
    for suite in [GCM, CBC] {
        let mut ends = ends(suite);
        let (ours, random) = (&mut ends.ours, &mut ends.random);
        let sealed = ours.seal(random, &header(0), &payloads(1300), Some(1248)).unwrap();
        assert_eq!(sealed.len(), 2);
        for limit in [1248, 2000] {
            assert!(ours.recut(random, &sealed, limit).is_none());
        }
        let mut datagrams = sealed;
        // 800 octets would still need no more than two fragments.
        for limit in [800, 400, 300, 204] {
            let new = ours.recut(random, &datagrams, limit).unwrap();
            assert!(new.len() > datagrams.len() && new.iter().all(|d| d.len() <= limit));
            assert!(ours.recut(random, &new, limit).is_none());
            datagrams = new;
        }
        let total = u16::try_from(datagrams.len()).unwrap();
        assert!(totals(&datagrams).iter().all(|(_, of)| *of == total));
        let last = datagrams.pop().unwrap();
        assert!(datagrams.iter().all(|d| is_part(&ends.receive(d))));
        assert_eq!(whole(ends.receive(&last)), payloads(1300));
        // A message that went whole can be cut later too.
        let one = ends.ours.seal(&mut ends.random, &header(1), &payloads(1300), None).unwrap();
        let cut = ends.ours.recut(&mut ends.random, &one, 544).unwrap();
        assert!(cut.iter().rev().take(cut.len() - 1).all(|d| is_part(&ends.receive(d))));
        assert_eq!(whole(ends.receive(&cut[0])), payloads(1300));
    }
}

#[test]
fn k_7383_f11_what_fits_goes_whole() {
    let mut ends = ends(GCM);
    // Whole: header, payload header, IV, pad length and tag, 57 octets.
    assert_eq!(totals(&ends.send(0, 544 - 57, 544)), [(0, 0)]);
    assert_eq!(totals(&ends.send(0, 544 - 56, 544)).len(), 2);
}

#[test]
fn k_7383_f12_a_response_is_cut_no_bigger_than_its_request_was() {
    let mut ends = ends(GCM);
    assert_eq!(ends.fragments.answer_limit(None, path()), Some(1248));
    let datagrams = ends.send(0, 2000, 600);
    for datagram in &datagrams {
        ends.receive(datagram);
    }
    let longest = datagrams.iter().map(Vec::len).max();
    assert_eq!(ends.fragments.answer_limit(None, path()), longest);
    let first = Message::parse(&datagrams[0]).unwrap();
    assert_eq!(ends.fragments.repeat_limit(None, path(), &first), longest);
    // A small fragment doesn't make us send smaller ones than is sane.
    let tiny =
        [ends.forge(1, 1, 2, &payload_octets()[..4]), ends.forge(1, 2, 2, &payload_octets()[4..])];
    tiny.iter().for_each(|d| drop(ends.receive(d)));
    assert_eq!(
        ends.fragments.answer_limit(None, path()),
        Some(usize::from(MIN_FRAGMENT_SIZE) - 32)
    );
    let plain = ends.send(2, 40, 1248);
    ends.receive(&plain[0]);
    assert_eq!(ends.fragments.answer_limit(None, path()), Some(1248), "whole again");
}

/// A short chain of payloads.
fn payload_octets() -> Vec<u8> {
    wire::emit_chain(&payloads(16)).unwrap().1
}

#[test]
fn k_7383_2_6_a_whole_message_takes_the_place_of_its_fragments() {
    let mut ends = ends(GCM);
    let fragments = ends.send(0, 2000, 1248);
    let whole_one = ends.send(0, 2000, 4000);
    assert!(is_part(&ends.receive(&fragments[0])));
    assert_eq!(whole(ends.receive(&whole_one[0])), payloads(2000));
    assert_eq!(ends.waiting(), (0, 0));
}
