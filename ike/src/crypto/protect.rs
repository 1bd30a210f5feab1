//! The protection of the SK payload: AES-CBC with HMAC (RFC 7296 §3.14), AES-GCM (RFC 5282) and
//! ChaCha20-Poly1305 (RFC 7634). The body is what follows the payload's generic header (in a
//! fragment of RFC 7383, what follows Total Fragments): IV, ciphertext, ICV.

use aes_gcm::{
    AeadInOut, KeyInit,
    aead::{array::Array, consts::U12},
};
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, inout::InOutBuf};
use ring::{aead, hmac};
use zeroize::Zeroizing;

use super::{CryptoError, mac::constant_time_eq, suite::IkeEncryption};
use crate::{child::HmacSha2, random::Random, secret::Secret};

const BLOCK: usize = 16;
const AEAD_IV: usize = 8;
const AEAD_TAG: usize = 16;

/// Seals what one side of one IKE_SA sends. Made once per IKE_SA and never again from the same
/// keys: the IVs of an AEAD are counted in it.
pub struct Sealer {
    cipher: Cipher,
    sealed: u64,
}

impl Sealer {
    /// With SK_ei and SK_ai for the original initiator, SK_er and SK_ar for the original responder;
    /// `sk_a` is empty with an AEAD.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] if the keys do not fit the algorithm.
    pub fn new(
        encryption: IkeEncryption,
        sk_e: &Secret,
        sk_a: &Secret,
    ) -> Result<Self, CryptoError> {
        Ok(Sealer { cipher: Cipher::new(encryption, sk_e, sk_a)?, sealed: 0 })
    }

    /// Octets of the body that [`Sealer::seal`] makes of `plain_len` octets of payloads.
    pub fn sealed_len(&self, plain_len: usize) -> usize {
        self.cipher.sealed_len(plain_len)
    }

    /// The body for the chain of payloads `plain`. `prefix` is all that stands in front of the
    /// body, from the IKE header on, with the lengths that [`Sealer::sealed_len`] leads to already
    /// in it.
    ///
    /// # Errors
    /// [`CryptoError::IvExhausted`] after 2^64 - 1 messages.
    pub fn seal(
        &mut self,
        random: &mut Random,
        prefix: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, CryptoError> {
        match &self.cipher {
            Cipher::Aead(cipher) => {
                // RFC 5282 §3.1: never the same IV twice under one key; a counter gives that.
                self.sealed = self.sealed.checked_add(1).ok_or(CryptoError::IvExhausted)?;
                cipher.seal(self.sealed.to_be_bytes(), prefix, plain)
            }
            // RFC 7296 §3.14: a CBC IV is not predictable.
            Cipher::Cbc(cipher) => Ok(cipher.seal(random.array(), prefix, plain)),
        }
    }

    /// As [`Sealer::seal`] with the IV of a published example.
    #[cfg(test)]
    pub(super) fn seal_with_iv(&self, iv: &[u8], prefix: &[u8], plain: &[u8]) -> Vec<u8> {
        match &self.cipher {
            Cipher::Aead(cipher) => cipher.seal(iv.try_into().unwrap(), prefix, plain).unwrap(),
            Cipher::Cbc(cipher) => cipher.seal(iv.try_into().unwrap(), prefix, plain),
        }
    }
}

/// Opens what the other side of one IKE_SA sends.
pub struct Opener(Cipher);

impl Opener {
    /// With SK_ei and SK_ai for what the original initiator sent, SK_er and SK_ar for what the
    /// original responder sent; `sk_a` is empty with an AEAD.
    ///
    /// # Errors
    /// [`CryptoError::KeyLength`] if the keys do not fit the algorithm.
    pub fn new(
        encryption: IkeEncryption,
        sk_e: &Secret,
        sk_a: &Secret,
    ) -> Result<Self, CryptoError> {
        Ok(Opener(Cipher::new(encryption, sk_e, sk_a)?))
    }

    /// The chain of payloads in `body`, padding taken off. `prefix` is all that stands in front of
    /// the body, from the IKE header on, as it was received. The integrity check comes before all
    /// else that looks at the content.
    ///
    /// # Errors
    /// [`CryptoError::MalformedCiphertext`] and [`CryptoError::IntegrityFailed`] for what anyone
    /// could have sent; [`CryptoError::InvalidPadding`] for what only the peer can have sent.
    pub fn open(&self, prefix: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let mut plain = match &self.0 {
            Cipher::Aead(cipher) => cipher.open(prefix, body)?,
            Cipher::Cbc(cipher) => cipher.open(prefix, body)?,
        };
        // RFC 7296 §3.14: the last octet is the Pad Length; any content of the padding is accepted.
        let pad = plain.pop().ok_or(CryptoError::InvalidPadding)?;
        let len = plain.len().checked_sub(usize::from(pad)).ok_or(CryptoError::InvalidPadding)?;
        plain.truncate(len);
        Ok(plain)
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opener")
    }
}

/// One direction's keys, expanded.
enum Cipher {
    Aead(Aead),
    Cbc(Box<Cbc>),
}

impl Cipher {
    fn new(encryption: IkeEncryption, sk_e: &Secret, sk_a: &Secret) -> Result<Self, CryptoError> {
        if sk_e.len() != encryption.encryption_key_len()
            || sk_a.len() != encryption.integrity_key_len()
        {
            return Err(CryptoError::KeyLength);
        }
        match encryption {
            IkeEncryption::AesCbc { key_bits, integrity } => {
                Ok(Cipher::Cbc(Box::new(Cbc::new(key_bits, sk_e, integrity, sk_a)?)))
            }
            IkeEncryption::AesGcm16 { .. } | IkeEncryption::ChaCha20Poly1305 => {
                Ok(Cipher::Aead(Aead::new(encryption, sk_e)?))
            }
        }
    }

    fn sealed_len(&self, plain_len: usize) -> usize {
        match self {
            Cipher::Aead(_) => AEAD_IV + plain_len + 1 + AEAD_TAG,
            Cipher::Cbc(cipher) => BLOCK + padded_len(plain_len) + cipher.icv_len,
        }
    }
}

/// Octets of the payloads, their padding to whole blocks and the Pad Length octet.
fn padded_len(plain_len: usize) -> usize {
    (plain_len + 1).next_multiple_of(BLOCK)
}

/// An AEAD with a salt of 4 octets in front of an IV of 8.
struct Aead {
    key: AeadKey,
    salt: [u8; 4],
}

enum AeadKey {
    Ring(Box<aead::LessSafeKey>),
    /// `ring` has no AES-192.
    Aes192Gcm(Box<aes_gcm::AesGcm<aes::Aes192, U12>>),
}

impl Aead {
    fn new(encryption: IkeEncryption, sk_e: &Secret) -> Result<Self, CryptoError> {
        // RFC 5282 §7.1: the salt is the tail of the key.
        let (key, salt) = sk_e.expose().split_last_chunk::<4>().ok_or(CryptoError::KeyLength)?;
        let algorithm = match encryption {
            IkeEncryption::AesGcm16 { key_bits: 128 } => &aead::AES_128_GCM,
            IkeEncryption::AesGcm16 { key_bits: 256 } => &aead::AES_256_GCM,
            IkeEncryption::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            IkeEncryption::AesGcm16 { key_bits: 192 } => {
                let key =
                    aes_gcm::AesGcm::new_from_slice(key).map_err(|_| CryptoError::KeyLength)?;
                return Ok(Aead { key: AeadKey::Aes192Gcm(Box::new(key)), salt: *salt });
            }
            _ => return Err(CryptoError::KeyLength),
        };
        let key = aead::UnboundKey::new(algorithm, key).map_err(|_| CryptoError::KeyLength)?;
        Ok(Aead { key: AeadKey::Ring(Box::new(aead::LessSafeKey::new(key))), salt: *salt })
    }

    fn nonce(&self, iv: [u8; AEAD_IV]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&iv);
        nonce
    }

    fn seal(&self, iv: [u8; AEAD_IV], prefix: &[u8], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
        // Room for all of it at once: a vector that grows would leave plaintext behind.
        let mut body = Vec::with_capacity(AEAD_IV + plain.len() + 1 + AEAD_TAG);
        body.extend_from_slice(&iv);
        body.extend_from_slice(plain);
        // RFC 5282 §3: no padding is needed; its length octet is.
        body.push(0);
        let nonce = self.nonce(iv);
        let content = &mut body[AEAD_IV..];
        // Both fail only beyond 2^32 blocks, which no datagram reaches.
        let tag: [u8; AEAD_TAG] = match &self.key {
            AeadKey::Ring(key) => key
                .seal_in_place_separate_tag(
                    aead::Nonce::assume_unique_for_key(nonce),
                    aead::Aad::from(prefix),
                    content,
                )
                .ok()
                .and_then(|tag| tag.as_ref().try_into().ok()),
            AeadKey::Aes192Gcm(key) => key
                .encrypt_inout_detached(&Array(nonce), prefix, InOutBuf::from(content))
                .ok()
                .map(|tag| tag.0),
        }
        .ok_or(CryptoError::MalformedCiphertext)?;
        body.extend_from_slice(&tag);
        Ok(body)
    }

    fn open(&self, prefix: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (iv, sealed) =
            body.split_first_chunk::<AEAD_IV>().ok_or(CryptoError::MalformedCiphertext)?;
        let (content, tag) =
            sealed.split_last_chunk::<AEAD_TAG>().ok_or(CryptoError::MalformedCiphertext)?;
        let nonce = self.nonce(*iv);
        let mut plain = Zeroizing::new(content.to_vec());
        match &self.key {
            AeadKey::Ring(key) => key
                .open_in_place_separate_tag(
                    aead::Nonce::assume_unique_for_key(nonce),
                    aead::Aad::from(prefix),
                    aead::Tag::from(*tag),
                    &mut plain,
                    0..,
                )
                .map(|_| ())
                .map_err(|_| CryptoError::IntegrityFailed)?,
            AeadKey::Aes192Gcm(key) => key
                .decrypt_inout_detached(
                    &Array(nonce),
                    prefix,
                    InOutBuf::from(plain.as_mut_slice()),
                    &Array(*tag),
                )
                .map_err(|_| CryptoError::IntegrityFailed)?,
        }
        Ok(plain)
    }
}

/// AES-CBC, then HMAC-SHA-2 over the message so far.
struct Cbc {
    aes: Aes,
    mac: hmac::Key,
    icv_len: usize,
}

enum Aes {
    Aes128(aes::Aes128),
    Aes192(aes::Aes192),
    Aes256(aes::Aes256),
}

impl Cbc {
    fn new(
        key_bits: u16,
        sk_e: &Secret,
        integrity: HmacSha2,
        sk_a: &Secret,
    ) -> Result<Self, CryptoError> {
        let key = sk_e.expose();
        let aes = match key_bits {
            128 => aes::Aes128::new_from_slice(key).map(Aes::Aes128),
            192 => aes::Aes192::new_from_slice(key).map(Aes::Aes192),
            256 => aes::Aes256::new_from_slice(key).map(Aes::Aes256),
            _ => return Err(CryptoError::KeyLength),
        }
        .map_err(|_| CryptoError::KeyLength)?;
        let algorithm = match integrity {
            HmacSha2::Sha256 => hmac::HMAC_SHA256,
            HmacSha2::Sha384 => hmac::HMAC_SHA384,
            HmacSha2::Sha512 => hmac::HMAC_SHA512,
        };
        let mac = hmac::Key::new(algorithm, sk_a.expose());
        Ok(Cbc { aes, mac, icv_len: integrity.icv_len() })
    }

    /// HMAC over the prefix and the body up to the ICV; its head is the ICV (RFC 4868 §2.1).
    fn mac(&self, prefix: &[u8], body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(prefix);
        context.update(body);
        context.sign()
    }

    fn seal(&self, iv: [u8; BLOCK], prefix: &[u8], plain: &[u8]) -> Vec<u8> {
        let padded = padded_len(plain.len());
        let pad = padded - plain.len() - 1;
        // Room for all of it at once: a vector that grows would leave plaintext behind.
        let mut body = Vec::with_capacity(BLOCK + padded + self.icv_len);
        body.extend_from_slice(&iv);
        body.extend_from_slice(plain);
        body.resize(BLOCK + padded - 1, 0);
        // At most 15: only what fills up the last block.
        body.push(pad as u8);
        let (blocks, _) = Array::slice_as_chunks_mut(&mut body[BLOCK..]);
        match &self.aes {
            Aes::Aes128(aes) => {
                cbc::Encryptor::inner_iv_init(aes, &Array(iv)).encrypt_blocks(blocks)
            }
            Aes::Aes192(aes) => {
                cbc::Encryptor::inner_iv_init(aes, &Array(iv)).encrypt_blocks(blocks)
            }
            Aes::Aes256(aes) => {
                cbc::Encryptor::inner_iv_init(aes, &Array(iv)).encrypt_blocks(blocks)
            }
        }
        let tag = self.mac(prefix, &body);
        body.extend(tag.as_ref().iter().take(self.icv_len));
        body
    }

    fn open(&self, prefix: &[u8], body: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
        let (message, icv) = body
            .len()
            .checked_sub(self.icv_len)
            .and_then(|at| body.split_at_checked(at))
            .ok_or(CryptoError::MalformedCiphertext)?;
        let (iv, content) =
            message.split_first_chunk::<BLOCK>().ok_or(CryptoError::MalformedCiphertext)?;
        if content.is_empty() || !content.len().is_multiple_of(BLOCK) {
            return Err(CryptoError::MalformedCiphertext);
        }
        let tag = self.mac(prefix, message);
        if !constant_time_eq(tag.as_ref().get(..self.icv_len).unwrap_or_default(), icv) {
            return Err(CryptoError::IntegrityFailed);
        }
        let mut plain = Zeroizing::new(content.to_vec());
        let (blocks, _) = Array::slice_as_chunks_mut(&mut plain);
        match &self.aes {
            Aes::Aes128(aes) => {
                cbc::Decryptor::inner_iv_init(aes, &Array(*iv)).decrypt_blocks(blocks)
            }
            Aes::Aes192(aes) => {
                cbc::Decryptor::inner_iv_init(aes, &Array(*iv)).decrypt_blocks(blocks)
            }
            Aes::Aes256(aes) => {
                cbc::Decryptor::inner_iv_init(aes, &Array(*iv)).decrypt_blocks(blocks)
            }
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_3_14_a_key_without_an_unused_iv_seals_no_more() {
        let mut random = Random::from_seed([1; 32]);
        let encryption = IkeEncryption::AesGcm16 { key_bits: 256 };
        let key = Secret::new(vec![1; 36]);
        let mut sealer = Sealer::new(encryption, &key, &Secret::default()).unwrap();
        sealer.sealed = u64::MAX - 1;
        let body = sealer.seal(&mut random, b"prefix", b"plain").unwrap();
        assert_eq!(body[..8], [0xff; 8]);
        for _ in 0..2 {
            let refused = sealer.seal(&mut random, b"prefix", b"plain");
            assert_eq!(refused, Err(CryptoError::IvExhausted));
        }
    }
}
