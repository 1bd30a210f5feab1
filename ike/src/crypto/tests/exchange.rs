//! Key exchange: RFC 7748 §6.1, RFC 5903 §8, MODP as OpenSSL computes it, and public values that
//! must be refused.

use ring::digest;

use super::hex;
use crate::{
    crypto::{exchange::modp_prime, *},
    random::Random,
};

const METHODS: [KeyExchangeMethod; 7] = [
    KeyExchangeMethod::X25519,
    KeyExchangeMethod::Ecp256,
    KeyExchangeMethod::Ecp384,
    KeyExchangeMethod::Ecp521,
    KeyExchangeMethod::Modp2048,
    KeyExchangeMethod::Modp3072,
    KeyExchangeMethod::Modp4096,
];
const ECP: [KeyExchangeMethod; 3] =
    [KeyExchangeMethod::Ecp256, KeyExchangeMethod::Ecp384, KeyExchangeMethod::Ecp521];
const MODP: [KeyExchangeMethod; 3] =
    [KeyExchangeMethod::Modp2048, KeyExchangeMethod::Modp3072, KeyExchangeMethod::Modp4096];

fn with_private(method: KeyExchangeMethod, private: &str) -> KeyExchange {
    KeyExchange::from_private(method, &hex(private)).unwrap()
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
fn rfc_5903_8_2_ecp_384_gives_its_answers() {
    check(
        KeyExchangeMethod::Ecp384,
        [
            "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655
             E35B538041E649EE3FAEF896783AB194",
            "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6
             DE3AC808ACB4BDB4C88732AEE95F41AA
             9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38E
             EB9FCFF3C2C947DAE69B4C634573A81C",
        ],
        [
            "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942
             E0308312916B8ED2960E4BD55A7448FC",
            "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D
             0D1AC43A0336DEF96FDA41D0774A3571
             DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FF
             F83FA40142209DFF5EAAD96DB9E6386C",
        ],
        "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4
         D603135569B9E9D09CF5D4A270F59746",
    );
}

#[test]
fn rfc_5903_8_3_ecp_521_gives_its_answers() {
    check(
        KeyExchangeMethod::Ecp521,
        [
            "0037ADE9319A89F4DABDB3EF411AACCCA5123C61ACAB57B5393DCE47608172A0
             95AA85A30FE1C2952C6771D937BA9777F5957B2639BAB072462F68C27A57382D
             4A52",
            "0015417E84DBF28C0AD3C278713349DC7DF153C897A1891BD98BAB4357C9ECBE
             E1E3BF42E00B8E380AEAE57C2D107564941885942AF5A7F4601723C4195D176C
             ED3E
             017CAE20B6641D2EEB695786D8C946146239D099E18E1D5A514C739D7CB4A10A
             D8A788015AC405D7799DC75E7B7D5B6CF2261A6A7F1507438BF01BEB6CA3926F
             9582",
        ],
        [
            "0145BA99A847AF43793FDD0E872E7CDFA16BE30FDC780F97BCCC3F078380201E
             9C677D600B343757A3BDBF2A3163E4C2F869CCA7458AA4A4EFFC311F5CB15168
             5EB9",
            "00D0B3975AC4B799F5BEA16D5E13E9AF971D5E9B984C9F39728B5E5739735A21
             9B97C356436ADC6E95BB0352F6BE64A6C2912D4EF2D0433CED2B6171640012D9
             460F
             015C68226383956E3BD066E797B623C27CE0EAC2F551A10C2C724D9852077B87
             220B6536C5C408A1D2AEBB8E86D678AE49CB57091F4732296579AB44FCD17F0F
             C56A",
        ],
        "01144C7D79AE6956BC8EDB8E7C787C4521CB086FA64407F97894E5E6B2D79B04
         D1427E73CA4BAA240A34786859810C06B3C715A3A8CC3151F2BEE417996D19F3
         DDEA",
    );
}

/// No RFC has answers for these groups. Private values, and the SHA-256 hashes of both public values
/// and of the secret as OpenSSL 3 computes them.
#[test]
fn rfc_3526_modp_gives_the_answers_of_openssl() {
    let sha256 = |octets: &[u8]| digest::digest(&digest::SHA256, octets).as_ref().to_vec();
    for (method, i, r, i_public, r_public, shared) in [
        (
            KeyExchangeMethod::Modp2048,
            "60de06f29cdde99e7aed78055dbbc02cca7f03a42ecfc0cce532774858d96b20",
            "ff34aa0fd7ad38284990125b8ed4a7b9ace3bd16873feb8d1a00d1aab1f5cfd0",
            "6f948fe40fb14a80d271e3ef42e8358560ae4b93903538dfd561efd019ae0eb7",
            "b75ae8a60e860d45ca0734532fd815299ed83f851064dfd4c34208b938ab3aaf",
            "82eaa8c6d5d2998c484d1685ced60a476271403d48158438824e7e2e662ba353",
        ),
        (
            KeyExchangeMethod::Modp3072,
            "15b0e4abcc01bfe14b79f18a4703e15c7686dab4c11f96b071c8632aba8ce6957128366a0cb56351",
            "0f1795eebcef81354cf42025cc3fcda75bd6addf5a35a79974a38615fa773e7310338d8ed4aaf7ef",
            "f43149bce3c912b66e337f0d05437139457601ac16b172c597305414c887bebf",
            "e7afaddf8711263079b35e600b3e461457fe3781c9b1e7158219bddfbe4278e4",
            "99f069a95a5ee42953a411dba9c15586309cb982850b3315775b01d7edaba7f4",
        ),
        (
            KeyExchangeMethod::Modp4096,
            "45c01f3250f4e23e5bceff1deb2ce6166aa97b78f31ea4e83964e8d3644458207e8664a9afc384612f4658a7258c4afc",
            "d21e975d2208f8ddf8ff10f03f8b74be3dbecd80ee36e001121c973953a75a1e8c872e3c57b321300e3bdcf62b6f44a1",
            "30f4ce9c8cf3bb057bcb8be0c0d62455e0cc0beab65897bcea6d89369480157a",
            "cd6bab72c2a3e8df3c6bfd810e673453e4ad8af9887553d26e9a008bd15f8dd2",
            "94b86bd1bc9de24002611dfe8cf3153b70e3fd0fafa5e8318b9bc9658851704b",
        ),
    ] {
        let [i, r] = [i, r].map(|private| with_private(method, private));
        assert_eq!(sha256(i.public()), hex(i_public), "{method:?}");
        assert_eq!(sha256(r.public()), hex(r_public), "{method:?}");
        assert_eq!(sha256(i.agree(r.public()).unwrap().expose()), hex(shared), "{method:?}");
        assert_eq!(i.agree(r.public()), r.agree(i.public()));
    }
}

#[test]
fn k_2_14_modp_values_are_padded_to_the_length_of_the_prime() {
    for method in MODP {
        let len = method.public_len();
        let three = KeyExchange::from_private(method, &[3]).unwrap();
        let mut eight = vec![0; len];
        eight[len - 1] = 8;
        assert_eq!(three.public(), eight);
        let shared = three.agree(&eight).unwrap();
        assert_eq!(shared.len(), len);
        assert_eq!(shared.expose()[len - 2..], 512u16.to_be_bytes());
        assert!(shared.expose()[..len - 2].iter().all(|octet| *octet == 0));
    }
}

#[test]
fn rfc_6989_2_1_modp_values_that_are_not_between_1_and_the_prime_less_1_are_refused() {
    for method in MODP {
        let len = method.public_len();
        let exchange = KeyExchange::generate(method, &mut Random::from_seed([7; 32]));
        let prime = modp_prime(method);
        // The prime's last octet is 0xff.
        let near = |less: u8| [&prime[..len - 1], &[0xff - less]].concat();
        let small = |value: u8| [vec![0; len - 1], vec![value]].concat();
        for refused in [small(0), small(1), near(1), near(0), vec![0xff; len]] {
            assert_eq!(exchange.agree(&refused), Err(CryptoError::InvalidPublicValue));
        }
        for accepted in [small(2), near(2)] {
            assert_eq!(exchange.agree(&accepted).unwrap().len(), len);
        }
        assert_eq!(exchange.agree(&small(2)).unwrap().expose(), exchange.public());
    }
}

#[test]
fn rfc_3526_the_primes_are_those_of_openssl_and_2_has_a_prime_order() {
    for (method, hash) in MODP.into_iter().zip([
        "d66436f79bbd6b2e38c0ffbd079be904d2641415e2e67140e09448be9a60890e",
        "48cf8b092fbce4359d9871abf74f98e25b6163379eaa15cd9087e800c6d1c55c",
        "4ee95187682bcb230ad26a95205f6920e84708f6251b3894329b09ec23919e33",
    ]) {
        let prime = modp_prime(method);
        assert_eq!(digest::digest(&digest::SHA256, &prime).as_ref(), hex(hash));
        // (p - 1) / 2: the power of 2 is 1, as 2 makes the subgroup of that prime order.
        let mut carry = 0;
        let order: Vec<u8> = prime
            .iter()
            .map(|octet| {
                let half = carry | octet >> 1;
                carry = octet << 7;
                half
            })
            .collect();
        let one = KeyExchange::from_private(method, &order).unwrap();
        assert_eq!(one.public().last(), Some(&1));
        assert!(one.public()[..prime.len() - 1].iter().all(|octet| *octet == 0));
    }
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
    for method in ECP {
        let exchange = KeyExchange::generate(method, &mut random);
        let peer = KeyExchange::generate(method, &mut random);
        assert!(exchange.agree(peer.public()).is_ok());
        for octet in 0..method.public_len() {
            let mut point = peer.public().to_vec();
            point[octet] ^= 1;
            assert_eq!(exchange.agree(&point), Err(CryptoError::InvalidPublicValue), "{octet}");
        }
        // (0, 0), and both coordinates above the prime.
        for octet in [0, 0xff] {
            let point = vec![octet; method.public_len()];
            assert_eq!(exchange.agree(&point), Err(CryptoError::InvalidPublicValue));
        }
    }
    let exchange = KeyExchange::generate(KeyExchangeMethod::Ecp256, &mut random);
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
fn private_values_outside_the_group_are_drawn_again() {
    for (method, order) in ECP.into_iter().zip([
        "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
        "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf
         581a0db248b0a77aecec196accc52973",
        "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa
         51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    ]) {
        let order = hex(order);
        let mut last = order.clone();
        *last.last_mut().unwrap() -= 1;
        for outside in [vec![0; order.len()], vec![0xff; order.len()], order] {
            assert!(KeyExchange::from_private(method, &outside).is_none());
        }
        assert!(KeyExchange::from_private(method, &last).is_some());
    }
    for method in MODP {
        assert!(KeyExchange::from_private(method, &[0; 32]).is_none());
    }
}

#[test]
fn both_sides_agree_and_a_seed_replays() {
    for method in METHODS {
        let mut random = Random::from_seed([4; 32]);
        for _ in 0..5 {
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
    assert_eq!(METHODS.map(KeyExchangeMethod::id), [31, 19, 20, 21, 14, 15, 16]);
    // Nothing else, the small groups (1, 2, 5) and those of RFC 5114 (22 to 24) among it.
    let known = (0..=u16::MAX).filter(|id| KeyExchangeMethod::from_id(*id).is_some());
    assert_eq!(known.collect::<Vec<_>>(), [14, 15, 16, 19, 20, 21, 31]);
    let prfs = [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512];
    assert_eq!(prfs.map(Prf::id), [5, 6, 7]);
    assert_eq!(prfs.map(|prf| Prf::from_id(prf.id())), prfs.map(Some));
}
