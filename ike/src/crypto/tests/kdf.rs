//! NIST's known answers for the IKEv2 key derivation of SP 800-135 (the SHA2-256 case that the ACVP
//! server's own tests use), and the HMAC answers of RFC 4868 §2.7.1.

use ring::digest;

use super::hex;
use crate::{
    child::{EspSuite, HmacSha2},
    crypto::*,
    secret::Secret,
};

/// The initiator's nonce, of the greatest length.
const NI: &str = "
    0a58fea9c1d4fee2e74e1aad6fb02dd5f318eb127465a112be8dc3c04d5dba62eae708f9dc1b2362afd6ba4b
    da3cf5000f4979fbcbadbcfda9291593829c4e905c21db0c2ee15175ce77a8a0dadf25c7f175bc53fd91b636
    a9b3c50b203de9b9d6dc463dcb4048f101e26498ceaed3afbcd931394a7e099392dfff82e5d6fa85c2e8a8ab
    90ad363a66795dc32798847e405acd87988140f973058917273a6b0bafb962c75e2b1a21e79c08beeb82168b
    f8b4b57f3dce867bf7862a7b8acbc21be838021913daf64340c055ed17aaf7b6e1d0ca33ae890ddbdb83f4e6
    15aad5e3bff58c3db70bac81a0dfbabe5391fc62bca4659e22a0741e01d8d06e67d9bb41";

/// The responder's nonce.
const NR: &str = "
    e4fdfa68df6171d9eaff8b7b5ad31e7c6098d259f3397c9854cbefe7449b0864c1df16ddece8b26567560f8d
    59182a44c19149c2d0d72606a160021ade3d23c7c6936c91a4b6bec37adf38cfc84b851c68dcee06f81306f6
    3abbefc07e231e3058c49437a557df617eac01663593d2a3e594699284c0a35eae6931492ccb2a43db72a600
    a3899205d681d2b76b1280e456339bb10e0c584aecfdae31c77a4c40dbcb345f782ac32835d4c220c1e97254
    ded6a40075dd717b00b69c86a49e801773026536ae02d58a649827f1ba67610ee936dffd11c9d5a915663191
    6a0a0046ec0ba42f56f2a18de83d5d71a985b0cc9eec2c06b3d907ca58454419f374069d";

/// g^ir
const GIR: &str = "9d469de41b4739c7dd01f19aa94f17e48150ae9dbede94832142db19";

/// g^ir (new)
const GIR_NEW: &str = "c2987b0767006c3b9aea491bfed1646a3d7194639492b8d45b23b383";

const SPI_I: [u8; 8] = [0xc8, 0xde, 0x93, 0x11, 0x17, 0x50, 0xe4, 0x09];
const SPI_R: [u8; 8] = [0x32, 0xd5, 0x1b, 0x33, 0x50, 0x89, 0x97, 0xfa];

const SKEYSEED: &str = "eec13ac67c2e072abb684ab4e7b6ce3e7f400af8b96bed48e113497ed337f8d4";

/// prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
const DKM: &str = "
    bc83518f63b762874ac57947cdfae33a8d9724df0b83ee4b6df38c23fc2ad829f4d70b5a68dd1f5a52416f09
    758638aedf919c09a17c5298cdb703bb75b1005cba0109739aaa4efd2fe7534c95ad05e546e4419931270edd
    cab68ac1589d7fde47f5b9e8d5b614cb24ec3caf515497a9e99ee6f1b318ff153b539ef071dcaff9b41945dc
    b780700d69e5dc888a91de195c52825badfd0ab4c33cec71ab5c2b4badefe5455455ce5d8ae91721a2091bcc
    cc1514e69482c9c8da1d9f0f187eedda916393570a8c0a8dfabc26d8ed31e8ea47662515972a22d11d692bc1
    fac6395aecd82a01ab78daafcd6f3070b1201f158a19331b5d21ceee66fccd2ea37bc07648b9539a52dbf797
    af53e31a0e8706dd86cf5081ebabd095f281d23c222dd3bc5abf06869017ca8f751cafcc85abea6ba88c139d
    1f32a12f7f486cf57eae5d85551b97f3963616d8f597c70efa98c1e1fa369fb77a80b1ec5fe533890672c455
    1172eab1b7fd68ad08c4d4c69f2a867302065ca730aa6915bc2cfb6d93820977";

/// prf+(SK_d, Ni | Nr)
const DKM_CHILD: &str = "
    c725012285d56e53244a9baaaf95abfca543708d333a3f3a86ba660e00edd4d489bcd631819fda0413382edd
    9f53d1ed718e056c2ad91d38de90f06cd434de70141d051c021e7ddd6e4137946b4770dca59a4decabdd8668
    52eb557fdd995646613ff2923f5f23aa58c8fbd5ad52cf2eac9bda97faad5596695f4a747a0f1cc6a1f78b21
    81138fb19ac24574d2e6b3a40d6e688abb919a27d793b76568ec66bd099f6f476b705c1472d774a1516a1131
    1b887688f36649e24227640ea8d8666b9f452217e7103b6f0a92b6adb8fbda650ba58d6ac13ac6f6b6361a5d
    1c44f1e9f22196c96295115c5d01a120e7265962d20353a049286908da776c2165f706a16f43d85fcd319f89
    c4386340bcb8ed10df38345cb68af719abaf997e9789a5f19a392dcecd78168ba282f0b30555c7a47031a315
    6d12d7158aa41b863b8394d30fec63120e89cbc5750eed7786f7d5961b1f2e6faca641ed776d2211bee757b6
    8b77f94056172553715da9fbd1c9a8728f28a2f3c9714a4917490132562484cd";

/// prf+(SK_d, g^ir (new) | Ni | Nr)
const DKM_CHILD_DH: &str = "
    140a1f2a3c94318ece6edfa8c63f37d8d45982de8b6cbfe34011150db0253e34de3796d4aa579954a0bbf234
    794eb6e7ece2a8f91100f5507df4ee8e66c7813d4c0ff64d484a3494c54b0d9c605ea24234a49a010ce5c352
    feb9e1060c8c787229466296cdc9d11bb9d221ed2bb39544572464254ec02a0fbe777b07402c775eb6d3e53c
    d16214c707f851942cc7da92a811b6c5c82f29d9fc3751b0ebff9898fb14372402a6989ffb9cc32dfe7e2cea
    32fd882e09804d7fea34ce3b5eb6f303e095c48a452b0a3eccada81af22195ebbaad289aeabdab074c94e751
    496bde39d868ebf1d693f36d1c3c672bbb59c9f77aeb68de57d77da231b7f13d6d277f600c3d3086c4de7b3a
    59127f4cb9c118935574f30e1b7c88b52c8c3531fdbd38ee3d14c69e81803ced6e7501fa0180f6d110b64827
    2002dc1ad5bf09dc83188011da1d48632e0d2453c8abdd8e9fd32a576aeb9ddfb0a024f674441c20a950d9bd
    8cd7b30933cc0d8e87b55e8aa9d913579b410417b3acc13c14bf73c457327873";

/// prf(SK_d, g^ir (new) | Ni | Nr)
const SKEYSEED_REKEY: &str = "05f796c8df322a7e33283ae5fa2f376d8d5efa0ac3745fc548e430031424c121";

const ENCRYPTIONS: [IkeEncryption; 3] = [
    IkeEncryption::AesGcm16 { key_bits: 256 },
    IkeEncryption::ChaCha20Poly1305,
    IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha512 },
];

fn suite(encryption: IkeEncryption) -> IkeSuite {
    IkeSuite { encryption, prf: Prf::HmacSha256, key_exchange: KeyExchangeMethod::X25519 }
}

/// The keys in RFC 7296 §2.14's order.
fn joined(keys: &SkKeys) -> Vec<u8> {
    [&keys.d, &keys.ai, &keys.ar, &keys.ei, &keys.er, &keys.pi, &keys.pr]
        .map(Secret::expose)
        .concat()
}

#[test]
fn k_2_13_prf_gives_the_answers_of_rfc_4868() {
    let cases: [(Vec<u8>, Vec<u8>, [&str; 3]); 3] = [
        (
            b"Jefe".to_vec(),
            b"what do ya want for nothing?".to_vec(),
            [
                "5bdcc146bf60754e6a042426089575c7 5a003f089d2739839dec58b964ec3843",
                "af45d2e376484031617f78d2b58a6b1b 9c7ef464f5a01b47e42ec3736322445e
                 8e2240ca5e69e2c78b3239ecfab21649",
                "164b7a7bfcf819e2e395fbe73b56e0a3 87bd64222e831fd610270cd7ea250554
                 9758bf75c05a994a6d034f65f8f0e6fd caeab1a34d4a6b4b636e070a38bce737",
            ],
        ),
        (
            (1..=25).collect(),
            vec![0xcd; 50],
            [
                "82558a389a443c0ea4cc819899f2083a 85f0faa3e578f8077a2e3ff46729665b",
                "3e8a69b7783c25851933ab6290af6ca7 7a9981480850009cc5577c6e1f573b4e
                 6801dd23c4a7d679ccf8a386c674cffb",
                "b0ba465637458c6990e5a8c5f61d4af7 e576d97ff94b872de76f8050361ee3db
                 a91ca5c11aa25eb4d679275cc5788063 a5f19741120c4f2de2adebeb10a298dd",
            ],
        ),
        (
            vec![0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First".to_vec(),
            [
                "60e431591ee0b67f0d8a26aacbf5b77f 8e0bc6213728c5140546040f0ee37f54",
                "4ece084485813e9088d2c63a041bc5b4 4f9ef1012a2b588f3cd11f05033ac4c6
                 0c2ef6ab4030fe8296248df163f44952",
                "80b24263c7c1a3ebb71493c1dd7be8b4 9b46d1f41b4aeec1121b013783f8f352
                 6b56d037e05f2598bd0fd2215d6a1e52 95e64f73f63f0aec8b915a985d786598",
            ],
        ),
    ];
    for (key, data, answers) in cases {
        for (prf, answer) in
            [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512].into_iter().zip(answers)
        {
            // In one part and in two: the parts are joined and nothing is put between them.
            assert_eq!(prf.mac(&key, &[&data]).expose(), hex(answer), "{prf:?}");
            let (head, tail) = data.split_at(7);
            let mac = prf.mac(&key, &[head, &[], tail]);
            assert_eq!(mac.expose(), hex(answer), "{prf:?}");
            assert_eq!(mac.len(), prf.out_len());
        }
    }
}

#[test]
fn k_2_13_prf_plus_gives_nists_answers() {
    let (ni, nr) = (hex(NI), hex(NR));
    let seed: [&[u8]; 4] = [&ni, &nr, &SPI_I, &SPI_R];
    let dkm = hex(DKM);
    for len in [0, 1, 31, 32, 33, 64, 383, 384] {
        let octets = Prf::HmacSha256.prf_plus(&hex(SKEYSEED), &seed, len).unwrap();
        assert_eq!(octets.expose(), &dkm[..len]);
    }
}

#[test]
fn k_2_13_prf_plus_ends_after_255_blocks() {
    // The last 16 of 255 blocks of prf+("key", "seed"), computed by another implementation.
    for (prf, tail) in [
        (Prf::HmacSha256, "c01a9a705ca2d9409f29f603fb4e7385"),
        (Prf::HmacSha384, "c4bb339344788a75173ede90cfcb6d39"),
        (Prf::HmacSha512, "3669e03df07da9760c127c786f6858b8"),
    ] {
        let most = 255 * prf.out_len();
        let octets = prf.prf_plus(b"key", &[b"seed"], most).unwrap();
        assert_eq!(octets.len(), most);
        assert_eq!(octets.expose()[most - 16..], hex(tail));
        assert_eq!(prf.prf_plus(b"key", &[b"seed"], most + 1), Err(CryptoError::PrfPlusExhausted));
    }
}

#[test]
fn k_2_14_ike_keys_are_cut_from_nists_answer_in_order() {
    let dkm = hex(DKM);
    for encryption in ENCRYPTIONS {
        let shared = Secret::new(hex(GIR));
        let keys =
            derive_ike(suite(encryption), &shared, &hex(NI), &hex(NR), &SPI_I, &SPI_R).unwrap();
        assert_eq!(keys.d.len(), 32);
        assert_eq!(keys.ai.len(), encryption.integrity_key_len());
        assert_eq!(keys.ar.len(), encryption.integrity_key_len());
        assert_eq!(keys.ei.len(), encryption.encryption_key_len());
        assert_eq!(keys.er.len(), encryption.encryption_key_len());
        assert_eq!(keys.pi.len(), 32);
        assert_eq!(keys.pr.len(), 32);
        let joined = joined(&keys);
        assert_eq!(joined, dkm[..joined.len()], "{encryption:?}");
    }
}

#[test]
fn k_2_17_child_keys_are_cut_from_nists_answers_in_order() {
    let sk_d = Secret::new(hex(DKM)[..32].to_vec());
    let shared = Secret::new(hex(GIR_NEW));
    for (shared, keymat) in [(None, hex(DKM_CHILD)), (Some(&shared), hex(DKM_CHILD_DH))] {
        for suite in [
            EspSuite::AesGcm16 { key_bits: 128 },
            EspSuite::AesGcm16 { key_bits: 256 },
            EspSuite::ChaCha20Poly1305,
            EspSuite::AesCbc { key_bits: 192, integrity: HmacSha2::Sha384 },
        ] {
            let (from_initiator, from_responder) =
                derive_child(Prf::HmacSha256, &sk_d, shared, &hex(NI), &hex(NR), suite).unwrap();
            let mut at = 0;
            for keys in [from_initiator, from_responder] {
                for (key, len) in [
                    (keys.encryption, suite.encryption_key_len()),
                    (keys.integrity, suite.integrity_key_len()),
                ] {
                    assert_eq!(key.expose(), &keymat[at..at + len], "{suite:?}");
                    at += len;
                }
            }
        }
    }
}

#[test]
fn k_2_18_rekeyed_ike_keys_come_from_nists_skeyseed() {
    let (ni, nr) = (hex(NI), hex(NR));
    let sk_d = Secret::new(hex(DKM)[..32].to_vec());
    let shared = Secret::new(hex(GIR_NEW));
    // The old prf makes SKEYSEED even if the new IKE_SA has another prf.
    for prf in [Prf::HmacSha256, Prf::HmacSha512] {
        let suite = IkeSuite { prf, ..suite(IkeEncryption::AesGcm16 { key_bits: 256 }) };
        let old = Prf::HmacSha256;
        let keys = derive_ike_rekey(old, &sk_d, suite, &shared, &ni, &nr, &SPI_I, &SPI_R).unwrap();
        let joined = joined(&keys);
        let seed: [&[u8]; 4] = [&ni, &nr, &SPI_I, &SPI_R];
        let expected = prf.prf_plus(&hex(SKEYSEED_REKEY), &seed, joined.len()).unwrap();
        assert_eq!(joined, expected.expose());
    }
}

/// NIST's inputs under the other prfs. Hashes of what another implementation, which gives NIST's own
/// answers for SHA2-256, computes: the keys of the IKE_SA, of a CHILD_SA without and with a new key
/// exchange, and of the rekeyed IKE_SA.
#[test]
fn k_2_14_and_2_17_and_2_18_hold_for_the_other_prfs() {
    let (ni, nr) = (hex(NI), hex(NR));
    let (shared, shared_new) = (Secret::new(hex(GIR)), Secret::new(hex(GIR_NEW)));
    let esp = EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 };
    let sha256 = |octets: &[u8]| digest::digest(&digest::SHA256, octets).as_ref().to_vec();
    for (prf, answers) in [
        (
            Prf::HmacSha384,
            [
                "21ba7bec78f9aa4855a329b3c2754dd7a7fa72ced4d617fde3825f364444b302",
                "adc6d95e51ac19f9a415253a6d6c527e2d5854d68d2520461d272756e918c7d9",
                "7f70fbf16dd3fea34ccb0f44949913250687db1c07b2d4dae6cb7b56a0a2c771",
                "1f082942deb1c553c3c412df7f28b95484435b9abc36bee7bf106ffc06cc6dfb",
            ],
        ),
        (
            Prf::HmacSha512,
            [
                "9721bdb3ca580ca0428043d85ee11d30454c82d4d27f0168c9b6e34e8799494b",
                "ba611741ee6d70fd563be7b1ad8202051f5ee660baf5f1450d88d4e58253d013",
                "ef7ff109edeb7e563c986e8bf3d84994e3cf94da1b8d85a2280ffa1dfc17fecb",
                "9e4d4cab913d9bd0744e3b11a1e3cecc4e2027bd12614672ac344e2025a392d8",
            ],
        ),
    ] {
        let suite = IkeSuite { prf, ..suite(IkeEncryption::AesGcm16 { key_bits: 256 }) };
        let keys = derive_ike(suite, &shared, &ni, &nr, &SPI_I, &SPI_R).unwrap();
        let child = |shared| {
            let (i, r) = derive_child(prf, &keys.d, shared, &ni, &nr, esp).unwrap();
            [&i.encryption, &i.integrity, &r.encryption, &r.integrity].map(Secret::expose).concat()
        };
        let rekeyed =
            derive_ike_rekey(prf, &keys.d, suite, &shared_new, &ni, &nr, &SPI_I, &SPI_R).unwrap();
        let ours = [joined(&keys), child(None), child(Some(&shared_new)), joined(&rekeyed)];
        assert_eq!(ours.map(|octets| sha256(&octets)), answers.map(hex), "{prf:?}");
    }
}
