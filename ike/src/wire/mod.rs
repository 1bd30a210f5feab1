//! The IKEv2 wire format (RFC 7296 §3; RFC 7383 §2.5 for the fragment payload).
//!
//! [`Message::parse`] reads a datagram without its non-ESP marker, [`parse_chain`] reads what was
//! inside an Encrypted payload, [`emit_message`] and [`emit_chain`] write them. Parsing checks form
//! alone: lengths, counts and ranges that the RFC fixes. What a well-formed message means, and
//! whether it is welcome here, is for the state machines. Payloads, notifies, transforms and
//! attributes of unknown kinds are kept, so that the caller can decide.

pub mod cert;
pub mod config;
pub mod delete;
pub mod eap;
pub mod encrypted;
pub mod error;
pub mod header;
pub mod identity;
pub mod message;
pub mod notify;
pub mod payload;
pub mod proposal;
pub mod reader;
mod selector;
pub mod stream;
mod writer;

pub use cert::CertEncoding;
pub use config::{Attribute, AttributeType, AttributeValue, CfgType, Configuration};
pub use delete::Delete;
pub use eap::{Eap, EapCode};
pub use encrypted::{Encrypted, Fragment, emit_encrypted_prefix, emit_fragment_prefix};
pub use error::{TooLong, WireError};
pub use header::{ExchangeType, Flags, Header};
pub use identity::{IdKind, Identification, Identity, IdentityError, IdentityPattern};
pub use message::{Message, emit_message};
pub use notify::{Notify, NotifyType};
pub use payload::{AuthMethod, Payload, PayloadKind, emit_chain, parse_chain};
pub use proposal::{Proposal, Protocol, Transform, TransformAttribute, TransformType};
pub use reader::Reader;
pub use stream::{STREAM_PREFIX, StreamError, StreamFrame, StreamReader};

#[cfg(test)]
mod tests;
