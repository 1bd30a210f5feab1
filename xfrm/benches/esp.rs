//! What sealing and opening an ESP packet costs in userspace, on one core, beside `ring` alone.
//!
//! `cargo bench -p bewick-xfrm` prints nanoseconds a packet: the median of several rounds. "ring" is the same
//! AEAD over the same number of octets without ESP's header, padding and check of the padding.

#![allow(dead_code)]

use std::hint::black_box;
use std::time::Instant;

use bewick_ike::{EspKeys, EspSpi, EspSuite, Secret};
use bewick_xfrm::PlaneError;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305};
use ring::aead::{LessSafeKey, Nonce, UnboundKey};

// The plane's own code, which has no other user outside.
#[path = "../src/userspace/cipher.rs"]
mod cipher;
#[path = "../src/userspace/esp.rs"]
mod esp;

use esp::{HEADROOM, NEXT_IPV4, TAILROOM, Transform};

const PACKETS: u64 = 20_000;
const ROUNDS: usize = 15;

fn main() {
    println!("{:<22}{:>7}{:>10}{:>10}{:>10}{:>10}", "", "octets", "seal", "ring", "open", "ring");
    let suites = [
        ("AES-GCM-128", EspSuite::AesGcm16 { key_bits: 128 }, &AES_128_GCM),
        ("AES-GCM-256", EspSuite::AesGcm16 { key_bits: 256 }, &AES_256_GCM),
        ("ChaCha20-Poly1305", EspSuite::ChaCha20Poly1305, &CHACHA20_POLY1305),
    ];
    for (name, suite, algorithm) in suites {
        for octets in [64, 1400] {
            let [seal, open] = bewick(suite, octets);
            let [ring_seal, ring_open] = ring_alone(algorithm, octets);
            println!(
                "{name:<22}{octets:>7}{seal:>10.0}{ring_seal:>10.0}{open:>10.0}{ring_open:>10.0}"
            );
        }
    }
}

fn bewick(suite: EspSuite, octets: usize) -> [f64; 2] {
    let keys = EspKeys {
        encryption: Secret::new(vec![7; suite.encryption_key_len()]),
        integrity: Secret::new(vec![7; suite.integrity_key_len()]),
    };
    let transform = match Transform::new(EspSpi(0x1234_5678), suite, false, &keys) {
        Ok(transform) => transform,
        Err(error) => panic!("{error}"),
    };
    let mut buffer = vec![1; HEADROOM + octets + TAILROOM];
    let payload = HEADROOM..HEADROOM + octets;
    let seal = median(|sequence| {
        let packet = transform.seal(sequence, black_box(&mut buffer), payload.clone(), NEXT_IPV4);
        assert!(packet.is_ok());
    });
    let Ok(packet) = transform.seal(1, &mut buffer, payload, NEXT_IPV4) else { panic!("no room") };
    let sealed = buffer.get(packet).unwrap_or_default().to_vec();
    let mut copy = sealed.clone();
    let open = median(|_| {
        // Opening is in place: each round needs the packet anew.
        copy.copy_from_slice(&sealed);
        assert!(transform.open(1, black_box(&mut copy)).is_ok());
    });
    [seal, open]
}

fn ring_alone(algorithm: &'static Algorithm, octets: usize) -> [f64; 2] {
    let key = UnboundKey::new(algorithm, &vec![7; algorithm.key_len()]);
    let key = LessSafeKey::new(key.unwrap_or_else(|_| panic!("the key fits")));
    let nonce = |sequence: u64| {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&sequence.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    };
    let mut text = vec![1; octets];
    let seal = median(|sequence| {
        let aad = Aad::from([0; 8]);
        let tag = key.seal_in_place_separate_tag(nonce(sequence), aad, black_box(&mut text));
        assert!(black_box(tag).is_ok());
    });
    let Ok(tag) = key.seal_in_place_separate_tag(nonce(1), Aad::from([0; 8]), &mut text) else {
        panic!("short enough")
    };
    let sealed = [&text[..], tag.as_ref()].concat();
    let mut copy = sealed.clone();
    let open = median(|_| {
        copy.copy_from_slice(&sealed);
        let opened = key.open_in_place(nonce(1), Aad::from([0; 8]), black_box(&mut copy));
        assert!(opened.is_ok());
    });
    [seal, open]
}

/// Nanoseconds of one call, which gets a number that it has not had.
fn median(mut call: impl FnMut(u64)) -> f64 {
    let mut number = 0;
    let mut round = || {
        let start = Instant::now();
        for _ in 0..PACKETS {
            number += 1;
            call(number);
        }
        start.elapsed().as_nanos() as f64 / PACKETS as f64
    };
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds.get(ROUNDS / 2).copied().unwrap_or_default()
}
