//! The cryptography of IKEv2: key exchange, key derivation, the SK payload's protection, and the
//! small hashes of NAT detection and cookies.
//!
//! Primitives come from `ring`, `x25519-dalek`, `p256` and its siblings, `crypto-bigint`, `aes-gcm`
//! and `cbc`; this module holds what RFC 7296 and its companions say about how to use them. Nothing
//! here asks the operating system for randomness: whatever is random is drawn from
//! [`Random`](crate::Random).

pub mod auth_psk;
pub mod exchange;
pub mod kdf;
pub mod mac;
pub mod natd;
pub mod prf;
pub mod protect;
pub mod signature;
pub mod suite;

#[cfg(test)]
mod tests;

pub use auth_psk::{psk_auth, signed_octets, verify_psk_auth};
pub use exchange::{KeyExchange, respond};
pub use kdf::{SkKeys, derive_child, derive_ike, derive_ike_rekey};
pub use mac::{constant_time_eq, mac_sha256};
pub use natd::nat_detection_hash;
pub use protect::{Opener, Sealer};
pub use suite::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf};

/// Why a cryptographic operation failed; carries no secret and no octet of the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The peer's public value has the wrong length, is not on the curve (RFC 6989 §2.3) or not
    /// between 1 and the prime less 1 (RFC 6989 §2.1), or the shared secret that it leads to is all
    /// zeros (RFC 7748 §6.1).
    #[error("the peer's public key exchange value is invalid")]
    InvalidPublicValue,
    /// The body of an SK payload is too short, or no whole number of cipher blocks.
    #[error("the encrypted payload has an impossible length")]
    MalformedCiphertext,
    /// The integrity check value does not match the message.
    #[error("the integrity check failed")]
    IntegrityFailed,
    /// The Pad Length octet, which was authenticated, points in front of the plaintext.
    #[error("the padding of the encrypted payload is invalid")]
    InvalidPadding,
    /// The AUTH value does not match the pre-shared key.
    #[error("the pre-shared key authentication failed")]
    AuthenticationFailed,
    /// A key's length does not fit the algorithm, or the algorithm has no such key size: a misuse
    /// on our side.
    #[error("the key length does not fit the algorithm")]
    KeyLength,
    /// More octets were asked of prf+ than its 255 blocks hold (RFC 7296 §2.13).
    #[error("prf+ cannot give that many octets")]
    PrfPlusExhausted,
    /// All counter IVs of this key are used up; the IKE_SA has to be rekeyed.
    #[error("the encryption key has no unused IV left")]
    IvExhausted,
}
