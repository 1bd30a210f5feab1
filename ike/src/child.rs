//! A CHILD_SA as a data plane needs it: SPIs, algorithms, keys, selectors and the outer path.

use std::{fmt, net::IpAddr, num::NonZeroU32, ops::RangeInclusive};

use crate::{path::Path, secret::Secret, selector::TrafficSelector};

/// An ESP SPI (RFC 4303 §2.1). Never 0; 1 to 255 are reserved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EspSpi(pub u32);

impl fmt::Debug for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Display for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Names a CHILD_SA within this daemon for as long as it lives; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChildId(pub u64);

/// A hash of the SHA-2 family under HMAC, truncated to half as RFC 4868 asks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HmacSha2 {
    /// AUTH_HMAC_SHA2_256_128
    Sha256,
    /// AUTH_HMAC_SHA2_384_192
    Sha384,
    /// AUTH_HMAC_SHA2_512_256
    Sha512,
}

impl HmacSha2 {
    /// Octets of key (RFC 4868 §2.1.1: the length of the hash's output).
    pub fn key_len(self) -> usize {
        match self {
            HmacSha2::Sha256 => 32,
            HmacSha2::Sha384 => 48,
            HmacSha2::Sha512 => 64,
        }
    }

    /// Octets of the truncated integrity check value.
    pub fn icv_len(self) -> usize {
        self.key_len() / 2
    }
}

/// The algorithms that protect the ESP packets of a CHILD_SA. Key sizes are in bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EspSuite {
    /// AES-GCM with a 16-octet tag (RFC 4106); the key is followed by 4 octets of salt.
    AesGcm16 {
        /// 128, 192 or 256
        key_bits: u16,
    },
    /// ChaCha20-Poly1305 (RFC 7634); the 32-octet key is followed by 4 octets of salt.
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602) with an HMAC (RFC 4868).
    AesCbc {
        /// 128, 192 or 256
        key_bits: u16,
        /// the integrity algorithm
        integrity: HmacSha2,
    },
}

impl EspSuite {
    /// Octets of encryption key material for one direction, the salt included (RFC 7296 §2.17).
    pub fn encryption_key_len(self) -> usize {
        match self {
            EspSuite::AesGcm16 { key_bits } => usize::from(key_bits / 8) + 4,
            EspSuite::ChaCha20Poly1305 => 36,
            EspSuite::AesCbc { key_bits, .. } => usize::from(key_bits / 8),
        }
    }

    /// Octets of integrity key material for one direction, 0 for an AEAD.
    pub fn integrity_key_len(self) -> usize {
        match self {
            EspSuite::AesCbc { integrity, .. } => integrity.key_len(),
            _ => 0,
        }
    }
}

/// The keys of one direction, cut from KEYMAT as RFC 7296 §2.17 orders them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspKeys {
    /// [`EspSuite::encryption_key_len`] octets; an AEAD's salt is the last four.
    pub encryption: Secret,
    /// [`EspSuite::integrity_key_len`] octets.
    pub integrity: Secret,
}

/// What ESP protects (RFC 4301 §4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Mode {
    /// whole packets, in packets between the ends
    #[default]
    Tunnel,
    /// what is in the packets between the two ends themselves
    Transport,
}

/// One CHILD_SA: all that a data plane must know to carry its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSa {
    /// our own name for it
    pub id: ChildId,
    /// binds policies to states in the kernel; one per CHILD_SA, kept over rekeys
    pub reqid: u32,
    /// the SPI that we chose, in packets to us
    pub spi_in: EspSpi,
    /// the SPI that the peer chose, in packets from us
    pub spi_out: EspSpi,
    /// what ESP protects; in transport mode the selectors are those of `path`'s addresses
    pub mode: Mode,
    /// the algorithms, the same in both directions
    pub suite: EspSuite,
    /// extended sequence numbers (RFC 4303 §2.2.1)
    pub esn: bool,
    /// keys of the inbound direction
    pub keys_in: EspKeys,
    /// keys of the outbound direction
    pub keys_out: EspKeys,
    /// what is on our side
    pub ts_local: Vec<TrafficSelector>,
    /// what is on the peer's side
    pub ts_remote: Vec<TrafficSelector>,
    /// the outer addresses and ports
    pub path: Path,
    /// ESP travels in UDP (RFC 3948) on `path`'s ports
    pub encap: bool,
    /// addresses that the peer assigned to us (RFC 7296 §2.19), to be put on our tunnel device
    pub virtual_ips: Vec<IpAddr>,
    /// nothing is sent through it while the CHILD_SA that it succeeds, which has the same reqid, is
    /// there and not retired: the peer asked for it and may not have it yet (RFC 7296 §2.8)
    pub waits: bool,
    /// when the data plane asks for a successor
    pub limits: Limits,
    /// how the data plane is to carry it
    pub carriage: Carriage,
}

/// How a data plane is to carry a CHILD_SA, in what no peer is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carriage {
    /// packets that the anti-replay window spans (RFC 4303 §3.4.3), within [`REPLAY_WINDOWS`]
    pub replay_window: u32,
    /// the network card is to do ESP, where it can
    pub offload: bool,
    /// the XFRM interface whose packets alone are carried, in a data plane that knows such
    pub if_id: Option<NonZeroU32>,
}

/// The anti-replay windows that there can be, in packets: RFC 4303 §3.4.3 recommends 64 at least, and the
/// kernel takes no more than 4096.
pub const REPLAY_WINDOWS: RangeInclusive<u32> = 64..=4096;

impl Default for Carriage {
    /// The widest window: it spans two paths whose delays differ by 40 ms at 100,000 packets a second, and
    /// costs half a kilobyte.
    fn default() -> Self {
        Carriage { replay_window: *REPLAY_WINDOWS.end(), offload: false, if_id: None }
    }
}

/// How much goes through a CHILD_SA in one direction before the data plane asks for a successor
/// (RFC 4301 §4.4.2.1). In any case it does so before the sequence numbers are used up
/// (RFC 4303 §3.3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// octets of inner packets; `None` for no limit
    pub octets: Option<u64>,
    /// packets; `None` for no limit
    pub packets: Option<u64>,
}

impl Limits {
    /// Whether as much has gone through.
    pub fn are_reached(&self, octets: u64, packets: u64) -> bool {
        self.octets.is_some_and(|limit| octets >= limit)
            || self.packets.is_some_and(|limit| packets >= limit)
    }
}

/// Where a CHILD_SA is to go when its IKE_SA's addresses change (RFC 4555 §3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChildMove {
    /// which CHILD_SA
    pub id: ChildId,
    /// the new outer addresses and ports
    pub path: Path,
    /// whether ESP travels in UDP on the new path
    pub encap: bool,
}
