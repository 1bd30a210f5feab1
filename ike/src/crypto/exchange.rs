//! Key exchange: Curve25519 (RFC 8031, RFC 7748) and the ECP groups (RFC 5903), with the tests of
//! the peer's value that RFC 6989 asks for. Private values are drawn from [`Random`], so a run can
//! be replayed.

use p256::elliptic_curve::sec1::ToSec1Point;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::{CryptoError, suite::KeyExchangeMethod};
use crate::{random::Random, secret::Secret};

/// Our private value of one key exchange, wiped when it is dropped, and the public value that belongs
/// to it. Never used for a second exchange (RFC 7296 §2.12 would allow it).
pub struct KeyExchange {
    method: KeyExchangeMethod,
    private: Private,
    public: Vec<u8>,
}

enum Private {
    X25519(StaticSecret),
    Ecp256(p256::SecretKey),
}

impl KeyExchange {
    /// Draws a private value from `random`.
    pub fn generate(method: KeyExchangeMethod, random: &mut Random) -> Self {
        loop {
            let mut scalar = Zeroizing::new([0; 32]);
            random.fill(scalar.as_mut());
            // An ECP scalar of 0 or of the group's order and above is drawn again, so that those
            // that stay are uniform.
            if let Some(exchange) = Self::from_scalar(method, &scalar) {
                return exchange;
            }
        }
    }

    /// The exchange with that private value; `None` if the group does not allow it.
    pub(super) fn from_scalar(method: KeyExchangeMethod, scalar: &[u8; 32]) -> Option<Self> {
        let (private, public) = match method {
            KeyExchangeMethod::X25519 => {
                let private = StaticSecret::from(*scalar);
                let public = x25519_dalek::PublicKey::from(&private).to_bytes().to_vec();
                (Private::X25519(private), public)
            }
            KeyExchangeMethod::Ecp256 => {
                let private = p256::SecretKey::from_slice(scalar).ok()?;
                let point = private.public_key().to_sec1_point(false);
                // RFC 5903 §7: x and y, without the octet that SEC 1 puts in front of them.
                let public = point.as_bytes().get(1..)?.to_vec();
                (Private::Ecp256(private), public)
            }
        };
        Some(KeyExchange { method, private, public })
    }

    /// The method.
    pub fn method(&self) -> KeyExchangeMethod {
        self.method
    }

    /// Our public value as the KE payload carries it: X25519's 32 octets, ECP's x and y.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret g^ir; of an ECP point it is the x coordinate (RFC 5903 §7).
    ///
    /// Takes `&self`: a forged first answer must not cost an initiator the exchange, as the true
    /// answer may still come (RFC 6989 §2.5, RFC 7296 §2.4).
    ///
    /// # Errors
    /// [`CryptoError::InvalidPublicValue`] if `peer_public` has not the exact length, is no point
    /// of the curve, or gives an all-zero secret.
    pub fn agree(&self, peer_public: &[u8]) -> Result<Secret, CryptoError> {
        // RFC 5903 §7, RFC 8031 §3.1: the length is fixed.
        if peer_public.len() != self.method.public_len() {
            return Err(CryptoError::InvalidPublicValue);
        }
        match &self.private {
            Private::X25519(private) => {
                let peer: [u8; 32] =
                    peer_public.try_into().map_err(|_| CryptoError::InvalidPublicValue)?;
                let shared = private.diffie_hellman(&x25519_dalek::PublicKey::from(peer));
                // RFC 7748 §6.1: a secret of all zeros, which a point of small order gives, would
                // be one that the peer chose alone. Values that are not canonical are accepted
                // (RFC 8031 §3.2).
                if !shared.was_contributory() {
                    return Err(CryptoError::InvalidPublicValue);
                }
                Ok(Secret::new(shared.as_bytes().to_vec()))
            }
            Private::Ecp256(private) => {
                let mut point = [0x04; 65];
                point[1..].copy_from_slice(peer_public);
                // RFC 6989 §2.3: both coordinates below the prime, and the point on the curve.
                let peer = p256::PublicKey::from_sec1_bytes(&point)
                    .map_err(|_| CryptoError::InvalidPublicValue)?;
                let shared = private.diffie_hellman(&peer);
                Ok(Secret::new(shared.raw_secret_bytes().to_vec()))
            }
        }
    }
}

impl std::fmt::Debug for KeyExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyExchange({:?})", self.method)
    }
}

/// The responder's whole part: our public value and the shared secret. A responder uses this rather
/// than [`KeyExchange`], because a method that encapsulates has no public value before the peer's.
///
/// # Errors
/// As [`KeyExchange::agree`].
pub fn respond(
    method: KeyExchangeMethod,
    random: &mut Random,
    peer_public: &[u8],
) -> Result<(Vec<u8>, Secret), CryptoError> {
    let exchange = KeyExchange::generate(method, random);
    let shared = exchange.agree(peer_public)?;
    Ok((exchange.public, shared))
}
