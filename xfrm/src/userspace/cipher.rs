//! The algorithms of ESP over a packet in place: RFC 4106, RFC 7634, RFC 3602 with RFC 4868.

use aes::{
    Aes128, Aes192, Aes256, Block,
    cipher::{
        BlockCipherDecrypt, BlockCipherEncrypt, BlockModeDecrypt, BlockModeEncrypt, InOutBuf,
        InnerIvInit, KeyInit, consts::U16,
    },
};
use aes_gcm::{
    AesGcm,
    aead::{AeadInOut, consts::U12},
};
use bewick_ike::{EspKeys, EspSuite, HmacSha2};
use ring::{
    aead::{Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use subtle::ConstantTimeEq;

use crate::PlaneError;

/// The longest initialisation vector on the wire.
pub(super) const MAX_IV: usize = 16;
/// The longest integrity check value.
pub(super) const MAX_ICV: usize = 32;
/// Octets of an AEAD's tag, nonce and salt.
const TAG: usize = 16;
const NONCE: usize = 12;
const SALT: usize = 4;

/// The packet did not decrypt, or a buffer has the wrong size.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// The cipher and integrity algorithm of one direction, with their keys.
pub(super) enum Cipher {
    Ring { key: Box<LessSafeKey>, salt: [u8; SALT] },
    Gcm192 { key: Box<AesGcm<Aes192, U12>>, salt: [u8; SALT] },
    Cbc(Box<Cbc>),
}

pub(super) struct Cbc {
    key: AesKey,
    /// makes initialisation vectors that nobody can foretell (RFC 3602 §3) from sequence numbers
    iv_key: Aes128,
    integrity: hmac::Key,
    icv_len: usize,
}

enum AesKey {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl Cipher {
    /// The cipher of `suite` with `keys`; an error if a key has the wrong length.
    pub(super) fn new(suite: EspSuite, keys: &EspKeys) -> Result<Cipher, PlaneError> {
        let wrong = || PlaneError::Unsupported(format!("the keys do not fit {suite:?}"));
        let encryption = keys.encryption.expose();
        if keys.integrity.len() != suite.integrity_key_len() {
            return Err(wrong());
        }
        match suite {
            EspSuite::AesGcm16 { key_bits: 192 } => {
                let (key, salt) = encryption.split_last_chunk().ok_or_else(wrong)?;
                let key = AesGcm::new_from_slice(key).map_err(|_| wrong())?;
                Ok(Cipher::Gcm192 { key: Box::new(key), salt: *salt })
            }
            EspSuite::AesGcm16 { .. } | EspSuite::ChaCha20Poly1305 => {
                let algorithm = match suite {
                    EspSuite::AesGcm16 { key_bits: 128 } => &ring::aead::AES_128_GCM,
                    EspSuite::AesGcm16 { key_bits: 256 } => &ring::aead::AES_256_GCM,
                    EspSuite::ChaCha20Poly1305 => &ring::aead::CHACHA20_POLY1305,
                    _ => return Err(wrong()),
                };
                let (key, salt) = encryption.split_last_chunk().ok_or_else(wrong)?;
                let key = UnboundKey::new(algorithm, key).map_err(|_| wrong())?;
                Ok(Cipher::Ring { key: Box::new(LessSafeKey::new(key)), salt: *salt })
            }
            EspSuite::AesCbc { key_bits, integrity } => {
                let key = match key_bits {
                    128 => Aes128::new_from_slice(encryption).map(AesKey::Aes128),
                    192 => Aes192::new_from_slice(encryption).map(AesKey::Aes192),
                    256 => Aes256::new_from_slice(encryption).map(AesKey::Aes256),
                    _ => return Err(wrong()),
                }
                .map_err(|_| wrong())?;
                let algorithm = match integrity {
                    HmacSha2::Sha256 => hmac::HMAC_SHA256,
                    HmacSha2::Sha384 => hmac::HMAC_SHA384,
                    HmacSha2::Sha512 => hmac::HMAC_SHA512,
                };
                let mut seed = [0; 16];
                SystemRandom::new().fill(&mut seed).map_err(|_| PlaneError::Io {
                    operation: "drawing random octets".into(),
                    source: std::io::Error::other("the system gave none"),
                })?;
                Ok(Cipher::Cbc(Box::new(Cbc {
                    key,
                    iv_key: Aes128::new(&seed.into()),
                    integrity: hmac::Key::new(algorithm, keys.integrity.expose()),
                    icv_len: integrity.icv_len(),
                })))
            }
        }
    }

    /// Octets of initialisation vector after the sequence number.
    pub(super) fn iv_len(&self) -> usize {
        if matches!(self, Cipher::Cbc(_)) { MAX_IV } else { 8 }
    }

    /// Octets of integrity check value at the end.
    pub(super) fn icv_len(&self) -> usize {
        match self {
            Cipher::Cbc(cbc) => cbc.icv_len,
            _ => TAG,
        }
    }

    /// What the plaintext is padded to a multiple of (RFC 4303 §2.4).
    pub(super) fn alignment(&self) -> usize {
        if matches!(self, Cipher::Cbc(_)) { 16 } else { 4 }
    }

    /// Writes the initialisation vector of packet `sequence` into `iv`, which has `iv_len` octets.
    ///
    /// An AEAD's is the sequence number itself, which never repeats under one key (RFC 4106 §3.1).
    pub(super) fn make_iv(&self, sequence: u64, iv: &mut [u8]) -> Result<(), Refused> {
        let sequence = sequence.to_be_bytes();
        match self {
            Cipher::Cbc(cbc) => {
                let mut block = Block::default();
                let (low, _) = block.split_at_mut_checked(8).ok_or(Refused)?;
                low.copy_from_slice(&sequence);
                cbc.iv_key.encrypt_block(&mut block);
                copy(iv, &block)
            }
            _ => copy(iv, &sequence),
        }
    }

    /// Encrypts `text` in place and writes the integrity check value over it and `packet`.
    pub(super) fn seal(&self, parts: Parts<'_>) -> Result<(), Refused> {
        let Parts { header, esn_high, iv, text, icv } = parts;
        match self {
            Cipher::Ring { key, salt } => {
                let (aad, len) = associated_data(header, esn_high);
                let aad = Aad::from(aad.get(..len).ok_or(Refused)?);
                let nonce = Nonce::assume_unique_for_key(nonce(salt, iv)?);
                let tag = key.seal_in_place_separate_tag(nonce, aad, text).map_err(|_| Refused)?;
                copy(icv, tag.as_ref())
            }
            Cipher::Gcm192 { key, salt } => {
                let (aad, len) = associated_data(header, esn_high);
                let aad = aad.get(..len).ok_or(Refused)?;
                let nonce = nonce(salt, iv)?.into();
                let tag = key
                    .encrypt_inout_detached(&nonce, aad, InOutBuf::from(text))
                    .map_err(|_| Refused)?;
                copy(icv, &tag)
            }
            Cipher::Cbc(cbc) => {
                let iv_block: &[u8; 16] = (&*iv).try_into().map_err(|_| Refused)?;
                cbc.key.encrypt(iv_block, text)?;
                let tag = cbc.tag(header, iv, text, esn_high);
                copy(icv, tag.as_ref().get(..cbc.icv_len).ok_or(Refused)?)
            }
        }
    }

    /// Checks the integrity check value and decrypts `text` in place.
    pub(super) fn open(&self, parts: Parts<'_>) -> Result<(), Refused> {
        let Parts { header, esn_high, iv, text, icv } = parts;
        match self {
            Cipher::Ring { key, salt } => {
                let (aad, len) = associated_data(header, esn_high);
                let aad = Aad::from(aad.get(..len).ok_or(Refused)?);
                let nonce = Nonce::assume_unique_for_key(nonce(salt, iv)?);
                let tag: [u8; TAG] = (&*icv).try_into().map_err(|_| Refused)?;
                key.open_in_place_separate_tag(nonce, aad, tag.into(), text, 0..)
                    .map_err(|_| Refused)?;
                Ok(())
            }
            Cipher::Gcm192 { key, salt } => {
                let (aad, len) = associated_data(header, esn_high);
                let aad = aad.get(..len).ok_or(Refused)?;
                let nonce = nonce(salt, iv)?.into();
                let tag: [u8; TAG] = (&*icv).try_into().map_err(|_| Refused)?;
                key.decrypt_inout_detached(&nonce, aad, InOutBuf::from(text), &tag.into())
                    .map_err(|_| Refused)
            }
            Cipher::Cbc(cbc) => {
                let tag = cbc.tag(header, iv, text, esn_high);
                let tag = tag.as_ref().get(..cbc.icv_len).ok_or(Refused)?;
                if !bool::from(tag.ct_eq(icv)) {
                    return Err(Refused);
                }
                let iv_block: &[u8; 16] = (&*iv).try_into().map_err(|_| Refused)?;
                cbc.key.decrypt(iv_block, text)
            }
        }
    }
}

/// The parts of an ESP packet, and the sequence number's half that is not in it.
pub(super) struct Parts<'a> {
    /// SPI and the low half of the sequence number
    pub(super) header: [u8; 8],
    /// the high half with extended sequence numbers (RFC 4303 §2.2.1)
    pub(super) esn_high: Option<u32>,
    pub(super) iv: &'a mut [u8],
    /// payload, padding, pad length and next header
    pub(super) text: &'a mut [u8],
    pub(super) icv: &'a mut [u8],
}

impl Cbc {
    /// RFC 4303 §2.8, §3.3.2.1: with extended sequence numbers the high half counts, at the end.
    fn tag(&self, header: [u8; 8], iv: &[u8], text: &[u8], esn_high: Option<u32>) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.integrity);
        context.update(&header);
        context.update(iv);
        context.update(text);
        if let Some(high) = esn_high {
            context.update(&high.to_be_bytes());
        }
        context.sign()
    }
}

impl AesKey {
    fn encrypt(&self, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused> {
        match self {
            AesKey::Aes128(key) => encrypt_cbc(key, iv, text),
            AesKey::Aes192(key) => encrypt_cbc(key, iv, text),
            AesKey::Aes256(key) => encrypt_cbc(key, iv, text),
        }
    }

    fn decrypt(&self, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused> {
        match self {
            AesKey::Aes128(key) => decrypt_cbc(key, iv, text),
            AesKey::Aes192(key) => decrypt_cbc(key, iv, text),
            AesKey::Aes256(key) => decrypt_cbc(key, iv, text),
        }
    }
}

fn encrypt_cbc<C>(key: &C, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused>
where
    C: BlockCipherEncrypt<BlockSize = U16>,
{
    let (blocks, rest) = InOutBuf::from(text).into_chunks::<U16>();
    if !rest.is_empty() {
        return Err(Refused);
    }
    cbc::Encryptor::inner_iv_init(key, iv.into()).encrypt_blocks_inout(blocks);
    Ok(())
}

fn decrypt_cbc<C>(key: &C, iv: &[u8; 16], text: &mut [u8]) -> Result<(), Refused>
where
    C: BlockCipherDecrypt<BlockSize = U16>,
{
    let (blocks, rest) = InOutBuf::from(text).into_chunks::<U16>();
    if !rest.is_empty() {
        return Err(Refused);
    }
    cbc::Decryptor::inner_iv_init(key, iv.into()).decrypt_blocks_inout(blocks);
    Ok(())
}

/// An AEAD's nonce: the salt, then the vector from the wire (RFC 4106 §4, RFC 7634 §2).
fn nonce(salt: &[u8; SALT], iv: &[u8]) -> Result<[u8; NONCE], Refused> {
    let mut nonce = [0; NONCE];
    let (head, tail) = nonce.split_at_mut(SALT);
    head.copy_from_slice(salt);
    copy(tail, iv)?;
    Ok(nonce)
}

/// What an AEAD authenticates besides the text, and its length (RFC 4106 §5, RFC 7634 §2.1): with
/// extended sequence numbers the high half stands between SPI and low half.
fn associated_data(header: [u8; 8], esn_high: Option<u32>) -> ([u8; 12], usize) {
    let [a, b, c, d, e, f, g, h] = header;
    match esn_high.map(u32::to_be_bytes) {
        None => ([a, b, c, d, e, f, g, h, 0, 0, 0, 0], 8),
        Some([i, j, k, l]) => ([a, b, c, d, i, j, k, l, e, f, g, h], 12),
    }
}

fn copy(to: &mut [u8], from: &[u8]) -> Result<(), Refused> {
    if to.len() != from.len() {
        return Err(Refused);
    }
    to.copy_from_slice(from);
    Ok(())
}
