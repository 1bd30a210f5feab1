//! Who the ends are: identities of each type (RFC 7296 §3.5).

use crate::life::case::{Case, Outcome};
use crate::peer::tunnel::Tunnel;

/// What it is, who the client is, and who the gateway.
const NAMES: &[(&str, &str, &str)] = &[
    ("ipv4", "198.51.100.2", "192.0.2.1"),
    ("ipv6", "2001:db8:1::2", "2001:db8:2::1"),
    ("fqdn", "laptop.example.com", "vpn.example.com"),
    ("email", "laptop@example.com", "gate@example.com"),
    ("key-id", "keyid:laptop-7", "keyid:gate-1"),
    ("fqdn-to-key-id", "laptop.example.com", "keyid:gate-1"),
    ("ipv4-of-somebody", "10.77.0.5", "vpn.example.com"),
];

/// Each type at both ends, which take their peer for nobody else; and peers that are somebody else, if only
/// by the type of their name.
pub fn identities() -> Vec<Case> {
    let tunnel = |client, gateway| {
        let mut tunnel = Tunnel::default();
        tunnel.client.id = Some(client);
        tunnel.gateway.id = Some(gateway);
        tunnel
    };
    let alike =
        NAMES.iter().map(|&(name, client, gateway)| Case::new(name, tunnel(client, gateway)));
    let refused =
        |name: &str, tunnel| Case { outcome: Outcome::NoIkeSa, ..Case::new(name, tunnel) };
    let mut key_id = tunnel("keyid:laptop.example.com", "vpn.example.com");
    key_id.gateway.expects = Some("laptop.example.com");
    let mut other = tunnel("laptop.example.com", "vpn.example.com");
    other.client.expects = Some("other.example.com");
    alike.chain([refused("key-id-is-no-fqdn", key_id), refused("other-gateway", other)]).collect()
}
