//! Octets of the requests, and what malformed messages from the kernel do: nothing.

use bewick_ike::{
    ChildId, ChildSa, EspKeys, EspSpi, EspSuite, HmacSha2, Limits, Path, Secret, TrafficSelector,
};
use netlink_packet_xfrm::{LifetimeConfig, constants::*};
use proptest::prelude::*;

use super::{
    message::{
        Message, NLM_F_REPLACE, attribute, attributes, messages, refusal, sent, u16_at, u32_at,
    },
    migrate::{self, Step},
    policy::{self, Direction, Tag},
    state::{self, Place, Replay, Side, Spent, Usage},
    trap,
};
use crate::plane::PlaneError;

mod carriage;
mod interface;
mod told;
mod transport;

fn sa(suite: EspSuite) -> ChildSa {
    let keys = |octet: u8| EspKeys {
        encryption: Secret::new(vec![octet; suite.encryption_key_len()]),
        integrity: Secret::new(vec![octet + 1; suite.integrity_key_len()]),
    };
    ChildSa {
        id: ChildId(5),
        reqid: 0x77,
        spi_in: EspSpi(0xc000_0001),
        spi_out: EspSpi(0xc000_0002),
        mode: Default::default(),
        suite,
        esn: false,
        keys_in: keys(0xa0),
        keys_out: keys(0xb0),
        ts_local: vec![net("10.0.1.0/24")],
        ts_remote: vec![net("10.0.2.1/32")],
        path: path("192.0.2.1:4500", "198.51.100.7:61234"),
        encap: true,
        virtual_ips: Vec::new(),
        waits: false,
        limits: Default::default(),
        carriage: Default::default(),
    }
}

fn gcm() -> ChildSa {
    sa(EspSuite::AesGcm16 { key_bits: 128 })
}

fn net(text: &str) -> TrafficSelector {
    TrafficSelector::from_net(text.parse().unwrap())
}

fn ports(text: &str, protocol: u8, first: u16, last: u16) -> TrafficSelector {
    let net = net(text);
    TrafficSelector::new(protocol, (first, last), net.first(), net.last()).unwrap()
}

fn path(local: &str, remote: &str) -> Path {
    Path::new(local.parse().unwrap(), remote.parse().unwrap())
}

/// The limits of a first state.
fn limits(sa: &ChildSa, lifetime: u64) -> LifetimeConfig {
    state::limits(sa, Spent::default(), lifetime)
}

#[test]
fn an_outbound_state_is_what_the_kernel_reads() {
    let sa = gcm();
    let request = state::put(
        XFRM_MSG_NEWSA,
        &sa,
        Side::Out,
        Place::of(&sa),
        &Replay::fresh(&sa),
        0xbe1c,
        limits(&sa, 0),
    );
    let (kind, flags, body) = sent(request.unwrap());
    assert_eq!((kind, flags), (0x10, 0x5)); // NEWSA, REQUEST | ACK

    // struct xfrm_usersa_info, field by field.
    let mut info = vec![0u8; 224];
    info[56..60].copy_from_slice(&[198, 51, 100, 7]); // id.daddr
    info[72..76].copy_from_slice(&[0xc0, 0, 0, 2]); // id.spi
    info[76] = 50; // id.proto
    info[80..84].copy_from_slice(&[192, 0, 2, 1]); // saddr
    info[96..128].fill(0xff); // limits of octets and packets: none
    info[112..120].copy_from_slice(&0xf000_0000u64.to_ne_bytes()); // a soft one of packets
    info[208..212].copy_from_slice(&0x77u32.to_ne_bytes()); // reqid
    info[212..214].copy_from_slice(&2u16.to_ne_bytes()); // family
    info[214] = 1; // tunnel
    info[216] = 32; // af-unspec
    assert_eq!(body[..224], info[..]);

    let aead = attribute(&body, 224, XFRMA_ALG_AEAD).unwrap();
    let mut expected = b"rfc4106(gcm(aes))".to_vec();
    expected.resize(64, 0);
    expected.extend_from_slice(&160u32.to_ne_bytes());
    expected.extend_from_slice(&128u32.to_ne_bytes());
    expected.extend_from_slice(&[0xb0; 20]);
    assert_eq!(aead, expected);

    let encap = attribute(&body, 224, XFRMA_ENCAP).unwrap();
    assert_eq!(encap[..2], 2u16.to_ne_bytes());
    assert_eq!(encap[2..6], [4500u16.to_be_bytes(), 61234u16.to_be_bytes()].concat());
    assert_eq!(encap[6..], [0; 18]);

    assert_eq!(attribute(&body, 224, XFRMA_SET_MARK), Some(&0xbe1cu32.to_ne_bytes()[..]));
    assert_eq!(attribute(&body, 224, XFRMA_SET_MARK_MASK), Some(&[0xff; 4][..]));
    let replay = attribute(&body, 224, XFRMA_REPLAY_ESN_VAL).unwrap();
    assert_eq!(replay.len(), 24 + 4096 / 8);
    assert_eq!(u32_at(replay, 0), Some(128));
    assert_eq!(u32_at(replay, 20), Some(4096));
}

#[test]
fn an_inbound_state_has_the_ports_of_packets_to_us_and_marks_no_packet() {
    let sa = ChildSa { esn: true, ..gcm() };
    let request = state::put(
        XFRM_MSG_UPDSA,
        &sa,
        Side::In,
        Place::of(&sa),
        &Replay::fresh(&sa),
        0xbe1c,
        limits(&sa, 7),
    );
    let (kind, _, body) = sent(request.unwrap());
    assert_eq!(kind, XFRM_MSG_UPDSA);
    assert_eq!(body[56..60], [192, 0, 2, 1]);
    assert_eq!(body[80..84], [198, 51, 100, 7]);
    assert_eq!(body[216], 32 | 128, "af-unspec and esn");
    assert_eq!(body[136..144], 7u64.to_ne_bytes(), "hard limit in seconds after it was made");
    let encap = attribute(&body, 224, XFRMA_ENCAP).unwrap();
    assert_eq!(encap[2..6], [61234u16.to_be_bytes(), 4500u16.to_be_bytes()].concat());
    assert_eq!(attribute(&body, 224, XFRMA_SET_MARK_MASK), Some(&[0; 4][..]), "sets no bit");
    assert_eq!(attribute(&body, 224, XFRMA_MTIMER_THRESH), Some(&1u32.to_ne_bytes()[..]));
}

#[test]
fn cbc_names_the_truncation_of_its_hmac() {
    let sa = sa(EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha256 });
    let request = state::put(
        XFRM_MSG_NEWSA,
        &sa,
        Side::In,
        Place::of(&sa),
        &Replay::fresh(&sa),
        0,
        limits(&sa, 0),
    );
    let (_, _, body) = sent(request.unwrap());
    let auth = attribute(&body, 224, XFRMA_ALG_AUTH_TRUNC).unwrap();
    assert!(auth.starts_with(b"hmac(sha256)\0"));
    assert_eq!((u32_at(auth, 64), u32_at(auth, 68)), (Some(256), Some(128)));
    assert_eq!(auth[72..], [0xa1; 32]);
    let crypt = attribute(&body, 224, XFRMA_ALG_CRYPT).unwrap();
    assert!(crypt.starts_with(b"cbc(aes)\0"));
    assert_eq!(u32_at(crypt, 64), Some(256));
    assert_eq!(crypt[68..], [0xa0; 32]);
}

#[test]
fn a_key_of_the_wrong_length_never_reaches_the_kernel() {
    let mut sa = gcm();
    sa.keys_in.encryption = Secret::new(vec![0; 19]);
    let put = state::put(
        XFRM_MSG_NEWSA,
        &sa,
        Side::In,
        Place::of(&sa),
        &Replay::fresh(&sa),
        0,
        limits(&sa, 0),
    )
    .map(drop);
    assert!(matches!(put, Err(PlaneError::Unsupported(_))));
}

#[test]
fn the_out_policy_names_the_path_and_the_in_policy_only_the_reqid() {
    let sa = gcm();
    let flows = policy::flows(&sa).unwrap();
    assert_eq!(flows.len(), 1);
    let place = Place::of(&sa);

    let (kind, _, body) =
        sent(policy::put(Tag::default(), &flows[0], Direction::Out, sa.reqid, place));
    assert_eq!(kind, XFRM_MSG_UPDPOLICY);
    // struct xfrm_selector
    assert_eq!(body[0..4], [10, 0, 2, 1]);
    assert_eq!(body[16..20], [10, 0, 1, 0]);
    assert_eq!(u16_at(&body, 40), Some(2));
    assert_eq!(body[42..45], [32, 24, 0]);
    // direction, action, flags, share
    assert_eq!(body[160..164], [1, 0, 0, 0]);
    let template = attribute(&body, 168, XFRMA_TMPL).unwrap();
    assert_eq!(template.len(), 64);
    assert_eq!(template[0..4], [198, 51, 100, 7]);
    assert_eq!(template[20], 50);
    assert_eq!(u16_at(template, 24), Some(2));
    assert_eq!(template[28..32], [192, 0, 2, 1]);
    assert_eq!(u32_at(template, 44), Some(0x77));
    assert_eq!(template[48..51], [1, 0, 0], "tunnel, any share, required");
    assert_eq!(template[52..64], [0xff; 12]);

    for direction in [Direction::In, Direction::Forward] {
        let (_, _, body) = sent(policy::put(Tag::default(), &flows[0], direction, sa.reqid, place));
        assert_eq!(body[0..4], [10, 0, 1, 0]);
        assert_eq!(body[160], if direction == Direction::In { 0 } else { 2 });
        let template = attribute(&body, 168, XFRMA_TMPL).unwrap();
        assert_eq!(template[0..20], [0; 20]);
        assert_eq!(template[28..44], [0; 16]);
        assert_eq!(u32_at(template, 44), Some(0x77));
    }
}

#[test]
fn a_narrower_flow_comes_before_the_one_that_holds_it() {
    let priority = |local: TrafficSelector, remote: TrafficSelector| {
        let sa = ChildSa { ts_local: vec![local], ts_remote: vec![remote], ..gcm() };
        let flows = policy::flows(&sa).unwrap();
        let (_, _, body) =
            sent(policy::put(Tag::default(), &flows[0], Direction::Out, 1, Place::of(&sa)));
        u32_at(&body, 152).unwrap()
    };
    let any = net("0.0.0.0/0");
    let nested = [
        priority(ports("10.1.2.3/32", 6, 80, 80), net("10.2.0.1/32")),
        priority(ports("10.1.2.3/32", 6, 80, 81), net("10.2.0.1/32")),
        priority(ports("10.1.2.3/32", 6, 0, 65535), net("10.2.0.1/32")),
        priority(net("10.1.2.3/32"), net("10.2.0.1/32")),
        priority(net("10.1.2.0/24"), net("10.2.0.1/32")),
        priority(net("10.1.2.0/24"), any),
        priority(any, any),
    ];
    assert!(nested.is_sorted_by(|a, b| a < b), "{nested:?}");
}

#[test]
fn a_range_of_ports_becomes_blocks_that_cover_it_exactly() {
    let cover = |first, last| {
        let sa = ChildSa {
            ts_local: vec![ports("10.0.1.1/32", 17, first, last)],
            ts_remote: vec![ports("10.0.2.1/32", 17, 0, 65535)],
            ..gcm()
        };
        let flows = policy::flows(&sa).unwrap();
        let selectors = flows.iter().map(|flow| flow.selector(Direction::Out));
        let blocks: Vec<_> = selectors.map(|s| (s.sport, s.sport_mask)).collect();
        for port in 0..=u16::MAX {
            let hits = blocks.iter().filter(|(at, mask)| (port ^ at) & mask == 0).count();
            assert_eq!(hits, usize::from(first <= port && port <= last), "{port}");
        }
    };
    cover(500, 500);
    cover(1000, 2999);
    cover(1024, 65535);
    cover(0, 65534);
}

#[test]
fn selectors_that_the_kernel_cannot_express_are_refused() {
    let refused = |local: TrafficSelector, remote: TrafficSelector| {
        let sa = ChildSa { ts_local: vec![local], ts_remote: vec![remote], ..gcm() };
        matches!(policy::flows(&sa), Err(PlaneError::Unsupported(_)))
    };
    let b = net("10.0.2.1/32");
    assert!(refused(ports("10.0.1.1/32", 1, 0x0800, 0x08ff), b), "ICMP types");
    assert!(refused(ports("10.0.1.1/32", 6, u16::MAX, 0), b), "OPAQUE");
    assert!(refused(net("2001:db8::/64"), b), "families");
    assert!(refused(ports("10.0.1.1/32", 6, 0, u16::MAX), ports("10.0.2.1/32", 17, 0, u16::MAX)));
    assert!(refused(ports("10.0.1.1/32", 6, 1, 65534), ports("10.0.2.1/32", 6, 1, 65534)), "many");
}

#[test]
fn a_migration_names_old_and_new_addresses_and_the_encapsulation() {
    let sa = gcm();
    let from = Place::of(&sa);
    let to = Place { path: path("203.0.113.5:4500", "198.51.100.7:61234"), encap: true };
    let flows = policy::flows(&sa).unwrap();
    let steps = [Step::new(Side::Out, from, to)];
    let (kind, _, body) =
        sent(migrate::request(&flows[0], sa.reqid, &steps, to.encapsulation(Side::Out)));
    assert_eq!(kind, XFRM_MSG_MIGRATE);
    assert_eq!(body[60], XFRM_POLICY_OUT);
    let step = attribute(&body, 64, XFRMA_MIGRATE).unwrap();
    assert_eq!(step.len(), 76);
    assert_eq!(step[0..4], [198, 51, 100, 7], "old destination");
    assert_eq!(step[16..20], [192, 0, 2, 1], "old source");
    assert_eq!(step[32..36], [198, 51, 100, 7], "new destination");
    assert_eq!(step[48..52], [203, 0, 113, 5], "new source");
    assert_eq!(step[64..68], [50, 1, 0, 0]);
    assert_eq!(u32_at(step, 68), Some(0x77));
    assert_eq!((u16_at(step, 72), u16_at(step, 74)), (Some(2), Some(2)));
    assert!(attribute(&body, 64, XFRMA_ENCAP).is_some());
}

#[test]
fn skipped_sequence_numbers_never_wrap() {
    assert_eq!(Replay::fresh(&gcm()).skip(1024, false).unwrap().last(Side::Out), 1024);
    let late = Replay::fresh(&gcm()).skip(u32::MAX - 10, false).unwrap();
    assert!(late.clone().skip(10, false).is_some());
    assert!(late.clone().skip(11, false).is_none(), "RFC 4303 §3.3.3");
    assert_eq!(late.skip(11, true).unwrap().last(Side::Out), 1 << 32);
}

/// Soft limits of octets and packets as NEWSA and UPDSA say them; the hard ones are infinite, as only
/// the kernel's own end of the sequence space may end a CHILD_SA unasked.
fn soft(sa: &ChildSa, side: Side, spent: Spent) -> (u64, u64) {
    let mut read = Vec::new();
    for kind in [XFRM_MSG_NEWSA, XFRM_MSG_UPDSA] {
        let limits = state::limits(sa, spent, 0);
        let request = state::put(kind, sa, side, Place::of(sa), &Replay::fresh(sa), 0, limits);
        let (_, _, body) = sent(request.unwrap());
        let limit = |at| u64::from_ne_bytes(body[at..at + 8].try_into().unwrap());
        assert_eq!((limit(104), limit(120)), (u64::MAX, u64::MAX), "hard");
        assert_eq!((limit(128), limit(136), limit(144), limit(152)), (0, 0, 0, 0), "times");
        read.push((limit(96), limit(112)));
    }
    assert_eq!(read[0], read[1]);
    read[0]
}

const NONE: u64 = u64::MAX;

/// RFC 4301 §4.4.2.1.
#[test]
fn limits_of_octets_and_packets_are_soft_ones_of_the_state() {
    let with = |esn, octets, packets| ChildSa { esn, limits: Limits { octets, packets }, ..gcm() };
    for side in [Side::In, Side::Out] {
        let new = |esn, octets, packets| soft(&with(esn, octets, packets), side, Spent::default());
        assert_eq!(new(true, None, None), (NONE, NONE));
        assert_eq!(new(true, Some(1 << 40), Some(1 << 33)), (1 << 40, 1 << 33));
        assert_eq!(new(false, Some(1 << 40), Some(5000)), (1 << 40, 5000));
    }
}

#[test]
fn rfc_4303_3_3_3_the_kernel_asks_for_a_successor_before_the_sequence_numbers_end() {
    let with = |esn, packets| ChildSa { esn, limits: Limits { octets: None, packets }, ..gcm() };
    let new = |esn, packets| soft(&with(esn, packets), Side::Out, Spent::default());
    assert_eq!(new(false, None), (NONE, 0xf000_0000));
    assert_eq!(new(false, Some(1 << 33)), (NONE, 0xf000_0000));
    // However many packets it had itself: a state that a move has made counts from zero.
    for (sequence, left) in [(0x1000, 0xefff_f000), (0xf000_0000, 0), (0xffff_ffff, 0)] {
        let spent = Spent { sequence, ..Spent::default() };
        assert_eq!(soft(&with(false, None), Side::Out, spent), (NONE, left));
        assert_eq!(soft(&with(true, None), Side::Out, spent), (NONE, NONE));
    }
}

#[test]
fn states_that_moves_make_have_what_those_before_have_left() {
    let limits = Limits { octets: Some(1_000_000), packets: Some(1000) };
    let sa = ChildSa { limits, ..gcm() };
    let used = Usage { octets: 250_000, packets: 300, ..Usage::default() };
    let mut spent = Spent::default();
    for (round, left) in
        [(750_000, 700), (500_000, 400), (250_000, 100), (0, 0), (0, 0)].into_iter().enumerate()
    {
        let replay = Replay::fresh(&gcm()).skip(1 + round as u32 * 300, false).unwrap();
        spent = spent.after(Side::Out, used, &replay);
        assert_eq!(spent.sequence, 1 + round as u64 * 300);
        assert_eq!(soft(&sa, Side::Out, spent), left);
    }
    // The end of the numbers comes first where the jumps of many moves have used them.
    let late = Replay::fresh(&gcm()).skip(0xf000_0000 - 10, false).unwrap();
    let spent = Spent::default().after(Side::Out, used, &late);
    assert_eq!(soft(&sa, Side::Out, spent), (750_000, 10));
    assert_eq!(Spent::default().after(Side::In, used, &late).sequence, 0, "the other direction");
}

/// An acknowledgement or error as the kernel writes it with cap_ack and ext_ack.
#[test]
fn a_state_that_is_taken_up_again_counts_what_it_had_carried_once() {
    let at = |sequence| Replay::fresh(&gcm()).skip(sequence, false).unwrap();
    let usage = |packets| Usage { octets: 100 * packets, packets, ..Usage::default() };
    // It began at 10 and had carried 20 when it was left; the one after it carried 5.
    let began = Spent { octets: 1000, packets: 10, sequence: 10 };
    let left = began.after(Side::Out, usage(20), &at(30));
    let now = left.after(Side::Out, usage(5), &at(35));
    let again = now.without(usage(20));
    assert_eq!(again, Spent { octets: 1500, packets: 15, sequence: 15 });
    assert_eq!(again.after(Side::Out, usage(20), &at(35)), now);
    assert_eq!(Spent::default().without(usage(20)), Spent::default());
}

#[test]
fn a_state_s_window_is_set_by_replacing_it() {
    let key = Place::of(&gcm()).key(&gcm(), Side::In);
    let window = Replay::fresh(&gcm()).skip(7, false).unwrap();
    let (kind, flags, body) = sent(state::set_replay(key, &window));
    assert_eq!((kind, flags & NLM_F_REPLACE), (XFRM_MSG_NEWAE, NLM_F_REPLACE));
    let value = attribute(&body, 48, XFRMA_REPLAY_ESN_VAL).unwrap();
    assert_eq!(u32_at(value, 4), Some(7), "oseq of struct xfrm_replay_state_esn");

    assert_eq!(attribute(&body, 48, XFRMA_LTIME_VAL), None);
}

fn answer(errno: i32, text: &str) -> Vec<u8> {
    let mut body = (-errno).to_ne_bytes().to_vec();
    body.extend_from_slice(&[0; 16]);
    body.extend_from_slice(&(4 + text.len() as u16 + 1).to_ne_bytes());
    body.extend_from_slice(&1u16.to_ne_bytes());
    body.extend_from_slice(text.as_bytes());
    body.push(0);
    body
}

#[test]
fn the_kernel_s_own_words_are_found() {
    let body = answer(libc::EINVAL, "Invalid replay window");
    let message = Message { kind: 2, flags: 0x300, sequence: 0, body: &body };
    let refusal = refusal(&message).unwrap();
    assert_eq!(refusal.errno, libc::EINVAL);
    assert_eq!(refusal.text.as_deref(), Some("Invalid replay window"));
}

#[test]
fn truncated_answers_and_datagrams_are_survived() {
    let body = answer(libc::EEXIST, "no");
    for length in 0..=body.len() {
        for flags in [0, 0x100, 0x200, 0x300] {
            let _ = refusal(&Message { kind: 2, flags, sequence: 0, body: &body[..length] });
        }
    }
    let sa = gcm();
    let place = Place::of(&sa);
    let mut request =
        state::put(XFRM_MSG_NEWSA, &sa, Side::In, place, &Replay::fresh(&sa), 1, limits(&sa, 0))
            .unwrap();
    let octets = request.finish(1, 3).to_vec();
    for length in 0..=octets.len() {
        for message in messages(&octets[..length]) {
            let _ = attributes(message.body.get(224..).unwrap_or_default()).count();
            let _ = state::usage(message.kind, message.body);
            let _ = state::found(message.kind, message.body);
        }
        let body = octets.get(16..length).unwrap_or_default();
        let _ = state::usage(XFRM_MSG_NEWSA, body);
        let _ = state::snapshot(XFRM_MSG_NEWAE, body);
    }
    let flows = policy::flows(&sa).unwrap();
    let (_, _, body) = sent(policy::put(Tag::default(), &flows[0], Direction::In, sa.reqid, place));
    for length in 0..body.len() {
        assert_eq!(policy::found(XFRM_MSG_NEWPOLICY, &body[..length]), None);
    }
}

#[test]
fn what_an_earlier_run_has_left_is_known_by_its_mark() {
    let sa = gcm();
    let place = Place::of(&sa);
    for side in [Side::In, Side::Out] {
        let request = state::put(
            XFRM_MSG_NEWSA,
            &sa,
            side,
            place,
            &Replay::fresh(&sa),
            0xbe1c,
            limits(&sa, 0),
        );
        let (kind, _, body) = sent(request.unwrap());
        let found = state::found(kind, &body).unwrap();
        assert_eq!((found.key, found.reqid, found.mark), (place.key(&sa, side), 0x77, 0xbe1c));
    }
    let flows = policy::flows(&sa).unwrap();
    let tag = Tag::of(0xbe1c);
    let (_, _, body) = sent(policy::put(tag, &flows[0], Direction::In, sa.reqid, place));
    let found = policy::found(XFRM_MSG_NEWPOLICY, &body).unwrap();
    assert!(found.is_ours(tag, &[].into()), "by its index");
    assert!(!found.is_ours(Tag::of(0xbe1d), &[0x78].into()), "another plane's");
    assert!(!found.is_ours(Tag::default(), &[0x78].into()));
    assert!(found.is_ours(Tag::default(), &[0x77].into()), "by its reqid");
    // A trap's whose index the kernel has not given.
    let lost = policy::trap(Tag::default(), &flows[0], 0x8e1c_0003, trap::nowhere());
    let (_, _, body) = sent(lost);
    let found = policy::found(XFRM_MSG_NEWPOLICY, &body).unwrap();
    assert!(found.is_ours(tag, &[].into()), "by its template");
    assert!(!found.is_ours(Tag::of(0xbe1d), &[].into()), "another plane's");
    assert!(!found.is_ours(Tag::default(), &[].into()));
}

proptest! {
    #[test]
    fn any_octets_from_the_kernel_are_survived(
        octets in proptest::collection::vec(any::<u8>(), 0..600),
        kind in 0x10u16..0x30,
        flags in any::<u16>(),
    ) {
        let message = Message { kind, flags, sequence: 0, body: &octets };
        let _ = refusal(&message);
        let _ = told::read(kind, &octets, &told::known());
        let _ = state::usage(XFRM_MSG_NEWSA, &octets);
        let _ = state::snapshot(XFRM_MSG_NEWAE, &octets);
        let _ = state::found(XFRM_MSG_NEWSA, &octets);
        let _ = policy::found(XFRM_MSG_NEWPOLICY, &octets);
        prop_assert!(messages(&octets).count() <= octets.len() / 16 + 1);
        prop_assert!(attributes(&octets).count() <= octets.len() / 4 + 1);
    }
}
