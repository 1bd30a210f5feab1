//! Choosing algorithms (RFC 7296 §2.7, §3.3) for an IKE_SA and a CHILD_SA.
//!
//! A proposal offers every combination of its transforms. Suites of the configuration share one only
//! where all those combinations are listed, so that what the operator listed is what is offered, and
//! nothing that he did not combine.

use crate::{
    child::EspSuite,
    config::EspProposal,
    crypto::{
        IkeSuite,
        suite::{IkeEncryption, integrity_id},
    },
    wire::{Proposal, Protocol, Transform, TransformType},
};

/// What a suite needs: for each type the one transform.
type Want = Vec<(TransformType, u16, Option<u16>)>;

#[cfg(test)]
mod tests;

fn want_encryption(id: u16, key_bits: Option<u16>, integrity: Option<u16>) -> Want {
    let mut want = vec![(TransformType::ENCR, id, key_bits)];
    want.extend(integrity.map(|id| (TransformType::INTEG, id, None)));
    want
}

fn want_ike(suite: &IkeSuite) -> Want {
    let encryption: IkeEncryption = suite.encryption;
    let integrity = encryption.integrity().map(integrity_id);
    let mut want = want_encryption(encryption.id(), encryption.key_bits(), integrity);
    want.push((TransformType::PRF, suite.prf.id(), None));
    want.push((TransformType::KE, suite.key_exchange.id(), None));
    want
}

/// With `ke` for CREATE_CHILD_SA, in which a key exchange may stand (RFC 7296 §1.3.1); IKE_AUTH has none
/// (§1.2).
fn want_esp(proposal: &EspProposal, ke: bool) -> Want {
    let mut want = match proposal.suite {
        EspSuite::AesGcm16 { key_bits } => want_encryption(20, Some(key_bits), None),
        EspSuite::ChaCha20Poly1305 => want_encryption(28, None, None),
        EspSuite::AesCbc { key_bits, integrity } => {
            want_encryption(12, Some(key_bits), Some(integrity_id(integrity)))
        }
    };
    want.push((TransformType::ESN, u16::from(proposal.esn), None));
    if let Some(method) = proposal.key_exchange.filter(|_| ke) {
        want.push((TransformType::KE, method.id(), None));
    }
    want
}

/// Suites that share a proposal, best first: their number in the configuration, and for each type
/// the transforms. The combinations of the transforms are the suites.
struct Shared {
    suites: Vec<usize>,
    transforms: Vec<Want>,
}

impl Shared {
    /// Takes the suites of `other` in if the combinations stay those that are listed, which is so if
    /// one type alone differs.
    fn join(&mut self, other: &Shared) -> bool {
        if self.transforms.len() != other.transforms.len() {
            return false;
        }
        let mut pairs = self.transforms.iter_mut().zip(&other.transforms).filter(|(a, b)| a != b);
        let (Some((ours, theirs)), None) = (pairs.next(), pairs.next()) else { return false };
        if ours.first().map(|transform| transform.0) != theirs.first().map(|transform| transform.0)
        {
            return false;
        }
        ours.extend(theirs);
        self.suites.extend(&other.suites);
        self.suites.sort_unstable();
        true
    }
}

/// The fewest proposals that joining by pairs leads to, in the order of their best suites.
fn share(wants: &[Want]) -> Vec<Shared> {
    let mut proposals: Vec<Shared> = Vec::new();
    for (index, want) in wants.iter().enumerate() {
        // A suite that is listed twice is offered once.
        if wants.iter().position(|other| other == want) == Some(index) {
            let transforms = want.iter().map(|transform| vec![*transform]).collect();
            proposals.push(Shared { suites: vec![index], transforms });
        }
    }
    while let Some(joined) = join_one(&mut proposals) {
        proposals.remove(joined);
    }
    proposals
}

/// Joins the first two that can be joined; the index of the one that is then superfluous.
fn join_one(proposals: &mut [Shared]) -> Option<usize> {
    (1..proposals.len()).find_map(|at| {
        let (head, tail) = proposals.split_at_mut(at);
        let (ours, tail) = (head.last_mut()?, &*tail);
        Some(at + tail.iter().position(|other| ours.join(other))?)
    })
}

fn offer(wants: impl IntoIterator<Item = Want>, protocol: Protocol, spi: &[u8]) -> Vec<Proposal> {
    let wants: Vec<Want> = wants.into_iter().collect();
    (1..=u8::MAX)
        .zip(share(&wants))
        .map(|(number, shared)| Proposal {
            number,
            protocol,
            spi: spi.to_vec(),
            transforms: shared
                .transforms
                .into_iter()
                .flatten()
                .map(|(kind, id, bits)| Transform { key_length: bits, ..Transform::new(kind, id) })
                .collect(),
        })
        .collect()
}

/// The answer to `offered` that takes `want` out of it, if it can be taken.
///
/// A type that we do not want is let go if it can be: its NONE is taken (RFC 7296 §3.3.6). So an
/// AEAD with an integrity algorithm other than NONE is not acceptable (RFC 7296 §3.3.3, RFC 5282 §8).
fn select(want: &Want, offered: &Proposal) -> Option<Proposal> {
    let mut kinds: Vec<TransformType> = offered.transforms.iter().map(|t| t.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if want.iter().any(|(kind, ..)| !kinds.contains(kind)) {
        return None;
    }
    let transforms = kinds
        .into_iter()
        .map(|kind| {
            let (_, id, bits) = *want.iter().find(|w| w.0 == kind).unwrap_or(&(kind, 0, None));
            let fits = |t: &&Transform| {
                t.kind == kind && t.id == id && !t.has_unknown_attributes() && t.key_length == bits
            };
            offered.transforms.iter().find(fits).cloned()
        })
        .collect::<Option<Vec<_>>>()?;
    Some(Proposal { transforms, ..offered.clone() })
}

/// The suite of ours that `answer` takes out of the proposal of that number: one transform of each
/// type, unmodified (RFC 7296 §2.7).
fn accept(wants: &[Want], protocol: Protocol, answer: &[Proposal]) -> Option<usize> {
    let [answer] = answer else { return None };
    let number = usize::from(answer.number).checked_sub(1)?;
    let offered = share(wants).into_iter().nth(number)?;
    if answer.protocol != protocol {
        return None;
    }
    // An AEAD's integrity algorithm may be said to be NONE (RFC 7296 §3.3).
    let real = |t: &&Transform| !(t.id == 0 && t.kind == TransformType::INTEG);
    let count = answer.transforms.iter().filter(real).count();
    offered.suites.into_iter().find(|suite| {
        wants.get(*suite).is_some_and(|want| {
            count == want.len()
                && select(want, answer)
                    .is_some_and(|selected| selected.transforms.len() == answer.transforms.len())
        })
    })
}

/// The SA payload of IKE_SA_INIT, or with our `spi` that of a rekey of the IKE_SA (RFC 7296 §3.3.1).
pub(crate) fn offer_ike(suites: &[IkeSuite], spi: &[u8]) -> Vec<Proposal> {
    offer(suites.iter().map(want_ike), Protocol::IKE, spi)
}

/// Our best suite among the offered ones, and the proposal to answer with.
///
/// A suite of the key exchange method that the peer has sent a value for goes first, which spares a
/// round trip (RFC 7296 §1.2).
pub(crate) fn select_ike(
    suites: &[IkeSuite],
    offered: &[Proposal],
    sent_method: u16,
) -> Option<(IkeSuite, Proposal)> {
    best_ike(suites, offered, sent_method, 0)
}

/// The same in a rekey of the IKE_SA, with the SPI that the peer chose.
pub(crate) fn select_ike_rekey(
    suites: &[IkeSuite],
    offered: &[Proposal],
    sent_method: u16,
) -> Option<(IkeSuite, Proposal, u64)> {
    let (suite, answer) = best_ike(suites, offered, sent_method, 8)?;
    let spi = ike_spi(&answer.spi)?;
    Some((suite, answer, spi))
}

fn best_ike(
    suites: &[IkeSuite],
    offered: &[Proposal],
    sent_method: u16,
    spi_len: usize,
) -> Option<(IkeSuite, Proposal)> {
    let sent = suites.iter().filter(|suite| suite.key_exchange.id() == sent_method);
    sent.chain(suites).find_map(|suite| {
        let want = want_ike(suite);
        offered
            .iter()
            .filter(|p| p.protocol == Protocol::IKE && p.spi.len() == spi_len)
            .find_map(|p| Some((*suite, select(&want, p)?)))
    })
}

/// The suite that the responder chose out of [`offer_ike`]; `None` if it broke the rules.
pub(crate) fn accept_ike(suites: &[IkeSuite], answer: &[Proposal]) -> Option<IkeSuite> {
    let wants: Vec<Want> = suites.iter().map(want_ike).collect();
    suites.get(accept(&wants, Protocol::IKE, answer)?).copied()
}

/// The same in a rekey of the IKE_SA, with the SPI that the responder chose.
pub(crate) fn accept_ike_rekey(
    suites: &[IkeSuite],
    answer: &[Proposal],
) -> Option<(IkeSuite, u64)> {
    Some((accept_ike(suites, answer)?, ike_spi(&answer.first()?.spi)?))
}

/// An IKE SPI: eight octets, not zero (RFC 7296 §3.1).
fn ike_spi(spi: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(spi.try_into().ok()?)).filter(|spi| *spi != 0)
}

/// The SA payload that offers a CHILD_SA with our inbound `spi`, with `ke` in CREATE_CHILD_SA.
pub(crate) fn offer_esp(proposals: &[EspProposal], spi: u32, ke: bool) -> Vec<Proposal> {
    let wants = proposals.iter().map(|proposal| want_esp(proposal, ke));
    offer(wants, Protocol::ESP, &spi.to_be_bytes())
}

/// Our best ESP proposal among the offered ones, the proposal to answer with (whose SPI is still the
/// peer's) and the peer's SPI. In CREATE_CHILD_SA there is also the method of the peer's KE payload, if
/// it has one: a proposal with that goes first, which spares a round trip (RFC 7296 §1.3.1).
pub(crate) fn select_esp(
    proposals: &[EspProposal],
    offered: &[Proposal],
    create: Option<Option<u16>>,
) -> Option<(EspProposal, Proposal, u32)> {
    let sent = create.flatten();
    let fits = |ours: &&EspProposal| ours.key_exchange.map(|method| method.id()) == sent;
    let first = proposals.iter().filter(|ours| create.is_some() && fits(ours));
    first.chain(proposals).find_map(|ours| {
        let want = want_esp(ours, create.is_some());
        offered.iter().filter(|p| p.protocol == Protocol::ESP).find_map(|p| {
            let spi = esp_spi(&p.spi)?;
            Some((*ours, select(&want, p)?, spi))
        })
    })
}

/// What the responder chose out of [`offer_esp`], and its SPI.
pub(crate) fn accept_esp(
    proposals: &[EspProposal],
    answer: &[Proposal],
    ke: bool,
) -> Option<(EspProposal, u32)> {
    let wants: Vec<Want> = proposals.iter().map(|proposal| want_esp(proposal, ke)).collect();
    let index = accept(&wants, Protocol::ESP, answer)?;
    Some((*proposals.get(index)?, esp_spi(&answer.first()?.spi)?))
}

/// A usable ESP SPI: four octets, not of the reserved ones (RFC 4303 §2.1).
fn esp_spi(spi: &[u8]) -> Option<u32> {
    let spi = u32::from_be_bytes(spi.try_into().ok()?);
    (spi > 255).then_some(spi)
}
