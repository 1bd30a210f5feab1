//! The MODP groups of RFC 3526: powers of 2 modulo a safe prime, in constant time.

use std::sync::LazyLock;

use crypto_bigint::{
    BoxedUint, Odd, U2048, U3072, U4096,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use zeroize::Zeroizing;

use crate::{crypto::CryptoError, secret::Secret};

pub(super) static MODP_2048: LazyLock<Group> = LazyLock::new(|| Group::new(P2048.into()));
pub(super) static MODP_3072: LazyLock<Group> = LazyLock::new(|| Group::new(P3072.into()));
pub(super) static MODP_4096: LazyLock<Group> = LazyLock::new(|| Group::new(P4096.into()));

/// A group with what multiplication needs, computed once.
pub(super) struct Group {
    params: BoxedMontyParams,
    minus_one: BoxedUint,
}

/// An exponent; its length, which timing may show, is the same for all of a group.
pub(super) type Exponent = Zeroizing<BoxedUint>;

impl Group {
    fn new(prime: Odd<BoxedUint>) -> Self {
        let minus_one = prime.wrapping_sub(BoxedUint::one_with_precision(prime.bits_precision()));
        Group { params: BoxedMontyParams::new_vartime(prime), minus_one }
    }

    fn bits(&self) -> u32 {
        self.params.bits_precision()
    }

    /// The exponent of those octets; `None` for 0, whose power everybody knows, and for what is
    /// longer than the prime.
    pub(super) fn exponent(&self, octets: &[u8]) -> Option<Exponent> {
        let bits =
            u32::try_from(octets.len()).ok()?.checked_mul(8).filter(|b| *b <= self.bits())?;
        let exponent = Zeroizing::new(BoxedUint::from_be_slice(octets, bits).ok()?);
        (!bool::from(exponent.is_zero())).then_some(exponent)
    }

    /// 2^exponent, as long as the prime.
    pub(super) fn public(&self, exponent: &Exponent) -> Vec<u8> {
        self.power(BoxedUint::from_be_slice_truncated(&[2], self.bits()), exponent)
    }

    /// peer^exponent, as long as the prime (RFC 7296 §2.14).
    ///
    /// # Errors
    /// [`CryptoError::InvalidPublicValue`] if `peer` is not between 1 and the prime less 1.
    pub(super) fn agree(&self, exponent: &Exponent, peer: &[u8]) -> Result<Secret, CryptoError> {
        let peer = BoxedUint::from_be_slice(peer, self.bits())
            .map_err(|_| CryptoError::InvalidPublicValue)?;
        // RFC 6989 §2.1: 1 < r < p - 1. With a safe prime nothing between has a small order.
        if peer <= BoxedUint::one_with_precision(self.bits()) || peer >= self.minus_one {
            return Err(CryptoError::InvalidPublicValue);
        }
        Ok(Secret::new(self.power(peer, exponent)))
    }

    /// The time depends on the lengths of the prime and of the exponent alone.
    fn power(&self, base: BoxedUint, exponent: &Exponent) -> Vec<u8> {
        let power = BoxedMontyForm::new(base, &self.params).pow(exponent);
        let power = Zeroizing::new(Zeroizing::new(power).retrieve());
        power.to_be_bytes().into_vec()
    }
}

#[cfg(test)]
impl Group {
    pub(super) fn prime(&self) -> Vec<u8> {
        self.params.modulus().to_be_bytes().into_vec()
    }
}

/// RFC 3526 §3
const P2048: Odd<U2048> = Odd::<U2048>::from_be_hex(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
     020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
     4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
     EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
     98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
     9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
     E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
     3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
);

/// RFC 3526 §4
const P3072: Odd<U3072> = Odd::<U3072>::from_be_hex(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
     020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
     4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
     EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
     98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
     9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
     E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
     3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33\
     A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
     ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864\
     D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2\
     08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
);

/// RFC 3526 §5
const P4096: Odd<U4096> = Odd::<U4096>::from_be_hex(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
     020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
     4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
     EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
     98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
     9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
     E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
     3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33\
     A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
     ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864\
     D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2\
     08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7\
     88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8\
     DBBBC2DB04DE8EF92E8EFC141FBECAA6287C59474E6BC05D99B2964FA090C3A2\
     233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9\
     93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF",
);
