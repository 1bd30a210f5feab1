//! The userspace plane: ESP in UDP (RFC 4303, RFC 3948) in this process, over a TUN device.
//!
//! For kernels and containers without ESP. There are threads for each processor. Outbound, each reads
//! inner packets from its queue of the device, or many in one piece that it cuts, chooses the SA by its
//! selectors, seals in place and sends what goes one way with one call; inbound, the UDP receiving
//! threads find the SA by SPI alone, check, open in place and write to the device, packets of one flow in
//! one piece. Each flow has one thread a direction, and the packets of an SA leave in the order of
//! their numbers: nothing overtakes. Congestion marks cross the tunnel (RFC 6040). A move changes a path
//! and nothing else, so it loses nothing (RFC 4555 §3.5, §3.12).

mod cipher;
mod early;
mod ecn;
mod esp;
mod flow;
mod merge;
mod offload;
mod outbound;
mod plane;
mod replay;
mod sa;
mod selector;
mod shards;
mod table;
mod trap;
mod tun;

pub use flow::Drops;
pub use plane::{DEFAULT_MTU, UserspaceConfig, UserspacePlane};

#[cfg(test)]
mod tests;
