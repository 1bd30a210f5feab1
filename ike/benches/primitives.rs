//! What the cryptography of a set-up costs on this machine: key exchange, key derivation, sealing.
//!
//! Run with `cargo bench -p bewick-ike`; an argument is a part of the names to run.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bewick_ike::{
    HmacSha2, Random, Secret,
    crypto::{IkeEncryption, IkeSuite, KeyExchange, KeyExchangeMethod, Prf, Sealer, derive_ike},
};

const EACH: Duration = Duration::from_millis(400);

/// Prints how long one call takes, on average over about half a second.
fn measure(name: &str, mut call: impl FnMut()) {
    let wanted = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if wanted.is_some_and(|part| !name.contains(&part)) {
        return;
    }
    call();
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < EACH {
        call();
        calls += 1;
    }
    let micros = start.elapsed().as_secs_f64() * 1e6 / f64::from(calls);
    println!("{name:<44} {micros:>10.2} us {:>12.0} a second", 1e6 / micros);
}

fn main() {
    let mut random = Random::from_seed([1; 32]);
    for method in [
        KeyExchangeMethod::X25519,
        KeyExchangeMethod::Ecp256,
        KeyExchangeMethod::Ecp384,
        KeyExchangeMethod::Ecp521,
        KeyExchangeMethod::Modp2048,
        KeyExchangeMethod::Modp3072,
        KeyExchangeMethod::Modp4096,
    ] {
        measure(&format!("{method:?}: draw a private value"), || {
            black_box(KeyExchange::generate(method, &mut random));
        });
        let ours = KeyExchange::generate(method, &mut random);
        let peer = KeyExchange::generate(method, &mut random);
        measure(&format!("{method:?}: agree"), || {
            black_box(ours.agree(black_box(peer.public())).is_ok());
        });
    }

    let shared = Secret::new(vec![2; 32]);
    for prf in [Prf::HmacSha256, Prf::HmacSha384, Prf::HmacSha512] {
        let encryption = IkeEncryption::AesGcm16 { key_bits: 256 };
        let suite = IkeSuite { encryption, prf, key_exchange: KeyExchangeMethod::X25519 };
        measure(&format!("{prf:?}: keys of an IKE_SA"), || {
            black_box(derive_ike(suite, &shared, &[3; 32], &[4; 32], &[5; 8], &[6; 8]).is_ok());
        });
    }

    for encryption in [
        IkeEncryption::AesGcm16 { key_bits: 256 },
        IkeEncryption::AesGcm16 { key_bits: 192 },
        IkeEncryption::ChaCha20Poly1305,
        IkeEncryption::AesCbc { key_bits: 256, integrity: HmacSha2::Sha256 },
    ] {
        let e = Secret::new(vec![7; encryption.encryption_key_len()]);
        let a = Secret::new(vec![8; encryption.integrity_key_len()]);
        let Ok(mut sealer) = Sealer::new(encryption, &e, &a) else { continue };
        measure(&format!("{encryption:?}: seal 400 octets"), || {
            black_box(sealer.seal(&mut random, &[9; 32], &[10; 400]).is_ok());
        });
    }
}
