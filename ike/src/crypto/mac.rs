//! A keyed hash for values that only we check, such as cookies (RFC 7296 §2.6), and the comparison
//! that goes with it.

use ring::hmac;
use subtle::ConstantTimeEq;

/// HMAC-SHA-256 of the parts joined. A caller whose parts vary in length says the lengths in them.
pub fn mac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Whether the octets are the same; the time it takes depends on the lengths alone.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
