//! The Bewick daemon: one binary that is a VPN gateway, a road-warrior client and the tool that
//! controls both.
//!
//! The crate owns sockets, netlink, files and time; the protocol is in `bewick-ike` and
//! `bewick-mobike`, the traffic in `bewick-xfrm`.

pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod dns;
pub mod logging;
pub mod net;
pub mod runtime;
mod tool;
