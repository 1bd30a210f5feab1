//! The simulator: a network of hosts, links and NATs on a virtual clock, driven by one seed.
//!
//! Nothing here opens a socket or reads a clock. The same seed and the same calls give the same
//! octets at the same virtual times, so that any failure replays. The rooms:
//!
//! - [`clock`]: the queue of future events; [`seed`]: randomness, one stream per user;
//! - [`net`]: hosts, uplinks, addresses and the way of a datagram; [`link`]: delay, loss and the like;
//! - [`nat`]: mapping, filtering and expiry (RFC 4787's words);
//! - [`plane`]: a toy data plane that follows the machines, and the measure of its traffic;
//! - [`pair`]: machines on the network, and the loop that drives them;
//! - [`node`]: the real machine on the network, or a [`puppet`] that does what a test says;
//! - [`channel`]: the IKE_SA of a peer by hand; [`hand`]: a peer that says in IKE_SA_INIT and IKE_AUTH whatever a test wants;
//! - [`pki`]: authorities and certificates;
//! - [`lab`]: a client with two uplinks, a gateway, NATs where they are wanted;
//! - [`capture`]: what was seen where, and a pcap file of it.
#![forbid(unsafe_code)]

pub mod capture;
pub mod channel;
pub mod clock;
pub mod hand;
pub mod handover;
pub mod lab;
pub mod link;
pub mod nat;
pub mod net;
pub mod node;
pub mod pair;
pub mod pki;
pub mod plane;
pub mod puppet;
pub mod scene;
pub mod seed;

pub use capture::{Capture, Hop, Loss, Record};
pub use clock::Timeline;
pub use lab::{Lab, Plan};
pub use link::{Chance, Link};
pub use nat::{Behaviour, NatConfig};
pub use net::{Datagram, Delivery, HostId, NatId, Net, Protocol, Realm, Tally, UplinkId, Verdict};
pub use node::Node;
pub use plane::{Flow, Plane};
pub use puppet::Puppet;
