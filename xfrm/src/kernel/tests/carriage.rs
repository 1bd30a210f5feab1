//! How a CHILD_SA is to be carried, as the kernel reads it.

use bewick_ike::Carriage;
use netlink_packet_xfrm::constants::XFRMA_OFFLOAD_DEV;

use super::*;

fn carried(carriage: Carriage, encap: bool) -> ChildSa {
    ChildSa { carriage, encap, ..gcm() }
}

fn body(message: u16, sa: &ChildSa, side: Side) -> Vec<u8> {
    let replay = Replay::fresh(sa);
    sent(state::put(message, sa, side, Place::of(sa), &replay, 0, limits(sa, 0)).unwrap()).2
}

/// RFC 4303 §3.4.3.
#[test]
fn the_replay_window_is_as_wide_as_was_asked_for() {
    for (window, words) in [(64, 2), (65, 3), (4096, 128)] {
        let sa = carried(Carriage { replay_window: window, ..Carriage::default() }, true);
        let body = body(XFRM_MSG_NEWSA, &sa, Side::In);
        let replay = attribute(&body, 224, XFRMA_REPLAY_ESN_VAL).unwrap();
        assert_eq!(replay.len(), 24 + words * 4);
        assert_eq!((u32_at(replay, 0), u32_at(replay, 20)), (Some(words as u32), Some(window)));
    }
}

#[test]
fn the_network_card_is_asked_to_do_esp_that_is_not_in_udp() {
    let carriage = Carriage { offload: true, ..Carriage::default() };
    let asked = |message, sa: &ChildSa, side| {
        let body = body(message, sa, side);
        attribute(&body, 224, XFRMA_OFFLOAD_DEV).map(<[u8]>::to_vec)
    };
    let sa = carried(carriage, false);
    assert_eq!(asked(XFRM_MSG_NEWSA, &sa, Side::In), Some(vec![0, 0, 0, 0, 2, 0, 0, 0]));
    assert_eq!(asked(XFRM_MSG_NEWSA, &sa, Side::Out), Some(vec![0; 8]));
    // An update has nothing to say of it.
    assert_eq!(asked(XFRM_MSG_UPDSA, &sa, Side::Out), None);
    assert_eq!(asked(XFRM_MSG_NEWSA, &carried(carriage, true), Side::Out), None);
    assert_eq!(asked(XFRM_MSG_NEWSA, &carried(Carriage::default(), false), Side::Out), None);
}
