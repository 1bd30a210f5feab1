//! IKEv2 (RFC 7296) without IO.
//!
//! The crate holds the wire format, the cryptography and the state machines of both roles. It opens
//! no socket, reads no clock and asks no operating system for randomness: [`Time`] comes in as an
//! argument, [`Random`] is handed in at the start, and what is to be sent or programmed comes out as
//! values. A run replays byte for byte from its seed.
#![forbid(unsafe_code)]

pub mod asked;
pub mod auth;
pub mod child;
pub mod config;
pub mod crash;
pub mod crypto;
pub mod endpoint;
pub mod event;
pub mod extension;
pub mod nat;
pub mod path;
mod pool;
pub mod random;
mod sa;
pub mod secret;
pub mod selector;
pub mod time;
pub mod wire;

pub use asked::{Asked, Packet};
pub use child::{
    Carriage, ChildId, ChildMove, ChildSa, EspKeys, EspSpi, EspSuite, HmacSha2, Limits, Mode,
    REPLAY_WINDOWS,
};
pub use config::{ConnectionConfig, ConnectionId, Role};
pub use crash::CrashSecrets;
pub use endpoint::Endpoint;
pub use event::{
    Action, ActionError, ActionId, CloseReason, Established, Event, IkeKeys, Output, SaId, Tag,
    Transmit,
};
pub use extension::{Extension, SaView};
pub use path::{Path, Transport};
pub use random::Random;
pub use sa::child::Child;
pub use secret::Secret;
pub use selector::TrafficSelector;
pub use time::Time;
