//! What goes over the control socket, and so what `--json` prints.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::control::roaming::{Moves, Paths};

/// What a client asks for: the one line that it sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// establish the connection, with its events until that is done or has failed
    Up {
        /// the connection's name in the configuration
        name: String,
    },
    /// delete the IKE_SAs of the connection
    Down {
        /// the connection's name in the configuration
        name: String,
    },
    /// the state of everything, once
    Status {},
    /// the pairs of addresses of each IKE_SA, once
    Paths {
        /// the connection's name in the configuration; none for all
        #[serde(default)]
        name: Option<String>,
    },
    /// the last moves of this run of the daemon
    Moves {
        /// the connection's name in the configuration; none for all
        #[serde(default)]
        name: Option<String>,
    },
    /// use another local address
    Move {
        /// the connection's name in the configuration
        name: String,
        /// an address of this machine, or the name of an interface
        to: String,
    },
    /// give the connection's CHILD_SAs new keys
    Rekey {
        /// the connection's name in the configuration
        name: String,
        /// the IKE_SA instead of the CHILD_SAs
        #[serde(default)]
        ike: bool,
    },
    /// every event from now on, until the client goes away
    Events {},
}

/// One line of the daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// something happened
    Event(EventRecord),
    /// the answer to [`Request::Status`], and the last line
    Status(Box<Status>),
    /// the answer to [`Request::Paths`], and the last line
    Paths(Paths),
    /// the answer to [`Request::Moves`], and the last line
    Moves(Moves),
    /// what was asked is done; the last line
    Done {
        /// one sentence for a person
        text: String,
    },
    /// what was asked could not be done; the last line
    Error {
        /// what went wrong, one sentence
        text: String,
        /// what the operator can do about it
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remedy: Option<String>,
    },
}

impl Reply {
    /// Whether nothing follows this line.
    pub fn is_last(&self) -> bool {
        !matches!(self, Reply::Event(_))
    }
}

/// Something that happened, as `bewick events` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// milliseconds since the daemon started
    pub at_ms: u64,
    /// what kind of event, in kebab case
    pub event: String,
    /// the connection that it belongs to, if it belongs to one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// the particulars, by name
    #[serde(flatten)]
    pub fields: Map<String, Value>,
    /// the event in one sentence for a person
    pub text: String,
}

/// The state of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// the version of the running daemon
    pub version: String,
    /// its process
    pub pid: u32,
    /// what carries the traffic
    pub dataplane: DataPlaneStatus,
    /// the local addresses that an outer packet can have
    #[serde(default)]
    pub addresses: Vec<AddressStatus>,
    /// the connections in the order of the configuration
    pub connections: Vec<ConnectionStatus>,
}

/// The data plane that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// `kernel` or `userspace`
    pub kind: String,
    /// why this one was taken
    pub reason: String,
    /// how it moves an SA
    pub move_method: String,
}

/// A local address that an outer packet can have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// the address
    pub address: IpAddr,
    /// the interface that holds it
    pub interface: String,
    /// the metric of the interface's default route, if it has one
    pub metric: Option<u32>,
}

/// A connection of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    /// its name
    pub name: String,
    /// `initiator` or `responder`
    pub role: String,
    /// `idle`, `listening`, `connecting`, `established` or `waiting`
    pub state: String,
    /// its IKE_SAs, the oldest first
    pub ike_sas: Vec<IkeSaStatus>,
}

/// An IKE_SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IkeSaStatus {
    /// the initiator's SPI, 16 hex digits
    pub spi_i: String,
    /// the responder's SPI, 16 hex digits
    pub spi_r: String,
    /// the state in one word
    pub state: String,
    /// our address and port
    pub local: SocketAddr,
    /// the peer's address and port as we see them
    pub remote: SocketAddr,
    /// our identity
    pub local_id: String,
    /// the peer's identity
    pub remote_id: String,
    /// whether a NAT is in front of us
    pub nat_local: bool,
    /// whether a NAT is in front of the peer
    pub nat_remote: bool,
    /// whether the SA can move (RFC 4555)
    pub mobike: bool,
    /// inner addresses that were assigned, to us or by us
    pub virtual_ips: Vec<IpAddr>,
    /// DNS servers that the gateway has told
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// the domains that these are for, none for all
    #[serde(default)]
    pub dns_domains: Vec<String>,
    /// networks behind the gateway, as it says
    #[serde(default)]
    pub subnets: Vec<String>,
    /// its CHILD_SAs
    pub children: Vec<ChildStatus>,
}

/// A CHILD_SA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// the SPI in packets to us, `0x` and 8 hex digits
    pub spi_in: String,
    /// the SPI in packets from us
    pub spi_out: String,
    /// what ESP protects, `tunnel` or `transport` (RFC 4301 §4.1)
    #[serde(default)]
    pub mode: String,
    /// the algorithms in the words of the configuration
    pub suite: String,
    /// extended sequence numbers (RFC 4303 §2.2.1)
    #[serde(default)]
    pub esn: bool,
    /// whether ESP travels in UDP
    pub encap: bool,
    /// what is on our side
    pub local_ts: Vec<String>,
    /// what is on the peer's side
    pub remote_ts: Vec<String>,
    /// inner octets received
    pub octets_in: u64,
    /// inner octets sent
    pub octets_out: u64,
    /// packets received
    pub packets_in: u64,
    /// packets sent
    pub packets_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let mut fields = Map::new();
        fields.insert("to".into(), "198.51.100.7:4500".into());
        let record = EventRecord {
            at_ms: 12,
            event: "moved".into(),
            connection: Some("office".into()),
            fields,
            text: "moved".into(),
        };
        let line = serde_json::to_string(&Reply::Event(record.clone())).unwrap();
        assert_eq!(
            line,
            r#"{"reply":"event","at_ms":12,"event":"moved","connection":"office","to":"198.51.100.7:4500","text":"moved"}"#
        );
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), Reply::Event(record));
    }

    #[test]
    fn an_unknown_command_or_field_is_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"command":"reboot"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"command":"status","x":1}"#).is_err());
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"command":"up","name":"office"}"#).unwrap(),
            Request::Up { name: "office".into() }
        );
    }
}
