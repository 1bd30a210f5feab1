//! Somebody who asks for an IKE_SA and goes away: the half-open IKE_SA that makes a gateway ask
//! everybody for cookies (RFC 7296 §2.6).

use std::time::Duration;

use crate::failure::{Context, Result};
use crate::peer::tunnel::Tunnel;
use crate::topology::{Node, Topology};

/// The one suite that the stranger offers.
pub const SUITE: &str = "aes256gcm16-prfsha256-x25519";

/// ENCR 20 with a key of 256 bits, PRF 5, key exchange 31 (RFC 7296 §3.3).
const TRANSFORMS: [&[u8]; 3] = [&[1, 0, 0, 20, 0x80, 0x0e, 1, 0], &[2, 0, 0, 5], &[4, 0, 0, 31]];

const SA: u8 = 33;
const KEY_EXCHANGE: u8 = 34;
const NONCE: u8 = 40;

/// Sends an IKE_SA_INIT from the client's host and waits until the gateway has answered.
///
/// # Errors
/// It does not answer.
pub fn ask(topology: &Topology) -> Result<()> {
    let socket = topology.udp_socket(Node::Client, ([0, 0, 0, 0], 0).into())?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).context("receive timeout")?;
    let gateway = (Tunnel::default().gateway_address(), 500);
    socket.send_to(&request(), gateway).context("a stranger's IKE_SA_INIT")?;
    socket.recv(&mut [0; 2048]).context("the answer to a stranger").map(drop)
}

/// Any 32 octets are a public value of Curve25519, and a nonce.
fn request() -> Vec<u8> {
    let mut proposal = vec![1, 1, 0, TRANSFORMS.len() as u8];
    for (number, transform) in TRANSFORMS.iter().enumerate() {
        let more = if number + 1 < TRANSFORMS.len() { 3 } else { 0 };
        proposal.extend(counted(more, transform));
    }
    let key_exchange: Vec<u8> = [0, 31, 0, 0].into_iter().chain(1..=32).collect();
    let nonce: Vec<u8> = (1..=32).rev().collect();
    let payloads = [
        counted(KEY_EXCHANGE, &counted(0, &proposal)),
        counted(NONCE, &key_exchange),
        counted(0, &nonce),
    ]
    .concat();
    let length = (28 + payloads.len()) as u32;
    let mut message = b"stranger\0\0\0\0\0\0\0\0".to_vec();
    message.extend([SA, 0x20, 34, 0x08, 0, 0, 0, 0]);
    message.extend(length.to_be_bytes());
    message.extend(payloads);
    message
}

/// The header that payloads, proposals and transforms share: what follows, and the length.
fn counted(next: u8, body: &[u8]) -> Vec<u8> {
    let [high, low] = ((body.len() + 4) as u16).to_be_bytes();
    [&[next, 0, high, low], body].concat()
}
