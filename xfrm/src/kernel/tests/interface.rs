//! What bears the number of an XFRM interface (XFRMA_IF_ID).

use std::num::NonZeroU32;

use bewick_ike::ChildSa;
use netlink_packet_xfrm::constants::*;

use super::{gcm, limits, sent};
use crate::kernel::{
    hold,
    message::{Request, attribute},
    policy::{self, DIRECTIONS, Direction, Tag},
    state::{self, Place, Replay, Side},
};

const IF_ID: Option<NonZeroU32> = NonZeroU32::new(0x1234_5678);

fn bound() -> ChildSa {
    let mut sa = gcm();
    sa.carriage.if_id = IF_ID;
    sa
}

/// Whether the number is where the kernel looks for it, behind so many octets.
fn bears(request: Request, fixed: usize) -> bool {
    let (_, _, body) = sent(request);
    attribute(&body, fixed, XFRMA_IF_ID) == Some(&0x1234_5678u32.to_ne_bytes()[..])
}

#[test]
fn states_and_policies_of_an_interface_bear_its_number_and_others_do_not() {
    for (sa, expected) in [(bound(), true), (gcm(), false)] {
        let (place, flows) = (Place::of(&sa), policy::flows(&sa).unwrap());
        let tag = Tag::of(0xbe1c);
        for side in [Side::In, Side::Out] {
            for kind in [XFRM_MSG_NEWSA, XFRM_MSG_UPDSA] {
                let (replay, limits) = (Replay::fresh(&sa), limits(&sa, 0));
                let put = state::put(kind, &sa, side, place, &replay, 0xbe1c, limits).unwrap();
                assert_eq!(bears(put, 224), expected);
            }
        }
        for direction in DIRECTIONS {
            let put = policy::put(tag, &flows[0], direction, sa.reqid, place);
            assert_eq!(bears(put, 168), expected);
            assert_eq!(bears(policy::delete(&flows[0], direction), 64), expected);
        }
        let nowhere = hold::nowhere();
        assert_eq!(bears(policy::trap(tag, &flows[0], 7, nowhere), 168), expected);
        assert_eq!(bears(hold::larval(nowhere, 7, 1, sa.carriage.if_id), 232), expected);
    }
}

#[test]
fn a_policy_of_another_interface_is_another_policy() {
    let tag = Tag::of(0xbe1c);
    let found = |sa: &ChildSa| {
        let flows = policy::flows(sa).unwrap();
        let put = policy::put(tag, &flows[0], Direction::In, sa.reqid, Place::of(sa));
        let (kind, _, body) = sent(put);
        policy::found(kind, &body).unwrap()
    };
    let (ours, free) = (found(&bound()), found(&gcm()));
    assert!(ours.place() == found(&bound()).place() && ours.does(&found(&bound())));
    assert!(ours.place() != free.place() && !free.does(&ours));
    // The kernel finds none by its index alone.
    assert!(bears(ours.delete(), 64) && !bears(free.delete(), 64));
}

#[test]
fn the_number_of_a_state_is_found() {
    let sa = bound();
    let (replay, limits) = (Replay::fresh(&sa), limits(&sa, 0));
    let put = state::put(XFRM_MSG_NEWSA, &sa, Side::In, Place::of(&sa), &replay, 0xbe1c, limits);
    let (kind, _, body) = sent(put.unwrap());
    assert_eq!(state::found(kind, &body).map(|found| found.if_id), Some(IF_ID));
}
