//! Transport mode (RFC 4301 §4.1) as the kernel reads it.

use bewick_ike::{ChildSa, EspSuite, Mode};
use netlink_packet_xfrm::constants::*;

use super::{gcm, limits, net, path, sa, sent};
use crate::kernel::{
    message::{attribute, u16_at, u32_at},
    policy::{self, Direction, Tag, directions},
    state::{self, Place, Replay, Side},
};

fn transport(suite: EspSuite) -> ChildSa {
    ChildSa {
        mode: Mode::Transport,
        ts_local: vec![net("192.0.2.1/32")],
        ts_remote: vec![net("198.51.100.7/32")],
        path: path("192.0.2.1:500", "198.51.100.7:500"),
        encap: false,
        ..sa(suite)
    }
}

#[test]
fn rfc_4301_4_1_a_state_in_transport_mode_is_for_packets_of_one_family() {
    let sa = transport(EspSuite::AesGcm16 { key_bits: 128 });
    for side in [Side::In, Side::Out] {
        let fresh = Replay::fresh(&sa);
        let request =
            state::put(XFRM_MSG_NEWSA, &sa, side, Place::of(&sa), &fresh, 0xbe1c, limits(&sa, 0));
        let (_, _, body) = sent(request.unwrap());
        assert_eq!(u16_at(&body, 212), Some(2), "family");
        assert_eq!(body[214], 0, "transport");
        assert_eq!(body[216], 0, "not af-unspec: the kernel refuses that but of a tunnel");
        assert_eq!(attribute(&body, 224, XFRMA_ENCAP), None);
    }
}

#[test]
fn rfc_4301_4_1_in_transport_mode_nothing_is_forwarded() {
    let sa = transport(EspSuite::AesGcm16 { key_bits: 128 });
    assert_eq!(directions(Mode::Transport), [Direction::In, Direction::Out]);
    assert_eq!(directions(Mode::Tunnel).len(), 3);
    let flows = policy::flows(&sa).unwrap();
    assert_eq!(flows.len(), 1);
    for direction in [Direction::In, Direction::Out] {
        let (_, _, body) = sent(policy::of_child(Tag::default(), &flows[0], direction, &sa));
        let template = attribute(&body, 168, XFRMA_TMPL).unwrap();
        assert_eq!(u16_at(template, 24), u16_at(&body, 40), "the family of the selector");
        assert_eq!(u32_at(template, 44), Some(0x77));
        assert_eq!(template[48..51], [0, 0, 0], "transport, any share, required");
    }
    let tunnel = gcm();
    let flows = policy::flows(&tunnel).unwrap();
    let (_, _, body) = sent(policy::of_child(Tag::default(), &flows[0], Direction::In, &tunnel));
    assert_eq!(attribute(&body, 168, XFRMA_TMPL).unwrap()[48], 1);
}
