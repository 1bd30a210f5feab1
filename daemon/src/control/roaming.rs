//! What `bewick paths` and `bewick moves` show: where a tunnel could be, and where it has been.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The answer to [`Request::Paths`](crate::control::Request::Paths).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// the connections in the order of the configuration
    pub connections: Vec<ConnectionPaths>,
}

/// The IKE_SAs of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionPaths {
    /// its name
    pub name: String,
    /// those that are established, the oldest first
    pub ike_sas: Vec<SaPaths>,
}

/// The pairs of addresses of an IKE_SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaPaths {
    /// the initiator's SPI, 16 hex digits
    pub spi_i: String,
    /// the responder's SPI, 16 hex digits
    pub spi_r: String,
    /// the peer's identity
    pub remote_id: String,
    /// how the pair in use stands: `none`, `testing` or `operational`
    pub primary: String,
    /// how soon a dead path is found, and what that costs; not told by a gateway, whose peers see to it
    #[serde(default)]
    pub promise: Option<PromiseRecord>,
    /// the pair in use and those that could take its place, best first
    pub paths: Vec<PathRecord>,
}

/// How soon a path that dies without a word is taken for dead, and the packets that this costs while all is
/// well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromiseRecord {
    /// milliseconds while traffic flows; `None` for never
    #[serde(default)]
    pub busy_ms: Option<u64>,
    /// milliseconds while none does; `None` for never
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// questions an hour that keep other paths warm, a packet each way
    pub standby_per_hour: u32,
    /// packets an hour that keep the NAT in front of us from forgetting
    pub keepalives_per_hour: u32,
    /// questions an hour, at most, on the path in use, a packet each way
    pub liveness_per_hour: u32,
}

/// A pair of addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathRecord {
    /// our address and port
    pub local: SocketAddr,
    /// the peer's address and port as we see them
    pub remote: SocketAddr,
    /// the interface that holds our address, if one does
    #[serde(default)]
    pub interface: Option<String>,
    /// whether it is the pair in use
    pub current: bool,
    /// `untried`, `testing`, `operational` or `failed`
    pub state: String,
    /// the smoothed round-trip time, in milliseconds
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// lost probes of a hundred
    #[serde(default)]
    pub loss_percent: Option<u32>,
    /// milliseconds since the last answer
    #[serde(default)]
    pub age_ms: Option<u64>,
    /// whether a NAT is on it, if that was asked
    #[serde(default)]
    pub nat: Option<bool>,
    /// whether the peer has shown lately that it receives there (RFC 4555 §3.7)
    pub validated: bool,
    /// as whom the peer sees us on it, if it is a bewick too
    #[serde(default)]
    pub seen_as: Option<SocketAddr>,
    /// whether the peer, a bewick, hears us on it while we do not hear the peer
    #[serde(default)]
    pub one_way: bool,
}

/// The answer to [`Request::Moves`](crate::control::Request::Moves).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moves {
    /// the oldest first; those that are under way come last
    pub moves: Vec<MoveRecord>,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// it has not ended yet
    Moving,
    /// the peer has confirmed it and the data plane has followed
    Moved,
    /// it has not come about
    Failed,
}

/// One move of an IKE_SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveRecord {
    /// milliseconds from the start of the daemon to the decision
    pub at_ms: u64,
    /// the time of day of the decision, as RFC 3339 has it, in UTC
    pub time: String,
    /// the connection
    pub connection: String,
    /// how it ended
    pub outcome: Outcome,
    /// why the IKE_SA moved
    pub cause: String,
    /// our address before
    pub from: SocketAddr,
    /// our address after
    pub to: SocketAddr,
    /// the peer's address before
    pub remote_from: SocketAddr,
    /// the peer's address after
    pub remote_to: SocketAddr,
    /// the pairs that were asked before, in that order
    pub tried: Vec<TriedPath>,
    /// milliseconds from the decision to the confirmation, or to the failure
    #[serde(default)]
    pub took_ms: Option<f64>,
    /// CHILD_SAs that the data plane moved
    pub children: u64,
    /// netlink requests for that, 0 in userspace
    pub requests: u64,
    /// milliseconds that the data plane took
    pub plane_ms: f64,
    /// the longest time without a packet from the peer, in milliseconds, from before the move to a second
    /// after it; not known of the kernel's data plane, and of a gateway
    #[serde(default)]
    pub gap_ms: Option<f64>,
    /// packets from the peer that never came in that time
    #[serde(default)]
    pub lost_in: Option<u64>,
    /// why it failed, if it did
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A pair that was asked before a move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TriedPath {
    /// our address and port
    pub local: SocketAddr,
    /// the peer's address and port
    pub remote: SocketAddr,
    /// milliseconds from the first doubt to the question
    pub after_ms: f64,
    /// milliseconds from the question to the answer, if one came
    #[serde(default)]
    pub answered_ms: Option<f64>,
}

/// Records with something in every field, for the tests of who makes them and who shows them.
#[cfg(test)]
pub mod samples {
    use super::*;

    /// An IKE_SA with a pair in use and another one.
    pub fn sa() -> SaPaths {
        let current = PathRecord {
            local: "10.0.1.2:4500".parse().unwrap(),
            remote: "192.0.2.1:4500".parse().unwrap(),
            interface: Some("wlan0".into()),
            current: true,
            state: "operational".into(),
            rtt_ms: Some(12.34),
            loss_percent: Some(0),
            age_ms: Some(3210),
            nat: Some(true),
            validated: true,
            seen_as: None,
            one_way: false,
        };
        let other = PathRecord {
            local: "10.0.20.2:4500".parse().unwrap(),
            interface: None,
            current: false,
            state: "untried".into(),
            rtt_ms: None,
            loss_percent: None,
            age_ms: None,
            nat: None,
            validated: false,
            ..current.clone()
        };
        SaPaths {
            spi_i: "00112233445566aa".into(),
            spi_r: "bb00112233445566".into(),
            remote_id: "vpn.example.com".into(),
            primary: "operational".into(),
            promise: Some(PromiseRecord {
                busy_ms: Some(2050),
                idle_ms: Some(31_050),
                standby_per_hour: 144,
                keepalives_per_hour: 180,
                liveness_per_hour: 120,
            }),
            paths: vec![current, other],
        }
    }

    /// A move that came about.
    pub fn moved() -> MoveRecord {
        MoveRecord {
            at_ms: 61_007,
            time: "2026-11-22T10:11:12.013Z".into(),
            connection: "office".into(),
            outcome: Outcome::Moved,
            cause: "asked for".into(),
            from: "10.0.1.2:4500".parse().unwrap(),
            to: "10.0.2.2:4500".parse().unwrap(),
            remote_from: "192.0.2.1:4500".parse().unwrap(),
            remote_to: "192.0.2.1:4500".parse().unwrap(),
            tried: vec![TriedPath {
                local: "10.0.2.2:4500".parse().unwrap(),
                remote: "192.0.2.1:4500".parse().unwrap(),
                after_ms: 100.0,
                answered_ms: Some(7.0),
            }],
            took_ms: Some(3.25),
            children: 1,
            requests: 4,
            plane_ms: 0.5,
            gap_ms: None,
            lost_in: None,
            error: None,
        }
    }

    /// A move that did not.
    pub fn failed() -> MoveRecord {
        MoveRecord { outcome: Outcome::Failed, error: Some("no".into()), ..moved() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Reply, Request};

    #[test]
    fn paths_and_moves_are_asked_for_all_connections_or_for_one() {
        let read = |text| serde_json::from_str::<Request>(text).unwrap();
        assert_eq!(read(r#"{"command":"paths"}"#), Request::Paths { name: None });
        let one = Request::Moves { name: Some("office".into()) };
        assert_eq!(read(r#"{"command":"moves","name":"office"}"#), one);
        assert_eq!(read(&serde_json::to_string(&one).unwrap()), one);
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let sas = vec![samples::sa()];
        let connections = vec![ConnectionPaths { name: "office".into(), ike_sas: sas }];
        let moved = samples::failed();
        for reply in
            [Reply::Paths(Paths { connections }), Reply::Moves(Moves { moves: vec![moved] })]
        {
            assert!(reply.is_last());
            let line = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply, "{line}");
        }
    }
}
