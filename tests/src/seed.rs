//! One number seeds a whole run; each part of it draws from a stream of its own.

use bewick_ike::Random;

/// The generator that the run `seed` gives to the part called `name` (24 octets of it count).
///
/// Streams of their own keep runs comparable: a host that draws one nonce more does not change which
/// packets are lost.
pub fn stream(seed: u64, name: &str) -> Random {
    let mut octets = [0; 32];
    let (number, label) = octets.split_at_mut(8);
    number.copy_from_slice(&seed.to_be_bytes());
    for (out, octet) in label.iter_mut().zip(name.bytes()) {
        *out = octet;
    }
    Random::from_seed(octets)
}

/// A number below `bound`, near enough to uniform for a test; 0 if `bound` is 0.
pub fn below(random: &mut Random, bound: u64) -> u64 {
    random.u64().checked_rem(bound).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_seed_and_name_alone() {
        assert_eq!(stream(7, "net").u64(), stream(7, "net").u64());
        assert_ne!(stream(7, "net").u64(), stream(8, "net").u64());
        assert_ne!(stream(7, "net").u64(), stream(7, "nat").u64());
    }

    #[test]
    fn below_stays_below() {
        let mut random = stream(1, "below");
        assert!((0..1000).all(|_| below(&mut random, 7) < 7));
        assert_eq!(below(&mut random, 0), 0);
    }
}
