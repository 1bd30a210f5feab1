//! Key exchange: RFC 7748 §6.1, RFC 5903 §8.1, and public values that must be refused.

use super::hex;
use crate::{crypto::*, random::Random};

const METHODS: [KeyExchangeMethod; 2] = [KeyExchangeMethod::X25519, KeyExchangeMethod::Ecp256];

fn with_private(method: KeyExchangeMethod, private: &str) -> KeyExchange {
    KeyExchange::from_scalar(method, &hex(private).try_into().unwrap()).unwrap()
}

/// Private and public value of each side, and the shared secret.
fn check(method: KeyExchangeMethod, i: [&str; 2], r: [&str; 2], shared: &str) {
    let [(i, i_public), (r, r_public)] =
        [i, r].map(|[private, public]| (with_private(method, private), hex(public)));
    assert_eq!(i.public(), i_public);
    assert_eq!(r.public(), r_public);
    assert_eq!(i.agree(&r_public).unwrap().expose(), hex(shared));
    assert_eq!(r.agree(&i_public).unwrap().expose(), hex(shared));
}

#[test]
fn rfc_8031_x25519_gives_the_answers_of_rfc_7748() {
    check(
        KeyExchangeMethod::X25519,
        [
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ],
        [
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ],
        "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    );
}

#[test]
fn rfc_5903_8_1_ecp_256_gives_its_answers() {
    check(
        KeyExchangeMethod::Ecp256,
        [
            "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
            "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180
             5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3",
        ],
        [
            "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
            "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63
             56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
        ],
        "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE",
    );
}

#[test]
fn rfc_8031_3_2_the_top_bit_is_masked_and_other_forms_are_accepted() {
    // RFC 7748 §5.2, second case: the u coordinate has its top bit set.
    let exchange = with_private(
        KeyExchangeMethod::X25519,
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
    );
    let mut peer = hex("e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493");
    let shared = hex("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957");
    assert_eq!(exchange.agree(&peer).unwrap().expose(), shared);
    peer[31] &= 0x7f;
    assert_eq!(exchange.agree(&peer).unwrap().expose(), shared);
    // 2^255 - 10 is the base point 9 in a form that is not reduced.
    let mut nine = [0; 32];
    nine[0] = 9;
    let mut unreduced = [0xff; 32];
    unreduced[0] = 0xf6;
    unreduced[31] = 0x7f;
    assert_eq!(exchange.agree(&unreduced), exchange.agree(&nine));
    assert_eq!(exchange.agree(&nine).unwrap().expose(), exchange.public());
}

#[test]
fn rfc_7748_6_1_an_all_zero_secret_is_refused() {
    let exchange =
        KeyExchange::generate(KeyExchangeMethod::X25519, &mut Random::from_seed([1; 32]));
    // The points of small order: 0, 1, the two of order 8, p - 1, p and p + 1.
    for point in [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        assert_eq!(exchange.agree(&hex(point)), Err(CryptoError::InvalidPublicValue), "{point}");
    }
}

#[test]
fn rfc_6989_2_3_a_point_off_the_curve_is_refused() {
    let mut random = Random::from_seed([2; 32]);
    let exchange = KeyExchange::generate(KeyExchangeMethod::Ecp256, &mut random);
    let peer = KeyExchange::generate(KeyExchangeMethod::Ecp256, &mut random);
    assert!(exchange.agree(peer.public()).is_ok());
    for octet in 0..64 {
        let mut point = peer.public().to_vec();
        point[octet] ^= 1;
        assert_eq!(exchange.agree(&point), Err(CryptoError::InvalidPublicValue), "{octet}");
    }
    // (0, 0), and both coordinates above the prime.
    for point in [[0; 64], [0xff; 64]] {
        assert_eq!(exchange.agree(&point), Err(CryptoError::InvalidPublicValue));
    }
    // A point of the curve with x = 5 written as x = 5 + p, which is below 2^256.
    let y = "459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc";
    let five = hex(&format!("{:064x}{y}", 5));
    assert!(exchange.agree(&five).is_ok());
    let unreduced =
        hex(&format!("ffffffff00000001000000000000000000000001000000000000000000000004{y}"));
    assert_eq!(exchange.agree(&unreduced), Err(CryptoError::InvalidPublicValue));
}

#[test]
fn rfc_5903_7_only_the_exact_length_is_accepted() {
    let mut random = Random::from_seed([3; 32]);
    for method in METHODS {
        let exchange = KeyExchange::generate(method, &mut random);
        let peer = KeyExchange::generate(method, &mut random);
        assert_eq!(peer.public().len(), method.public_len());
        for len in (0..=2 * method.public_len()).filter(|len| *len != method.public_len()) {
            let public: Vec<u8> = peer.public().iter().copied().cycle().take(len).collect();
            assert_eq!(exchange.agree(&public), Err(CryptoError::InvalidPublicValue), "{len}");
        }
        // What SEC 1 would write is not what IKE writes.
        let sec1 = [&[0x04], peer.public()].concat();
        assert_eq!(exchange.agree(&sec1), Err(CryptoError::InvalidPublicValue));
    }
}

#[test]
fn ecp_scalars_outside_the_group_are_drawn_again() {
    let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    for scalar in [[0; 32], [0xff; 32], order.try_into().unwrap()] {
        assert!(KeyExchange::from_scalar(KeyExchangeMethod::Ecp256, &scalar).is_none());
    }
}

#[test]
fn both_sides_agree_and_a_seed_replays() {
    for method in METHODS {
        let mut random = Random::from_seed([4; 32]);
        for _ in 0..20 {
            let i = KeyExchange::generate(method, &mut random);
            let (public, shared) = respond(method, &mut random, i.public()).unwrap();
            assert_eq!(i.agree(&public).unwrap(), shared);
            assert_ne!(i.public(), public);
        }
        let twice =
            [(), ()].map(|()| KeyExchange::generate(method, &mut Random::from_seed([5; 32])));
        assert_eq!(twice[0].public(), twice[1].public());
        let other = KeyExchange::generate(method, &mut Random::from_seed([6; 32]));
        assert_ne!(twice[0].public(), other.public());
    }
}

#[test]
fn ids_are_ianas() {
    for method in METHODS {
        assert_eq!(KeyExchangeMethod::from_id(method.id()), Some(method));
    }
    assert_eq!(METHODS.map(KeyExchangeMethod::id), [31, 19]);
    assert_eq!(KeyExchangeMethod::from_id(0), None);
    let prfs = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
    assert_eq!(prfs.map(Prf::id), [5, 6, 7]);
    assert_eq!(prfs.map(|prf| Prf::from_id(prf.id())), prfs.map(Some));
}
