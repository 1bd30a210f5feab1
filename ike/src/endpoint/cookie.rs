//! Stateless cookies (RFC 7296 §2.6): bound to the nonce, the source address and the initiator's SPI,
//! under a secret that changes every two minutes.

use std::net::IpAddr;

use crate::{
    crypto::{constant_time_eq, mac_sha256},
    random::Random,
    secret::Secret,
    time::Time,
};

const EPOCH_MICROS: u64 = 120 * 1_000_000;

/// What a cookie is bound to: Ni, IPi, SPIi.
pub(super) type Input<'a> = (&'a [u8], IpAddr, u64);

/// Makes and checks cookies. The secret of each epoch comes from a master key, so that nothing is
/// kept and the one before is still good.
pub(super) struct Cookies {
    master: Secret,
}

impl Cookies {
    pub(super) fn new(random: &mut Random) -> Self {
        Cookies { master: Secret::new(random.array::<32>().to_vec()) }
    }

    fn of(&self, epoch: u64, (nonce, address, spi): Input<'_>) -> Vec<u8> {
        let secret = mac_sha256(self.master.expose(), &[&epoch.to_be_bytes()]);
        let address = match address {
            IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
            IpAddr::V6(a) => a.octets(),
        };
        mac_sha256(&secret, &[&spi.to_be_bytes(), &address, nonce]).to_vec()
    }

    pub(super) fn make(&self, now: Time, input: Input<'_>) -> Vec<u8> {
        self.of(now.as_micros() / EPOCH_MICROS, input)
    }

    pub(super) fn check(&self, now: Time, input: Input<'_>, cookie: &[u8]) -> bool {
        let epoch = now.as_micros() / EPOCH_MICROS;
        [Some(epoch), epoch.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|epoch| constant_time_eq(&self.of(epoch, input), cookie))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_2_6_1_a_cookie_is_bound_to_nonce_address_spi_and_time() {
        let cookies = Cookies::new(&mut Random::from_seed([1; 32]));
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        let cookie = cookies.make(at(100), (b"nonce", address, 7));
        assert!((1..=64).contains(&cookie.len()));
        assert!(cookies.check(at(100), (b"nonce", address, 7), &cookie));
        assert!(cookies.check(at(200), (b"nonce", address, 7), &cookie), "one rotation later");
        assert!(!cookies.check(at(400), (b"nonce", address, 7), &cookie), "two rotations later");
        assert!(!cookies.check(at(100), (b"other", address, 7), &cookie));
        assert!(!cookies.check(at(100), (b"nonce", "192.0.2.2".parse().unwrap(), 7), &cookie));
        assert!(!cookies.check(at(100), (b"nonce", address, 8), &cookie));
    }
}
