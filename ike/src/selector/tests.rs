use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::sa::child::{is_within, narrow};

fn ts(text: &str) -> TrafficSelector {
    text.parse().unwrap()
}

/// Selectors in a small world, so that they meet often.
fn selector() -> impl Strategy<Value = TrafficSelector> {
    let ports = prop_oneof![
        2 => Just(ANY),
        1 => Just(OPAQUE),
        4 => (0_u16..6, 0_u16..6).prop_map(|(a, b)| (a.min(b), a.max(b))),
        1 => (65533_u16..).prop_map(|a| (a, u16::MAX)),
    ];
    let protocol = prop_oneof![Just(0), Just(1), Just(6), Just(17)];
    (any::<bool>(), protocol, ports, 0_u8..8, 0_u8..8).prop_map(|(v4, protocol, ports, a, b)| {
        let addr = |n: u8| match v4 {
            true => Ipv4Addr::new(10, 0, 0, n).into(),
            false => Ipv6Addr::from(u128::from(n)).into(),
        };
        TrafficSelector::new(protocol, ports, addr(a.min(b)), addr(a.max(b))).unwrap()
    })
}

fn packet() -> impl Strategy<Value = (IpAddr, u8, Option<u16>)> {
    let port = prop_oneof![Just(None), (0_u16..7).prop_map(Some), Just(Some(65534))];
    (any::<bool>(), 0_u8..9, prop_oneof![Just(1_u8), Just(6), Just(17), Just(47)], port).prop_map(
        |(v4, n, protocol, port)| {
            let addr = match v4 {
                true => Ipv4Addr::new(10, 0, 0, n).into(),
                false => Ipv6Addr::from(u128::from(n)).into(),
            };
            (addr, protocol, port)
        },
    )
}

proptest! {
    #[test]
    fn k_2_9_1_an_intersection_holds_the_packets_of_both(
        a in selector(), b in selector(), (addr, protocol, port) in packet(),
    ) {
        let both = a.contains(addr, protocol, port) && b.contains(addr, protocol, port);
        let common = a.intersect(&b);
        prop_assert_eq!(common, b.intersect(&a));
        prop_assert_eq!(common.is_some_and(|c| c.contains(addr, protocol, port)), both);
        prop_assert_eq!(a.intersect(&a), Some(a));
        if let Some(common) = common {
            prop_assert!(common.is_subset_of(&a) && common.is_subset_of(&b));
        }
    }

    #[test]
    fn k_2_9_1_a_subset_of_a_subset_is_a_subset(
        a in selector(), b in selector(), c in selector(),
    ) {
        let transitive = !(a.is_subset_of(&b) && b.is_subset_of(&c)) || a.is_subset_of(&c);
        prop_assert!(transitive);
        prop_assert_eq!(a.is_subset_of(&b) && b.is_subset_of(&a), a == b);
        prop_assert_eq!(
            a.intersect(&b).and_then(|ab| ab.intersect(&c)),
            b.intersect(&c).and_then(|bc| bc.intersect(&a))
        );
    }

    #[test]
    fn k_2_9_1_what_is_narrowed_is_what_both_sides_allow_the_first_choice_first(
        ours in proptest::collection::vec(selector(), 1..5),
        offered in proptest::collection::vec(selector(), 1..5),
        (addr, protocol, port) in packet(),
    ) {
        let narrowed = narrow(&ours, &offered);
        let holds = |list: &[TrafficSelector]| {
            list.iter().any(|ts| ts.contains(addr, protocol, port))
        };
        prop_assert_eq!(holds(&narrowed), holds(&ours) && holds(&offered));
        prop_assert!(narrowed.is_empty() || is_within(&narrowed, &offered));
        // RFC 7296 §2.9: with the initiator's first choice, if it is allowed.
        if ours.iter().any(|ts| offered[0].is_subset_of(ts)) {
            prop_assert!(offered[0].is_subset_of(&narrowed[0]));
        }
        prop_assert_eq!(narrow(&narrowed, &narrowed), narrowed);
    }

    #[test]
    fn k_3_13_1_what_is_shown_can_be_read(ts in selector()) {
        // Ports need a protocol in the configuration; on the wire they don't.
        prop_assume!(ts.protocol() != 0 || ts.ports() == ANY);
        prop_assert_eq!(ts.to_string().parse(), Ok(ts));
    }
}

#[test]
fn k_3_13_1_opaque_meets_itself_and_any_alone() {
    let (opaque, any) = (ts("10.0.0.0/8[tcp/opaque]"), ts("10.0.0.0/8[tcp]"));
    assert_eq!(opaque.ports(), (65535, 0));
    for (a, b, common) in [
        (opaque, any, Some(opaque)),
        (any, opaque, Some(opaque)),
        (opaque, opaque, Some(opaque)),
        (opaque, ts("10.0.0.0/8[tcp/1-65535]"), None),
        (ts("10.0.0.0/8[tcp/0-65534]"), opaque, None),
        (ts("10.0.0.0/8[tcp/65535]"), opaque, None),
    ] {
        assert_eq!(a.intersect(&b), common, "{a} {b}");
    }
    assert!(opaque.contains("10.0.0.1".parse().unwrap(), 6, None));
    assert!(!opaque.contains("10.0.0.1".parse().unwrap(), 6, Some(0)));
}

#[test]
fn k_3_13_1_icmp_types_and_codes_are_one_number() {
    assert_eq!(ts("0.0.0.0/0[icmp/8]").ports(), (0x0800, 0x08ff));
    assert_eq!(ts("0.0.0.0/0[icmp/3.4]").ports(), (0x0304, 0x0304));
    assert_eq!(ts("::/0[icmpv6/128-129]").ports(), (0x8000, 0x81ff));
    assert_eq!(ts("::/0[icmpv6/1.2-1.4]").to_string(), "::/0[icmpv6/1.2-1.4]");
    let echo = ts("10.0.0.0/8[icmp/8]").intersect(&ts("10.1.0.0/16[icmp]"));
    assert_eq!(echo, Some(ts("10.1.0.0/16[icmp/8]")));
}

#[test]
fn what_an_operator_may_write() {
    for text in [
        "10.1.0.0/16",
        "10.1.0.5-10.1.0.9",
        "10.1.0.0/16[tcp/443]",
        "2001:db8::/64[udp/1000-2000]",
        "0.0.0.0/0[icmp]",
        "10.1.0.0/16[tcp/opaque]",
        "10.1.0.0/16[99]",
    ] {
        assert_eq!(ts(text).to_string(), text);
    }
    assert_eq!(ts("10.1.0.5").to_string(), "10.1.0.5/32");
    assert_eq!(ts("10.1.0.0/16[6/443-443]").to_string(), "10.1.0.0/16[tcp/443]");
    for (text, error) in [
        ("10.1.0.9-10.1.0.5", "is no range"),
        ("10.1.0.9-2001:db8::1", "is no range"),
        ("10.1.0.0/16[tcp", "is not a network"),
        ("10.1.2.3/16[tcp]", "did you mean \"10.1.0.0/16\"?"),
        ("10.1.0.0/16[tpc/443]", "\"tpc\" is no protocol"),
        ("10.1.0.0/16[0]", "\"0\" is no protocol"),
        ("10.1.0.0/16[tcp/https]", "\"https\" is no port"),
        ("10.1.0.0/16[tcp/9-5]", "is no port"),
        ("10.1.0.0/16[icmp/echo]", "is no kind of ICMP message"),
    ] {
        let found = text.parse::<TrafficSelector>().unwrap_err().to_string();
        assert!(found.contains(error), "{text}: {found}");
    }
}
