//! What IKE_AUTH needs on both sides (RFC 7296 §2.15, §2.16).

use crate::{
    config::{ConnectionConfig, Role},
    crypto::{psk_auth, signed_octets, verify_psk_auth},
    wire::{AuthMethod, Identification, Payload},
};

use super::envelope::Keys;

/// The two IKE_SA_INIT messages and their nonces, which both AUTH values cover.
pub(crate) struct InitExchange<'a> {
    pub(crate) request: &'a [u8],
    pub(crate) response: &'a [u8],
    pub(crate) nonce_i: &'a [u8],
    pub(crate) nonce_r: &'a [u8],
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
    pub(crate) fn sign(
        &self,
        signer: Role,
        keys: &Keys,
        id: &Identification,
        config: &ConnectionConfig,
    ) -> Payload {
        let signed = self.signed(signer, keys, id);
        let data = psk_auth(keys.suite.prf, &config.psk, &signed);
        Payload::Authentication { method: AuthMethod::SHARED_KEY, data }
    }

    /// Whether the peer's AUTH payload proves `id` with the pre-shared key of `config`.
    pub(crate) fn verify(
        &self,
        signer: Role,
        keys: &Keys,
        id: &Identification,
        config: &ConnectionConfig,
        (method, auth): (AuthMethod, &[u8]),
    ) -> bool {
        let signed = self.signed(signer, keys, id);
        method == AuthMethod::SHARED_KEY
            && verify_psk_auth(keys.suite.prf, &config.psk, &signed, auth).is_ok()
    }
}

/// The first AUTH payload of a message.
pub(crate) fn auth_payload(payloads: &[Payload]) -> Option<(AuthMethod, &[u8])> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Authentication { method, data } => Some((*method, data.as_slice())),
        _ => None,
    })
}
