//! Quick crash detection (RFC 6290): a gateway gives each peer a token, and can make the same one again
//! after a crash that has left it nothing but its secret. A peer that gets its token in the clear knows at
//! once that the IKE_SA is gone at the other end, and does not take minutes to find out.
//!
//! Responders make tokens and initiators take them (§8.1). A token is for the address of its taker as the
//! maker sees it (§5.2), so that nobody elsewhere can have it told; a move brings the next one along in the
//! exchange of UPDATE_SA_ADDRESSES.

use std::{collections::VecDeque, net::IpAddr};

use crate::{
    crypto::{constant_time_eq, mac_sha256},
    secret::Secret,
    wire::{Notify, NotifyType, Payload},
};

/// Tokens are at least as long (RFC 6290 §5), and ours no longer, so that the answer to an unknown IKE_SA
/// hardly exceeds the question.
const LEN: usize = 16;

/// A peer's tokens are no longer (RFC 6290 §5).
const MOST_OCTETS: usize = 128;

/// So many generations of secrets are told with, and so many tokens are looked at (RFC 6290 §4.5).
pub const GENERATIONS: usize = 4;

/// So many of a peer's tokens are kept: it may have the address of one of our last few (RFC 6290 §5).
const KEPT: usize = 4;

/// The secrets that tokens are made with, the newest first: it outlives the process. No more than
/// [`GENERATIONS`] are heeded.
#[derive(Clone, Debug, Default)]
pub struct CrashSecrets(pub Vec<Secret>);

impl CrashSecrets {
    /// The token of the newest secret for an IKE_SA whose peer is at `taker`; `None` without a secret.
    pub(crate) fn token(&self, spis: (u64, u64), taker: IpAddr) -> Option<Payload> {
        self.tokens(spis, taker).next()
    }

    /// The tokens of all secrets.
    pub(crate) fn tokens(
        &self,
        (spi_i, spi_r): (u64, u64),
        taker: IpAddr,
    ) -> impl Iterator<Item = Payload> {
        self.0.iter().take(GENERATIONS).map(move |secret| {
            let address = match taker.to_canonical() {
                IpAddr::V4(a) => a.to_ipv6_mapped(),
                IpAddr::V6(a) => a,
            };
            let parts = [&spi_i.to_be_bytes()[..], &spi_r.to_be_bytes(), &address.octets()];
            let token = &mac_sha256(secret.expose(), &parts)[..LEN];
            Payload::Notify(Notify::new(NotifyType::QUICK_CRASH_DETECTION, token.to_vec()))
        })
    }
}

/// The tokens of an IKE_SA between two rekeys: they are for its SPIs (RFC 6290 §4.3, §5.3).
#[derive(Default)]
pub(crate) struct Tokens {
    /// maker: the address of the token that the peer has
    pub(crate) told: Option<IpAddr>,
    /// taker: what the peer has told, the newest last
    known: VecDeque<Secret>,
}

impl Tokens {
    /// Takes over what a protected message of the peer says (RFC 6290 §4.4).
    pub(crate) fn note(&mut self, payloads: &[Payload]) {
        for token in read(payloads) {
            let token = Secret::new(token.to_vec());
            if !self.known.contains(&token) {
                if self.known.len() == KEPT {
                    self.known.pop_front();
                }
                self.known.push_back(token);
            }
        }
    }

    /// Whether an unprotected message shows that the peer has lost the IKE_SA (RFC 6290 §4.5). Its author
    /// has our token, which nobody has had out of an unprotected message before.
    pub(crate) fn is_crash(&self, payloads: &[Payload]) -> bool {
        let shown = read(payloads).take(GENERATIONS);
        shown.fold(false, |any, token| {
            // Each is compared, whatever the one before has shown.
            let knows = |known: &Secret| constant_time_eq(known.expose(), token);
            self.known.iter().fold(any, |any, known| any | knows(known))
        })
    }
}

fn read(payloads: &[Payload]) -> impl Iterator<Item = &[u8]> {
    payloads.iter().filter_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::QUICK_CRASH_DETECTION => {
            Some(n.data.as_slice()).filter(|data| (LEN..=MOST_OCTETS).contains(&data.len()))
        }
        _ => None,
    })
}

/// Whether these payloads have a token in them.
pub(crate) fn has_token(payloads: &[Payload]) -> bool {
    read(payloads).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(n: u8) -> CrashSecrets {
        CrashSecrets((1..=n).map(|i| Secret::new(vec![i; 32])).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_for_one_pair_of_spis_and_one_address() {
        let secrets = secrets(1);
        let of = |spis, address| secrets.token(spis, ip(address)).unwrap();
        let token = of((1, 2), "192.0.2.1");
        assert_eq!(token, of((1, 2), "::ffff:192.0.2.1"));
        for other in [of((2, 1), "192.0.2.1"), of((1, 3), "192.0.2.1"), of((1, 2), "192.0.2.2")] {
            assert_ne!(token, other);
        }
        assert_eq!(CrashSecrets::default().token((1, 2), ip("192.0.2.1")), None);
    }

    #[test]
    fn the_last_four_tokens_are_known_and_four_generations_are_looked_at() {
        let mut tokens = Tokens::default();
        let token = |n: u8| Payload::Notify(Notify::new(NotifyType(16419), vec![n; 16]));
        for n in 0..6 {
            tokens.note(&[token(n)]);
        }
        assert!(!tokens.is_crash(&[token(1)]), "too old");
        assert!(tokens.is_crash(&[token(7), token(8), token(9), token(2)]));
        assert!(!tokens.is_crash(&[token(7), token(8), token(9), token(10), token(2)]));
        assert!(!tokens.is_crash(&[]));
        assert_eq!(secrets(6).tokens((1, 2), ip("192.0.2.1")).count(), GENERATIONS);
    }

    #[test]
    fn a_token_of_an_impossible_length_is_none() {
        let mut tokens = Tokens::default();
        for len in [0, 1, 15, 129, 4000] {
            let payload = [Payload::Notify(Notify::new(NotifyType(16419), vec![7; len]))];
            tokens.note(&payload);
            assert!(!tokens.is_crash(&payload) && !has_token(&payload), "{len} octets");
        }
    }
}
