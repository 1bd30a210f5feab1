//! Identities and the patterns that they match (RFC 7296 §3.5).

use super::*;

fn identity(text: &str) -> Identity {
    text.parse().expect("identity")
}

fn matches(pattern: &str, text: &str) -> bool {
    let pattern: IdentityPattern = pattern.parse().expect("pattern");
    pattern.matches(&identity(text))
}

#[test]
fn k_3_5_configured_text_chooses_the_id_type() {
    for (text, kind, data) in [
        ("192.0.2.1", IdKind::IPV4, &[192, 0, 2, 1][..]),
        ("vpn.example.com", IdKind::FQDN, b"vpn.example.com"),
        ("laptop@example.com", IdKind::RFC822, b"laptop@example.com"),
        ("keyid:0x00ABcd", IdKind::KEY_ID, &[0x00, 0xab, 0xcd]),
        ("keyid:branch-7", IdKind::KEY_ID, b"branch-7"),
    ] {
        let wire = identity(text).to_wire();
        assert_eq!((wire.kind, &wire.data[..]), (kind, data));
        assert_eq!(Identity::from_wire(&wire), Ok(identity(text)));
    }
    let v6 = identity("2001:db8::1").to_wire();
    assert_eq!((v6.kind, v6.data.len()), (IdKind::IPV6, 16));
}

#[test]
fn an_identity_is_shown_as_it_is_written() {
    let texts = ["192.0.2.1", "2001:db8::1", "a.example", "b@a.example", "keyid:x", "keyid:0x00ff"];
    for text in texts {
        assert_eq!(identity(text).to_string(), text);
    }
    assert_eq!(Identity::KeyId(b"0x41".to_vec()).to_string(), "keyid:0x30783431");
}

#[test]
fn text_that_is_no_identity_is_refused_with_a_reason() {
    let texts = [
        "",
        "a b",
        "a\0b",
        "vpn.example.com\n",
        "@example.com",
        "a@",
        "*@b",
        "keyid:",
        "keyid:0x1",
        "keyid:0xzz",
        "keyid:0x",
        "vpn/example",
        "münchen.example",
        "a\0@b",
    ];
    for text in texts {
        assert!(text.parse::<Identity>().is_err(), "{text:?}");
    }
    for text in ["**", "*example.com", "*@", "*.", "*@a@b", "*.*.example.com", "a*"] {
        assert!(text.parse::<IdentityPattern>().is_err(), "{text:?}");
    }
}

#[test]
fn k_3_5_names_from_the_wire_have_no_terminators() {
    for data in
        [&b"vpn.example.com\0.evil.example"[..], b"a\r", b"a b", b"", b"\xff", "ü".as_bytes()]
    {
        assert!(
            Identity::from_wire(&Identification::new(IdKind::FQDN, data)).is_err(),
            "{data:x?}"
        );
    }
    for data in [&b"a@example.com\0"[..], b"a@b\n", b"", b"\xff@b"] {
        let wire = Identification::new(IdKind::RFC822, data);
        assert!(Identity::from_wire(&wire).is_err(), "{data:x?}");
    }
    let wire = Identification::new(IdKind::RFC822, "jürgen@example.com");
    assert!(Identity::from_wire(&wire).is_ok(), "mail addresses are UTF-8");
}

#[test]
fn k_3_5_address_identities_have_the_octets_of_their_family() {
    for (kind, right) in [(IdKind::IPV4, 4), (IdKind::IPV6, 16)] {
        for octets in 0..20 {
            let wire = Identification::new(kind, vec![1; octets]);
            assert_eq!(Identity::from_wire(&wire).is_ok(), octets == right);
        }
    }
}

#[test]
fn domains_match_without_regard_to_case_and_names_with_it() {
    assert!(matches("VPN.example.com", "vpn.EXAMPLE.com"));
    assert!(matches("laptop@example.com", "laptop@EXAMPLE.com"));
    assert!(!matches("laptop@example.com", "Laptop@example.com"));
    assert!(!matches("vpn.example.com", "vpn.example.org"));
}

#[test]
fn a_pattern_matches_its_own_kind_and_no_more() {
    for text in ["192.0.2.1", "a.example", "b@a.example", "keyid:x"] {
        assert!(matches("*", text));
    }
    assert!(matches("*@example.com", "a@Example.com"));
    assert!(!matches("*@example.com", "a@sub.example.com"));
    assert!(!matches("*@example.com", "a@evilexample.com"));
    assert!(!matches("*@example.com", "example.com"));
    assert!(matches("*.example.com", "a.example.com"));
    assert!(matches("*.example.com", "b.a.EXAMPLE.com"));
    assert!(!matches("*.example.com", "example.com"));
    assert!(!matches("*.example.com", "evilexample.com"));
    assert!(!matches("*.example.com", "a@b.example.com"));
    let pattern: IdentityPattern = "*@example.com".parse().expect("pattern");
    let forged = |name: &str| Identity::Email(name.to_owned());
    for name in ["@example.com", "a@b@example.com", "a@example.com@evil.example", "example.com"] {
        assert!(!pattern.matches(&forged(name)), "{name}");
    }
    let dotted: IdentityPattern = "*.example.com".parse().expect("pattern");
    assert!(!dotted.matches(&Identity::Fqdn(".example.com".to_owned())));
    assert!(!dotted.matches(&Identity::KeyId(b"a.example.com".to_vec())));
}

#[test]
fn a_long_identity_is_cut_where_it_is_shown() {
    let long = Identity::Email(format!("{}ä@example.com", "a".repeat(127)));
    assert_eq!(long.to_string(), format!("{}…", "a".repeat(127)));
    assert_eq!(Identity::Fqdn("b".repeat(128)).to_string().len(), 128);
    assert!(Identity::KeyId(vec![b'k'; 60_000]).to_string().len() < 300);
}

#[test]
fn who_is_the_same_has_one_spelling() {
    for (a, b) in [("VPN.example.com", "vpn.EXAMPLE.com"), ("Al@Example.com", "Al@example.COM")] {
        let (a, b): (Identity, Identity) = (a.parse().unwrap(), b.parse().unwrap());
        assert!(a.is(&b));
        assert_eq!(a.canonical(), b.canonical());
    }
    let (a, b): (Identity, Identity) =
        ("al@example.com".parse().unwrap(), "Al@example.com".parse().unwrap());
    assert_ne!(a.canonical(), b.canonical());
    assert_ne!(Identity::KeyId(b"a.b".to_vec()).canonical(), Identity::Fqdn("a.b".into()));
}
