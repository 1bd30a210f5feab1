//! The machine's network: which local addresses an outer packet can have, and the routes, the rule
//! and the addresses that bring inner packets to the tunnel device.

pub mod addresses;
mod guard;
pub mod monitor;
mod mtu;
pub mod routes;
pub mod sysctl;
#[cfg(test)]
mod tests;
mod uplinks;

pub use addresses::LocalAddress;
pub use monitor::Monitor;
pub use routes::{Closed, Routes};

/// SO_MARK of our outer packets: the rule for inner traffic leaves them alone.
pub const MARK: u32 = 0xbe1c;

/// The routing table of the inner routes.
pub const TABLE: u32 = 0xbe1c;

/// The first of the routing tables with one uplink's default route each, [`UPLINKS`] of them.
pub const UPLINK_TABLE: u32 = TABLE + 1;

/// Uplinks that have a table at most.
pub const UPLINKS: u32 = 16;

/// Where the rules stand that let the main table's networks come before an uplink's default route.
pub const NEAR_PRIORITY: u32 = 4863;

/// Where the rules stand that send our outer packets to the table of their source address' uplink.
pub const UPLINK_PRIORITY: u32 = 4864;

/// Where the rule that leads to [`TABLE`] stands: before the main table's (32766).
pub const RULE_PRIORITY: u32 = 4866;

/// Where the rules for outer packets stand, which carry no mark when the kernel checks their source.
pub const OUTER_PRIORITY: u32 = 4865;

/// The last place where there is a rule of ours.
const LAST_PRIORITY: u32 = RULE_PRIORITY;

/// Whether a routing table is one that we fill.
fn is_our_table(table: u32) -> bool {
    (TABLE..UPLINK_TABLE + UPLINKS).contains(&table)
}

/// The kernel refused something about addresses, routes or links.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct NetError {
    /// what was being done, in the operator's words
    pub operation: String,
    /// the kernel's answer
    pub message: String,
    /// the positive error number, if the kernel gave one
    pub errno: Option<i32>,
}

impl NetError {
    fn new(operation: impl Into<String>, error: &rtnetlink::Error) -> Self {
        let (errno, message) = match error {
            rtnetlink::Error::NetlinkError(answer) => {
                let errno = answer.raw_code().saturating_abs();
                (Some(errno), std::io::Error::from_raw_os_error(errno).to_string())
            }
            other => (None, other.to_string()),
        };
        NetError { operation: operation.into(), message, errno }
    }

    fn io(operation: impl Into<String>, error: &std::io::Error) -> Self {
        let operation = operation.into();
        NetError { operation, message: error.to_string(), errno: error.raw_os_error() }
    }
}
