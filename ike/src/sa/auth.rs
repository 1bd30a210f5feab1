//! What IKE_AUTH needs on both sides (RFC 7296 §2.15, §2.16), and what IKE_SA_INIT says about it
//! beforehand: the hashes that signatures may use (RFC 7427 §4) and the authorities that are trusted
//! (RFC 7296 §3.7).

use std::collections::BTreeSet;

use crate::{
    auth::{AuthError, AuthSignatureError, HashAlgorithms, LocalAuth, Proof, RemoteAuth, Trust},
    config::{ConnectionConfig, Role},
    crypto::signed_octets,
    time::Time,
    wire::{Identification, Identity, Notify, NotifyType, Payload},
};

use super::{Shared, envelope::Keys};

/// More authorities than this are not named in IKE_SA_INIT, which can't go in fragments: a CERTREQ
/// without any says as much (RFC 4945 §3.2).
const MOST_AUTHORITIES: usize = 16;

/// The two IKE_SA_INIT messages and their nonces, which both AUTH values cover, and what they said
/// about signatures.
pub(crate) struct InitExchange<'a> {
    pub(crate) request: &'a [u8],
    pub(crate) response: &'a [u8],
    pub(crate) nonce_i: &'a [u8],
    pub(crate) nonce_r: &'a [u8],
    /// the peer's SIGNATURE_HASH_ALGORITHMS, if that went both ways
    pub(crate) hashes: Option<HashAlgorithms>,
}

impl InitExchange<'_> {
    /// The octets that the side `signer` with this identity signs (RFC 7296 §2.15).
    fn signed(&self, signer: Role, keys: &Keys, id: &Identification) -> Vec<u8> {
        let prf = keys.suite.prf;
        match signer {
            Role::Initiator => {
                signed_octets(prf, &keys.sk.pi, self.request, self.nonce_r, &id.body())
            }
            Role::Responder => {
                signed_octets(prf, &keys.sk.pr, self.response, self.nonce_i, &id.body())
            }
        }
    }

    /// Our AUTH payload.
    pub(crate) fn prove(
        &self,
        signer: Role,
        keys: &Keys,
        id: &Identification,
        auth: &LocalAuth,
    ) -> Result<Payload, AuthError> {
        auth.prove(keys.suite.prf, &self.signed(signer, keys, id), self.hashes)
    }

    /// Checks that the peer is one of those that `config` is for, and proves it in its payloads.
    pub(crate) fn verify(
        &self,
        (signer, keys): (Role, &Keys),
        (id, identity): (&Identification, &Identity),
        config: &ConnectionConfig,
        payloads: &[Payload],
        (shared, now): (&Shared, Time),
    ) -> Result<(), AuthError> {
        config.remote_auth.verify(&Proof {
            expected: &config.remote_id,
            identity,
            payloads,
            prf: keys.suite.prf,
            signed: &self.signed(signer, keys, id),
            both_sent_hashes: self.hashes.is_some(),
            now: shared.wall_clock.at(now),
        })
    }
}

/// Why the peer's proof does not hold, for our own log.
pub(crate) fn complaint(peer: &Identity, config: &ConnectionConfig, error: &AuthError) -> String {
    match error {
        AuthError::Psk => {
            format!("{peer} does not have the pre-shared key of {:?}", config.name)
        }
        AuthError::Identity { .. } => error.to_string(),
        _ => format!("{peer}: {error}"),
    }
}

/// SIGNATURE_HASH_ALGORITHMS with what we accept (RFC 7427 §4).
pub(crate) fn hashes() -> Payload {
    let data = HashAlgorithms::OURS.emit();
    Payload::Notify(Notify::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, data))
}

/// What the peer's SIGNATURE_HASH_ALGORITHMS says, if it sent one.
pub(crate) fn read_hashes(
    payloads: &[Payload],
) -> Result<Option<HashAlgorithms>, AuthSignatureError> {
    let notify = payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::SIGNATURE_HASH_ALGORITHMS => Some(n),
        _ => None,
    });
    notify.map(|notify| HashAlgorithms::parse(&notify.data)).transpose()
}

impl Shared {
    fn answering(&self) -> impl Iterator<Item = &ConnectionConfig> {
        self.connections.iter().filter(|c| c.role == Role::Responder)
    }

    /// Whether some connection that an IKE_SA_INIT may be for uses signatures.
    pub(crate) fn responder_signs(&self) -> bool {
        self.answering().any(ConnectionConfig::uses_signatures)
    }

    /// The CERTREQ of our IKE_SA_INIT response: the authorities of all connections that it may be for.
    pub(crate) fn responder_requests(&self) -> Option<Payload> {
        let trusts: Vec<&Trust> = self
            .answering()
            .filter_map(|config| match &config.remote_auth {
                RemoteAuth::Certificate(trust) => Some(&**trust),
                RemoteAuth::Psk(_) => None,
            })
            .collect();
        let authorities: BTreeSet<[u8; 20]> =
            trusts.iter().flat_map(|trust| trust.authorities()).copied().collect();
        let named =
            if authorities.len() > MOST_AUTHORITIES { BTreeSet::new() } else { authorities };
        (!trusts.is_empty()).then(|| Trust::request_of(named))
    }
}
