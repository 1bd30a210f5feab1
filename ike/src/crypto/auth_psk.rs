//! Authentication with a pre-shared key, and the octets that every method signs (RFC 7296 §2.15).

use super::{CryptoError, mac::constant_time_eq, suite::Prf};
use crate::secret::Secret;

/// What a side signs: its own first message whole, the other side's nonce, and prf(SK_p, ID payload
/// without its generic header). `sk_p` is SK_pi for the initiator and SK_pr for the responder;
/// `message1` is the IKE_SA_INIT message that was answered or accepted, a cookie in it included.
pub fn signed_octets(
    prf: Prf,
    sk_p: &Secret,
    message1: &[u8],
    other_nonce: &[u8],
    id_payload_body: &[u8],
) -> Vec<u8> {
    let maced_id = prf.mac(sk_p.expose(), &[id_payload_body]);
    [message1, other_nonce, maced_id.expose()].concat()
}

/// The AUTH value prf(prf(PSK, "Key Pad for IKEv2"), signed octets). The MSK of an EAP method takes
/// the PSK's place (RFC 7296 §2.16).
pub fn psk_auth(prf: Prf, psk: &Secret, signed: &[u8]) -> Vec<u8> {
    // RFC 7296 §2.15: 17 ASCII octets, without a terminating zero.
    let key = prf.mac(psk.expose(), &[b"Key Pad for IKEv2"]);
    prf.mac(key.expose(), &[signed]).expose().to_vec()
}

/// Compares the peer's AUTH value with the one that the key gives, in constant time.
///
/// # Errors
/// [`CryptoError::AuthenticationFailed`] if they differ.
pub fn verify_psk_auth(
    prf: Prf,
    psk: &Secret,
    signed: &[u8],
    auth: &[u8],
) -> Result<(), CryptoError> {
    if constant_time_eq(&psk_auth(prf, psk, signed), auth) {
        Ok(())
    } else {
        Err(CryptoError::AuthenticationFailed)
    }
}
