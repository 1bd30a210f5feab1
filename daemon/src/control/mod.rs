//! The control socket: a Unix socket, mode 0600 in a directory of its own, on which the daemon and
//! the other commands speak one JSON object per line.
//!
//! A client sends one [`Request`] and reads [`Reply`]s until [`Reply::Done`], [`Reply::Error`] or the
//! end of the stream.

pub mod client;
pub mod protocol;
pub mod roaming;
pub mod server;

pub use client::{Client, ClientError};
pub use protocol::{EventRecord, Reply, Request, Status};
pub use server::{Call, Server, ServerError};

/// Where the control socket is when neither option, environment nor configuration says otherwise.
pub const DEFAULT_PATH: &str = "/run/bewick/control.sock";

/// The environment variable that names the control socket.
pub const PATH_VARIABLE: &str = "BEWICK_CONTROL";
