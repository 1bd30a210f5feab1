//! What is offered, what is chosen out of an offer, and which answers are refused (RFC 7296 §2.7,
//! §3.3).

use std::collections::BTreeSet;

use super::*;
use crate::{
    child::HmacSha2,
    crypto::{KeyExchangeMethod, Prf},
    random::Random,
    wire::{TransformAttribute, proposal::TransformAttributeValue},
};

fn offer_ike(suites: &[IkeSuite]) -> Vec<Proposal> {
    super::offer_ike(suites, &[])
}

/// As in IKE_AUTH.
fn offer_esp(proposals: &[EspProposal], spi: u32) -> Vec<Proposal> {
    super::offer_esp(proposals, spi, false)
}

fn select_esp(
    proposals: &[EspProposal],
    offered: &[Proposal],
) -> Option<(EspProposal, Proposal, u32)> {
    super::select_esp(proposals, offered, None)
}

fn accept_esp(proposals: &[EspProposal], answer: &[Proposal]) -> Option<(EspProposal, u32)> {
    super::accept_esp(proposals, answer, false)
}

const GCM: IkeEncryption = IkeEncryption::AesGcm16 { key_bits: 256 };
const CBC: IkeEncryption = IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 };
const ENCRYPTIONS: [IkeEncryption; 5] = [
    GCM,
    IkeEncryption::AesGcm16 { key_bits: 128 },
    IkeEncryption::ChaCha20Poly1305,
    CBC,
    IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 },
];
const PRFS: [Prf; 2] = [Prf::HmacSha384, Prf::HmacSha256];
const EXCHANGES: [KeyExchangeMethod; 3] =
    [KeyExchangeMethod::X25519, KeyExchangeMethod::Ecp256, KeyExchangeMethod::Modp2048];

fn ike(encryption: IkeEncryption, prf: Prf, key_exchange: KeyExchangeMethod) -> IkeSuite {
    IkeSuite { encryption, prf, key_exchange }
}

fn all_suites() -> Vec<IkeSuite> {
    let mut suites = Vec::new();
    for exchange in EXCHANGES {
        for encryption in ENCRYPTIONS {
            suites.extend(PRFS.map(|prf| ike(encryption, prf, exchange)));
        }
    }
    suites
}

/// Some of all suites, in any order.
fn some_suites(random: &mut Random) -> Vec<IkeSuite> {
    let mut suites = all_suites();
    let left = 1 + random.u32() as usize % suites.len();
    while suites.len() > left {
        suites.remove(random.u32() as usize % suites.len());
    }
    for at in 0..suites.len() {
        let other = random.u32() as usize % suites.len();
        suites.swap(at, other);
    }
    suites
}

/// Everything that a peer may choose out of the proposals: one transform of each type.
fn choices(proposals: &[Proposal]) -> Vec<Proposal> {
    let mut choices = Vec::new();
    for proposal in proposals {
        let mut combinations = vec![Vec::new()];
        for kind in [1, 2, 3, 4, 5].map(TransformType) {
            let of: Vec<Transform> = proposal.of(kind).cloned().collect();
            if !of.is_empty() {
                combinations = combinations
                    .iter()
                    .flat_map(|head: &Vec<Transform>| {
                        of.iter().map(move |t| [head.as_slice(), std::slice::from_ref(t)].concat())
                    })
                    .collect();
            }
        }
        choices.extend(
            combinations.into_iter().map(|transforms| Proposal { transforms, ..proposal.clone() }),
        );
    }
    choices
}

fn transform(proposal: &mut Proposal, kind: TransformType) -> &mut Transform {
    proposal.transforms.iter_mut().find(|t| t.kind == kind).unwrap()
}

#[test]
fn k_2_7_1_what_is_offered_is_what_is_listed() {
    let mut random = Random::from_seed([1; 32]);
    for _ in 0..200 {
        let suites = some_suites(&mut random);
        let offered = offer_ike(&suites);
        assert_eq!(offered.iter().map(|p| usize::from(p.number)).sum::<usize>(), {
            let count = offered.len();
            count * (count + 1) / 2
        });
        let choices = choices(&offered);
        assert_eq!(choices.len(), suites.len());
        let accepted: BTreeSet<IkeSuite> =
            choices.iter().map(|c| accept_ike(&suites, std::slice::from_ref(c)).unwrap()).collect();
        assert_eq!(accepted, suites.iter().copied().collect());
        for proposal in &offered {
            // RFC 7296 §3.3: an AEAD and a cipher that needs an integrity algorithm are never in
            // one proposal.
            let aead = proposal.of(TransformType::ENCR).filter(|t| t.id != 12).count();
            let integrity = proposal.of(TransformType::INTEG).count();
            let all = proposal.of(TransformType::ENCR).count();
            assert!(if integrity == 0 { aead == all } else { aead == 0 });
        }
    }
}

#[test]
fn k_2_7_1_suites_share_proposals() {
    assert_eq!(offer_ike(&all_suites()).len(), 3);
    let listed = [ENCRYPTIONS[1], ENCRYPTIONS[0]].map(|e| ike(e, PRFS[0], EXCHANGES[0]));
    let [offered] = offer_ike(&listed).try_into().unwrap();
    // The order within a type is that of the list.
    let bits: Vec<_> = offered.of(TransformType::ENCR).map(|t| t.key_length).collect();
    assert_eq!(bits, [Some(128), Some(256)]);
    assert_eq!(offered.transforms.len(), 4);
    // Two that differ in two types would offer two more.
    let apart = [ike(GCM, PRFS[0], EXCHANGES[0]), ike(GCM, PRFS[1], EXCHANGES[1])];
    assert_eq!(offer_ike(&apart).len(), 2);
    // What is listed twice is offered once.
    assert_eq!(choices(&offer_ike(&[apart[0], apart[0]])).len(), 1);
}

#[test]
fn k_2_7_1_both_ends_agree_on_each_suite() {
    let suites = all_suites();
    let offered = offer_ike(&suites);
    for suite in suites.iter().copied() {
        let (chosen, answer) = select_ike(&[suite], &offered, 31).unwrap();
        assert_eq!(chosen, suite);
        assert_eq!(accept_ike(&suites, &[answer]), Some(suite));
    }
    for esn in [false, true] {
        for suite in [
            EspSuite::AesGcm16 { key_bits: 192 },
            EspSuite::ChaCha20Poly1305,
            EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha384 },
        ] {
            let wanted = EspProposal { suite, esn, key_exchange: None };
            let other = EspProposal { suite, esn: !esn, key_exchange: None };
            let offered = offer_esp(&[other, wanted], 0x1234_5678);
            let (chosen, mut answer, spi) = select_esp(&[wanted], &offered).unwrap();
            assert_eq!((chosen, spi), (wanted, 0x1234_5678));
            answer.spi = 0x8765_4321u32.to_be_bytes().to_vec();
            assert_eq!(accept_esp(&[other, wanted], &[answer]), Some((wanted, 0x8765_4321)));
            assert_eq!(select_esp(&[wanted], &offer_esp(&[other], 0x1234_5678)), None);
        }
    }
}

#[test]
fn k_2_7_1_a_suite_of_the_sent_key_exchange_goes_first() {
    let x25519 = ike(GCM, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let modp = ike(CBC, Prf::HmacSha256, KeyExchangeMethod::Modp2048);
    let offered = offer_ike(&[modp, x25519]);
    let chosen = |sent| select_ike(&[x25519, modp], &offered, sent).unwrap().0;
    assert_eq!([31, 14, 19].map(chosen), [x25519, modp, x25519]);
}

#[test]
fn k_2_7_1_an_answer_that_was_not_offered_is_refused() {
    let suites = [
        ike(GCM, Prf::HmacSha384, KeyExchangeMethod::X25519),
        ike(CBC, Prf::HmacSha256, KeyExchangeMethod::Ecp256),
    ];
    let offered = offer_ike(&suites);
    for (suite, answer) in suites.into_iter().zip(choices(&offered)) {
        let accept = |answer: &[Proposal]| accept_ike(&suites, answer);
        assert_eq!(accept(std::slice::from_ref(&answer)), Some(suite));
        let refused = |change: &dyn Fn(&mut Proposal)| {
            let mut answer = answer.clone();
            change(&mut answer);
            assert_eq!(accept(&[answer.clone()]), None, "{answer:?}");
        };
        for kind in answer.transforms.iter().map(|t| t.kind) {
            refused(&|answer| answer.transforms.retain(|t| t.kind != kind));
            // More than one of a type: the same twice, and one that was not offered before it.
            refused(&|answer| {
                let again = transform(answer, kind).clone();
                answer.transforms.push(again);
            });
            refused(&|answer| answer.transforms.insert(0, Transform::new(kind, 2)));
            for id in [0, 1, 2, 3, 1024, u16::MAX] {
                refused(&|answer| transform(answer, kind).id = id);
            }
            refused(&|answer| transform(answer, kind).key_length = Some(192));
            refused(&|answer| {
                transform(answer, kind).unknown_attributes.push(TransformAttribute {
                    kind: 15,
                    value: TransformAttributeValue::Short(1),
                });
            });
        }
        refused(&|answer| answer.transforms.push(Transform::new(TransformType::ESN, 0)));
        refused(&|answer| answer.transforms.push(Transform::new(TransformType::ADDKE1, 36)));
        // The number says which proposal was taken: another's transforms are no answer to it.
        for number in [0, 3 - answer.number, 3, u8::MAX] {
            refused(&|answer| answer.number = number);
        }
        refused(&|answer| answer.protocol = Protocol::ESP);
        assert_eq!(accept(&[answer.clone(), answer.clone()]), None);
        assert_eq!(accept(&[]), None);
    }
}

#[test]
fn k_2_7_1_transforms_of_two_proposals_do_not_mix_in_an_answer() {
    let suites = [
        ike(GCM, Prf::HmacSha384, KeyExchangeMethod::X25519),
        ike(GCM, Prf::HmacSha256, KeyExchangeMethod::Ecp256),
    ];
    let offered = offer_ike(&suites);
    assert_eq!(offered.len(), 2);
    let mut mixed = offered[0].clone();
    transform(&mut mixed, TransformType::PRF).id = Prf::HmacSha256.id();
    assert_eq!(accept_ike(&suites, &[mixed]), None);
}

#[test]
fn k_2_7_1_an_aead_with_integrity_is_not_acceptable() {
    let suite = ike(GCM, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let with = |ids: &[u16]| {
        let mut offered = offer_ike(&[suite]);
        let integrity = ids.iter().map(|id| Transform::new(TransformType::INTEG, *id));
        offered[0].transforms.extend(integrity);
        select_ike(&[suite], &offered, 31)
    };
    assert_eq!(with(&[12]), None);
    assert_eq!(with(&[14, 13]), None);
    // NONE is as good as no integrity algorithm, also as one of several (RFC 7296 §3.3.3).
    for ids in [&[0][..], &[12, 0], &[0, 12]] {
        let (_, answer) = with(ids).unwrap();
        let chosen: Vec<u16> = answer.of(TransformType::INTEG).map(|t| t.id).collect();
        assert_eq!(chosen, [0]);
        assert_eq!(accept_ike(&[suite], &[answer]), Some(suite));
    }
    // And the other way round: CBC needs one that is not NONE.
    let suite = ike(CBC, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let mut offered = offer_ike(&[suite]);
    transform(&mut offered[0], TransformType::INTEG).id = 0;
    assert_eq!(select_ike(&[suite], &offered, 31), None);
    offered[0].transforms.retain(|t| t.kind != TransformType::INTEG);
    assert_eq!(select_ike(&[suite], &offered, 31), None);
    // An ESP proposal is held to the same.
    let esp =
        EspProposal { suite: EspSuite::AesGcm16 { key_bits: 256 }, esn: false, key_exchange: None };
    let mut offered = offer_esp(&[esp], 0x1234_5678);
    offered[0].transforms.push(Transform::new(TransformType::INTEG, 12));
    assert_eq!(select_esp(&[esp], &offered), None);
    offered[0].transforms.push(Transform::new(TransformType::INTEG, 0));
    assert!(select_esp(&[esp], &offered).is_some());
}

#[test]
fn k_2_7_1_a_missing_key_length_is_not_acceptable() {
    for encryption in [GCM, CBC] {
        let suite = ike(encryption, Prf::HmacSha256, KeyExchangeMethod::X25519);
        for bits in [None, Some(0), Some(192), Some(255)] {
            let mut offered = offer_ike(&[suite]);
            transform(&mut offered[0], TransformType::ENCR).key_length = bits;
            assert_eq!(select_ike(&[suite], &offered, 31), None, "{bits:?}");
            assert_eq!(accept_ike(&[suite], &offered), None, "{bits:?}");
        }
    }
    // RFC 7634 §4: no Key Length with ChaCha20-Poly1305.
    let suite = ike(IkeEncryption::ChaCha20Poly1305, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let mut offered = offer_ike(&[suite]);
    transform(&mut offered[0], TransformType::ENCR).key_length = Some(256);
    assert_eq!(select_ike(&[suite], &offered, 31), None);
}

#[test]
fn k_3_3_6_an_unknown_attribute_makes_its_transform_unacceptable_alone() {
    let suite = ike(GCM, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let mut offered = offer_ike(&[suite]);
    let mut strange = transform(&mut offered[0], TransformType::ENCR).clone();
    strange
        .unknown_attributes
        .push(TransformAttribute { kind: 99, value: TransformAttributeValue::Long(vec![1, 2]) });
    offered[0].transforms.insert(0, strange.clone());
    let (_, answer) = select_ike(&[suite], &offered, 31).unwrap();
    assert_eq!(answer.transforms.len(), 3);
    assert!(answer.transforms.iter().all(|t| !t.has_unknown_attributes()));
    *transform(&mut offered[0], TransformType::ENCR) = strange;
    offered[0].transforms.remove(1);
    assert_eq!(select_ike(&[suite], &offered, 31), None);
}

#[test]
fn k_3_3_6_an_unknown_transform_type_makes_its_proposal_unacceptable_alone() {
    let suite = ike(GCM, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let mut offered = offer_ike(&[suite]);
    offered.push(Proposal { number: 2, ..offered[0].clone() });
    offered[0].transforms.push(Transform::new(TransformType(200), 1));
    let (_, answer) = select_ike(&[suite], &offered, 31).unwrap();
    assert_eq!(answer.number, 2);
    // What we do not know among what we do: the rest of that type is as good as ever.
    offered[1].transforms.insert(0, Transform::new(TransformType::PRF, 1024));
    let (_, answer) = select_ike(&[suite], &offered, 31).unwrap();
    assert_eq!(answer.of(TransformType::PRF).map(|t| t.id).collect::<Vec<_>>(), [5]);
    // A further key exchange is let go if the peer allows it (RFC 9370 §2.2.1).
    offered.remove(1);
    offered[0].transforms.pop();
    offered[0].transforms.push(Transform::new(TransformType::ADDKE1, 36));
    assert_eq!(select_ike(&[suite], &offered, 31), None);
    offered[0].transforms.push(Transform::new(TransformType::ADDKE1, 0));
    assert!(select_ike(&[suite], &offered, 31).is_some());
}

#[test]
fn k_3_3_1_a_proposal_of_another_protocol_or_spi_size_is_not_taken() {
    let suite = ike(GCM, Prf::HmacSha256, KeyExchangeMethod::X25519);
    let mut offered = offer_ike(&[suite]);
    offered[0].spi = vec![1; 8];
    assert_eq!(select_ike(&[suite], &offered, 31), None);
    offered[0].spi.clear();
    offered[0].protocol = Protocol::AH;
    assert_eq!(select_ike(&[suite], &offered, 31), None);

    let esp = EspProposal { suite: EspSuite::ChaCha20Poly1305, esn: false, key_exchange: None };
    for spi in [&[][..], &[1; 3], &[1; 8], &[0, 0, 0, 0], &[0, 0, 0, 255]] {
        let mut offered = offer_esp(&[esp], 0x1234_5678);
        offered[0].spi = spi.to_vec();
        assert_eq!(select_esp(&[esp], &offered), None, "{spi:?}");
        assert_eq!(accept_esp(&[esp], &offered), None, "{spi:?}");
    }
}
