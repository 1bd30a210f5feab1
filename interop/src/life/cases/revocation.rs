//! Revocation lists (RFC 5280 §5): one that has nothing against the peer, one that has, and none at hand.

use std::path::Path;

use crate::failure::Result;
use crate::life::case::{Case, Outcome};
use crate::peer::Program;
use crate::peer::tunnel::{Proof, Tunnel};
use crate::pki::{self, Kind};
use crate::topology::Node;

const KIND: Kind = Kind::Ecdsa256;

/// Both ends want a list and have one, of nothing; a client whose list has the gateway's certificate, and one that
/// wants a list and has another authority's.
///
/// # Errors
/// Certificates or lists could not be made in `folder`.
pub fn lists(folder: &Path) -> Result<Vec<Case>> {
    let make = |node| pki::make(&folder.join("lists"), node, KIND, false).map(Proof::Certificate);
    let list = |node, revoked| pki::list(&folder.join("lists"), node, KIND, revoked);
    let mut tunnel = Tunnel::default();
    tunnel.client.proof = make(Node::Client)?;
    tunnel.gateway.proof = make(Node::Gateway)?;
    let case = |name: &str, outcome| Case { outcome, ..Case::new(name, tunnel.clone()) };

    let mut good = case("list-of-none", Outcome::Up);
    (good.tunnel.client.strict, good.tunnel.gateway.strict) = (true, true);
    good.tunnel.client.revoked = Some(list(Node::Gateway, false)?);
    good.tunnel.gateway.revoked = Some(list(Node::Client, false)?);
    good.said = vec![(Program::Strongswan, &["certificate status is good"])];

    // The gateway, to which all is well, has to be told (RFC 7296 §2.21.2).
    let mut revoked = case("gateway-revoked", Outcome::NoIkeSa);
    revoked.tunnel.client.revoked = Some(list(Node::Gateway, true)?);
    let mut other = case("list-of-another", Outcome::NoIkeSa);
    other.tunnel.client.strict = true;
    other.tunnel.client.revoked = Some(list(Node::Client, false)?);
    Ok(vec![good, revoked, other])
}
