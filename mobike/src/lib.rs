//! MOBIKE (RFC 4555) without IO: which addresses there are, which pair of them an IKE_SA uses, when it
//! moves and where to.
//!
//! [`Host`] is the machine that a driver feeds: it holds the IKE machines of `bewick-ike` and joins
//! their exchanges. Inputs are datagrams, the time, commands, our addresses and the answers of the
//! data plane; outputs are datagrams, actions for the data plane and events.
#![forbid(unsafe_code)]

pub mod address;
pub mod event;
pub mod host;
mod initiator;
mod kin;
mod mobility;
mod notify;
mod path;
pub mod policy;
mod race;
mod responder;
mod timers;

pub use address::LocalAddress;
pub use event::{Cause, Event, Hint, PrimaryState};
pub use host::{
    Command, CommandError, Host, HostConfig, Input, LEAST_FOUND, MoveTarget, Output, PairStatus,
    Promise, dead_after,
};
pub use path::PairState;
pub use policy::{AddressPolicy, ConnectionPolicy, ReturnRoutability, TcpUse};
pub use race::Tried;
