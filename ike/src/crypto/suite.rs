//! The algorithms that protect an IKE_SA, and their transform IDs (RFC 7296 §3.3.2, RFC 8247).

use crate::child::HmacSha2;

/// A pseudorandom function, transform type 2 (RFC 4868 §2.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256
    HmacSha256,
    /// PRF_HMAC_SHA2_384
    HmacSha384,
    /// PRF_HMAC_SHA2_512
    HmacSha512,
}

impl Prf {
    /// The transform ID.
    pub fn id(self) -> u16 {
        match self {
            Prf::HmacSha256 => 5,
            Prf::HmacSha384 => 6,
            Prf::HmacSha512 => 7,
        }
    }

    /// The function of that transform ID, if we know it.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            5 => Some(Prf::HmacSha256),
            6 => Some(Prf::HmacSha384),
            7 => Some(Prf::HmacSha512),
            _ => None,
        }
    }

    /// Octets of output.
    pub fn out_len(self) -> usize {
        match self {
            Prf::HmacSha256 => 32,
            Prf::HmacSha384 => 48,
            Prf::HmacSha512 => 64,
        }
    }

    /// Octets of the preferred key: of SK_d, SK_pi and SK_pr (RFC 7296 §2.14). An HMAC takes keys
    /// of any length and prefers its output's.
    pub fn key_len(self) -> usize {
        self.out_len()
    }
}

/// A key exchange method, transform type 4. Groups of less than 2048 bits and those that RFC 8247
/// §2.4 forbids do not exist here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum KeyExchangeMethod {
    /// Curve25519 (RFC 8031)
    X25519,
    /// 256-bit random ECP group (RFC 5903)
    Ecp256,
    /// 384-bit random ECP group (RFC 5903)
    Ecp384,
    /// 521-bit random ECP group (RFC 5903)
    Ecp521,
    /// 2048-bit MODP group (RFC 3526)
    Modp2048,
    /// 3072-bit MODP group (RFC 3526)
    Modp3072,
    /// 4096-bit MODP group (RFC 3526)
    Modp4096,
}

impl KeyExchangeMethod {
    /// The transform ID, which is also the Key Exchange Method field of the KE payload.
    pub fn id(self) -> u16 {
        match self {
            KeyExchangeMethod::Modp2048 => 14,
            KeyExchangeMethod::Modp3072 => 15,
            KeyExchangeMethod::Modp4096 => 16,
            KeyExchangeMethod::Ecp256 => 19,
            KeyExchangeMethod::Ecp384 => 20,
            KeyExchangeMethod::Ecp521 => 21,
            KeyExchangeMethod::X25519 => 31,
        }
    }

    /// The method of that transform ID, if we know it.
    pub fn from_id(id: u16) -> Option<Self> {
        match id {
            14 => Some(KeyExchangeMethod::Modp2048),
            15 => Some(KeyExchangeMethod::Modp3072),
            16 => Some(KeyExchangeMethod::Modp4096),
            19 => Some(KeyExchangeMethod::Ecp256),
            20 => Some(KeyExchangeMethod::Ecp384),
            21 => Some(KeyExchangeMethod::Ecp521),
            31 => Some(KeyExchangeMethod::X25519),
            _ => None,
        }
    }

    /// Octets of a public value in the KE payload.
    pub fn public_len(self) -> usize {
        match self {
            KeyExchangeMethod::X25519 => 32,
            KeyExchangeMethod::Ecp256 => 64,
            KeyExchangeMethod::Ecp384 => 96,
            KeyExchangeMethod::Ecp521 => 132,
            KeyExchangeMethod::Modp2048 => 256,
            KeyExchangeMethod::Modp3072 => 384,
            KeyExchangeMethod::Modp4096 => 512,
        }
    }
}

/// What encrypts the SK payload and keeps it whole. Key sizes are in bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum IkeEncryption {
    /// AES-GCM with a 16-octet tag (RFC 5282)
    AesGcm16 {
        /// 128, 192 or 256
        key_bits: u16,
    },
    /// ChaCha20-Poly1305 (RFC 7634)
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602) with an HMAC (RFC 4868)
    AesCbc {
        /// 128, 192 or 256
        key_bits: u16,
        /// the integrity algorithm
        integrity: HmacSha2,
    },
}

impl IkeEncryption {
    /// The encryption transform ID, transform type 1.
    pub fn id(self) -> u16 {
        match self {
            IkeEncryption::AesCbc { .. } => 12,
            IkeEncryption::AesGcm16 { .. } => 20,
            IkeEncryption::ChaCha20Poly1305 => 28,
        }
    }

    /// The Key Length attribute, for the transforms that carry one (RFC 7296 §3.3.5).
    pub fn key_bits(self) -> Option<u16> {
        match self {
            IkeEncryption::AesGcm16 { key_bits } | IkeEncryption::AesCbc { key_bits, .. } => {
                Some(key_bits)
            }
            IkeEncryption::ChaCha20Poly1305 => None,
        }
    }

    /// The integrity algorithm, `None` for an AEAD (RFC 5282 §8).
    pub fn integrity(self) -> Option<HmacSha2> {
        match self {
            IkeEncryption::AesCbc { integrity, .. } => Some(integrity),
            _ => None,
        }
    }

    /// Octets of SK_ei and of SK_er, an AEAD's salt of 4 octets included (RFC 5282 §7.1).
    pub fn encryption_key_len(self) -> usize {
        match self {
            IkeEncryption::AesGcm16 { key_bits } => usize::from(key_bits / 8) + 4,
            IkeEncryption::ChaCha20Poly1305 => 36,
            IkeEncryption::AesCbc { key_bits, .. } => usize::from(key_bits / 8),
        }
    }

    /// Octets of SK_ai and of SK_ar, 0 for an AEAD.
    pub fn integrity_key_len(self) -> usize {
        self.integrity().map_or(0, HmacSha2::key_len)
    }
}

/// The integrity transform ID, transform type 3 (RFC 4868).
pub fn integrity_id(integrity: HmacSha2) -> u16 {
    match integrity {
        HmacSha2::Sha256 => 12,
        HmacSha2::Sha384 => 13,
        HmacSha2::Sha512 => 14,
    }
}

/// The integrity algorithm of that transform ID, if we know it.
pub fn integrity_from_id(id: u16) -> Option<HmacSha2> {
    match id {
        12 => Some(HmacSha2::Sha256),
        13 => Some(HmacSha2::Sha384),
        14 => Some(HmacSha2::Sha512),
        _ => None,
    }
}

/// All that is negotiated for an IKE_SA.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IkeSuite {
    /// the SK payload's protection
    pub encryption: IkeEncryption,
    /// the key derivation and authentication function
    pub prf: Prf,
    /// the key exchange
    pub key_exchange: KeyExchangeMethod,
}
