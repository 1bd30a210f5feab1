//! The userspace plane: ESP in UDP (RFC 4303, RFC 3948) in this process, over a TUN device.
//!
//! For kernels and containers without ESP. Outbound, one thread reads inner packets from the device, or
//! many in one piece that it cuts, chooses the SA by its selectors, seals in place and sends what goes
//! one way with one call; inbound, the UDP receiving threads find the SA by SPI alone, check, open in
//! place and write to the device, packets of one flow in one piece. Each flow has one thread a
//! direction: nothing overtakes. Congestion marks cross the
//! tunnel (RFC 6040). A move changes a path and nothing else, so it loses nothing (RFC 4555 §3.5,
//! §3.12).

mod cipher;
mod ecn;
mod esp;
mod flow;
mod merge;
mod offload;
mod outbound;
mod plane;
mod replay;
mod selector;
mod shards;
mod table;
mod trap;
mod tun;

pub use flow::Drops;
pub use plane::{DEFAULT_MTU, UserspaceConfig, UserspacePlane};

#[cfg(test)]
mod tests;
