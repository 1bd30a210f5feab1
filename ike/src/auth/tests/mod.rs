//! Tests of proof: what is accepted, what is refused, and what published vectors say.

mod hostile;
mod keys;
mod pki;
mod proof;
mod signature;
mod wycheproof;
mod x509;

use super::{PrivateKey, Signer};

macro_rules! fixture {
    ($name:literal) => {
        include_bytes!(concat!("fixtures/", $name)).as_slice()
    };
}
use fixture;

/// One key of each kind.
fn keys() -> [PrivateKey; 4] {
    [
        fixture!("rsa2048-a.pem"),
        fixture!("p256-sec1.pem"),
        fixture!("p384-sec1.pem"),
        fixture!("ed25519.pem"),
    ]
    .map(key)
}

fn key(file: &[u8]) -> PrivateKey {
    PrivateKey::from_file(file).expect("a fixture")
}

/// Hexadecimal digits, with spaces anywhere.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).expect("an octet")).collect()
}
