//! The host's own timers.

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    /// a NAT keepalive (RFC 3948 §4)
    Keepalive,
    /// the next copy of a race
    Race,
    /// the next look at what the data plane has sent and received
    Count,
    /// the next probe of an alternative
    Standby,
    /// the next question to a better pair than the one in use
    Back,
    /// the peer's updates have come to rest
    Settle,
    /// whether the IKE_SA has all that the one has which it replaces
    Retire,
}
