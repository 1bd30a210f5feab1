//! Key exchange: Curve25519 (RFC 8031, RFC 7748), the ECP groups (RFC 5903) and the MODP groups
//! (RFC 3526), with the tests of the peer's value that RFC 6989 asks for. Private values are drawn
//! from [`Random`], so a run can be replayed.

use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use self::modp::{Exponent, Group};
use super::{CryptoError, suite::KeyExchangeMethod};
use crate::{random::Random, secret::Secret};

mod ecp;
mod modp;

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
    Ecp384(p384::SecretKey),
    Ecp521(p521::SecretKey),
    Modp(&'static Group, Exponent),
}

/// Octets of a private value.
fn private_len(method: KeyExchangeMethod) -> usize {
    match method {
        KeyExchangeMethod::X25519 | KeyExchangeMethod::Ecp256 => 32,
        KeyExchangeMethod::Ecp384 => 48,
        KeyExchangeMethod::Ecp521 => 66,
        // RFC 3526 §8: at least 220, 260 and 300 bits, twice the strength of the group.
        KeyExchangeMethod::Modp2048 => 32,
        KeyExchangeMethod::Modp3072 => 40,
        KeyExchangeMethod::Modp4096 => 48,
    }
}

impl KeyExchange {
    /// Draws a private value from `random`.
    pub fn generate(method: KeyExchangeMethod, random: &mut Random) -> Self {
        loop {
            let mut private = Zeroizing::new(vec![0; private_len(method)]);
            random.fill(&mut private);
            // The order of ECP-521 has 521 bits; more in the first octet could never be below it.
            if let (KeyExchangeMethod::Ecp521, Some(first)) = (method, private.first_mut()) {
                *first &= 0x01;
            }
            // An ECP scalar of 0 or of the group's order and above is drawn again, so that those
            // that stay are uniform.
            if let Some(exchange) = Self::from_private(method, &private) {
                return exchange;
            }
        }
    }

    /// The exchange with that private value; `None` if the group does not allow it.
    pub(super) fn from_private(method: KeyExchangeMethod, octets: &[u8]) -> Option<Self> {
        let modp = |group: &'static Group| {
            let exponent = group.exponent(octets)?;
            let public = group.public(&exponent);
            Some((Private::Modp(group, exponent), public))
        };
        let (private, public) = match method {
            KeyExchangeMethod::X25519 => {
                let private = StaticSecret::from(<[u8; 32]>::try_from(octets).ok()?);
                let public = x25519_dalek::PublicKey::from(&private).to_bytes().to_vec();
                (Private::X25519(private), public)
            }
            KeyExchangeMethod::Ecp256 => {
                let private = p256::SecretKey::from_slice(octets).ok()?;
                let public = ecp::public(&private)?;
                (Private::Ecp256(private), public)
            }
            KeyExchangeMethod::Ecp384 => {
                let private = p384::SecretKey::from_slice(octets).ok()?;
                let public = ecp::public(&private)?;
                (Private::Ecp384(private), public)
            }
            KeyExchangeMethod::Ecp521 => {
                let private = p521::SecretKey::from_slice(octets).ok()?;
                let public = ecp::public(&private)?;
                (Private::Ecp521(private), public)
            }
            KeyExchangeMethod::Modp2048 => modp(&modp::MODP_2048)?,
            KeyExchangeMethod::Modp3072 => modp(&modp::MODP_3072)?,
            KeyExchangeMethod::Modp4096 => modp(&modp::MODP_4096)?,
        };
        Some(KeyExchange { method, private, public })
    }

    /// The method.
    pub fn method(&self) -> KeyExchangeMethod {
        self.method
    }

    /// Our public value as the KE payload carries it: X25519's 32 octets, ECP's x and y, MODP's
    /// number with zeros in front up to the prime's length.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret g^ir; of an ECP point it is the x coordinate (RFC 5903 §7), of MODP the
    /// number with zeros in front up to the prime's length (RFC 7296 §2.14).
    ///
    /// Takes `&self`: a forged first answer must not cost an initiator the exchange, as the true
    /// answer may still come (RFC 6989 §2.5, RFC 7296 §2.4).
    ///
    /// # Errors
    /// [`CryptoError::InvalidPublicValue`] if `peer_public` has not the exact length, is no point
    /// of the curve or no element of the group to use, or gives an all-zero secret.
    pub fn agree(&self, peer_public: &[u8]) -> Result<Secret, CryptoError> {
        // RFC 5903 §7, RFC 8031 §3.1, RFC 7296 §3.4: the length is fixed.
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
            Private::Ecp256(private) => ecp::agree(private, peer_public),
            Private::Ecp384(private) => ecp::agree(private, peer_public),
            Private::Ecp521(private) => ecp::agree(private, peer_public),
            Private::Modp(group, exponent) => group.agree(exponent, peer_public),
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

/// The prime of a MODP group, as long as a public value.
#[cfg(test)]
pub(super) fn modp_prime(method: KeyExchangeMethod) -> Vec<u8> {
    match KeyExchange::from_private(method, &[1]).map(|exchange| exchange.private) {
        Some(Private::Modp(group, _)) => group.prime(),
        _ => Vec::new(),
    }
}
