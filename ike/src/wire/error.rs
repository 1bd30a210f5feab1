//! What can be wrong with octets from the peer, and with values that we are to send.

use thiserror::Error;

/// Octets from the peer that are not a well-formed message.
///
/// `what` names the field and `at` its offset in octets, from the start of the datagram or, inside
/// an Encrypted payload, from the start of the decrypted payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The octets end before the field does.
    #[error("{what} at octet {at} needs {needed} octets, but {left} are left")]
    Truncated {
        /// the field
        what: &'static str,
        /// its offset
        at: usize,
        /// octets that it needs
        needed: usize,
        /// octets that there are
        left: usize,
    },
    /// Octets are left over where the enclosing length or count says that all is read.
    #[error("{octets} stray octets after {what} at octet {at}")]
    Trailing {
        /// the structure that should have ended
        what: &'static str,
        /// offset of the first stray octet
        at: usize,
        /// how many there are
        octets: usize,
    },
    /// A length or count field contradicts the structure around it.
    #[error("{what} at octet {at} is {found} where {expected} is right")]
    Length {
        /// the field
        what: &'static str,
        /// its offset
        at: usize,
        /// its value
        found: usize,
        /// the value, or the least value, that fits
        expected: usize,
    },
    /// A field has a value that the RFC forbids.
    #[error("{what} at octet {at} has the forbidden value {value:#x}")]
    Value {
        /// the field
        what: &'static str,
        /// its offset
        at: usize,
        /// its value
        value: u64,
    },
    /// More elements than this implementation keeps.
    #[error("more than {limit} of {what} at octet {at}")]
    TooMany {
        /// the elements
        what: &'static str,
        /// offset of the first one too many
        at: usize,
        /// how many are kept
        limit: usize,
    },
    /// The major version is not 2 (RFC 7296 §2.5): INVALID_MAJOR_VERSION if higher.
    #[error("major version {major} is not 2")]
    MajorVersion {
        /// the version that the peer speaks
        major: u8,
    },
}

/// A value that we were about to send does not fit its length field: local misuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{what} of {octets} is longer than its length field can say")]
pub struct TooLong {
    /// the structure
    pub what: &'static str,
    /// its size in octets, or its count of elements
    pub octets: usize,
}
