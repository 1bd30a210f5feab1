//! The pseudorandom function and prf+ (RFC 7296 §2.13).

use ring::hmac;

use super::{CryptoError, suite::Prf};
use crate::secret::Secret;

impl Prf {
    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Prf::HmacSha256 => hmac::HMAC_SHA256,
            Prf::HmacSha384 => hmac::HMAC_SHA384,
            Prf::HmacSha512 => hmac::HMAC_SHA512,
        }
    }

    /// prf(key, parts joined); [`Prf::out_len`] octets.
    pub fn mac(self, key: &[u8], parts: &[&[u8]]) -> Secret {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.algorithm(), key));
        for part in parts {
            context.update(part);
        }
        Secret::new(context.sign().as_ref().to_vec())
    }

    /// The first `len` octets of prf+(key, seed parts joined).
    ///
    /// # Errors
    /// [`CryptoError::PrfPlusExhausted`] if `len` is more than 255 blocks.
    pub fn prf_plus(self, key: &[u8], seed: &[&[u8]], len: usize) -> Result<Secret, CryptoError> {
        // RFC 7296 §2.13: the block counter is one octet and starts at 1.
        if len > 255 * self.out_len() {
            return Err(CryptoError::PrfPlusExhausted);
        }
        let key = hmac::Key::new(self.algorithm(), key);
        // Room for the last block whole: a vector that grows leaves copies behind.
        let mut out = Vec::with_capacity(len + self.out_len());
        let mut block: Option<hmac::Tag> = None;
        for counter in 1..=255u8 {
            if out.len() >= len {
                break;
            }
            let mut context = hmac::Context::with_key(&key);
            if let Some(previous) = &block {
                context.update(previous.as_ref());
            }
            for part in seed {
                context.update(part);
            }
            context.update(&[counter]);
            let tag = context.sign();
            out.extend_from_slice(tag.as_ref());
            block = Some(tag);
        }
        out.truncate(len);
        Ok(Secret::new(out))
    }
}
