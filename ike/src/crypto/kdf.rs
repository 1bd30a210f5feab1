//! The keys of an IKE_SA (RFC 7296 §2.14, §2.18) and of its CHILD_SAs (§2.17).

use super::{
    CryptoError,
    suite::{IkeSuite, Prf},
};
use crate::{
    child::{EspKeys, EspSuite},
    secret::Secret,
};

/// The seven keys of an IKE_SA, named as RFC 7296 §2.14 names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkKeys {
    /// SK_d: the root of the CHILD_SAs' keys and of the next IKE_SA's
    pub d: Secret,
    /// SK_ai: integrity of what the original initiator sends; empty with an AEAD
    pub ai: Secret,
    /// SK_ar: integrity of what the original responder sends; empty with an AEAD
    pub ar: Secret,
    /// SK_ei: encryption of what the original initiator sends, with an AEAD's salt at its end
    pub ei: Secret,
    /// SK_er: encryption of what the original responder sends, with an AEAD's salt at its end
    pub er: Secret,
    /// SK_pi: goes into the initiator's AUTH payload
    pub pi: Secret,
    /// SK_pr: goes into the responder's AUTH payload
    pub pr: Secret,
}

/// The keys of an IKE_SA made by IKE_SA_INIT: SKEYSEED = prf(Ni | Nr, g^ir) (RFC 7296 §2.14).
///
/// # Errors
/// [`CryptoError::PrfPlusExhausted`], which no suite of ours can reach.
pub fn derive_ike(
    suite: IkeSuite,
    shared: &Secret,
    ni: &[u8],
    nr: &[u8],
    spi_i: &[u8; 8],
    spi_r: &[u8; 8],
) -> Result<SkKeys, CryptoError> {
    let mut key = Vec::with_capacity(ni.len() + nr.len());
    key.extend_from_slice(ni);
    key.extend_from_slice(nr);
    let skeyseed = suite.prf.mac(&key, &[shared.expose()]);
    expand_ike(suite, &skeyseed, ni, nr, spi_i, spi_r)
}

/// The keys of an IKE_SA made by rekeying another: SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)
/// with the old IKE_SA's prf, then as ever with the new one's nonces and SPIs (RFC 7296 §2.18).
///
/// # Errors
/// [`CryptoError::PrfPlusExhausted`], which no suite of ours can reach.
#[expect(clippy::too_many_arguments, reason = "the formula has that many inputs")]
pub fn derive_ike_rekey(
    old_prf: Prf,
    old_sk_d: &Secret,
    suite: IkeSuite,
    shared: &Secret,
    ni: &[u8],
    nr: &[u8],
    spi_i: &[u8; 8],
    spi_r: &[u8; 8],
) -> Result<SkKeys, CryptoError> {
    let skeyseed = old_prf.mac(old_sk_d.expose(), &[shared.expose(), ni, nr]);
    expand_ike(suite, &skeyseed, ni, nr, spi_i, spi_r)
}

/// {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
fn expand_ike(
    suite: IkeSuite,
    skeyseed: &Secret,
    ni: &[u8],
    nr: &[u8],
    spi_i: &[u8; 8],
    spi_r: &[u8; 8],
) -> Result<SkKeys, CryptoError> {
    let prf_key = suite.prf.key_len();
    let integrity = suite.encryption.integrity_key_len();
    let encryption = suite.encryption.encryption_key_len();
    let total = 3 * prf_key + 2 * integrity + 2 * encryption;
    let octets = suite.prf.prf_plus(skeyseed.expose(), &[ni, nr, spi_i, spi_r], total)?;
    let mut stream = Stream(octets.expose());
    Ok(SkKeys {
        d: stream.take(prf_key)?,
        ai: stream.take(integrity)?,
        ar: stream.take(integrity)?,
        ei: stream.take(encryption)?,
        er: stream.take(encryption)?,
        pi: stream.take(prf_key)?,
        pr: stream.take(prf_key)?,
    })
}

/// The keys of a CHILD_SA: first those of what the exchange's initiator sends, then those of what
/// its responder sends. KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr) (RFC 7296 §2.17); the nonces
/// are those of IKE_SA_INIT for the CHILD_SA that IKE_AUTH makes, else those of the CREATE_CHILD_SA
/// exchange.
///
/// # Errors
/// [`CryptoError::PrfPlusExhausted`], which no suite of ours can reach.
pub fn derive_child(
    prf: Prf,
    sk_d: &Secret,
    shared: Option<&Secret>,
    ni: &[u8],
    nr: &[u8],
    suite: EspSuite,
) -> Result<(EspKeys, EspKeys), CryptoError> {
    let encryption = suite.encryption_key_len();
    let integrity = suite.integrity_key_len();
    let shared = shared.map_or(&[][..], Secret::expose);
    let octets = prf.prf_plus(sk_d.expose(), &[shared, ni, nr], 2 * (encryption + integrity))?;
    let mut stream = Stream(octets.expose());
    // RFC 7296 §2.17: all keys of initiator to responder come first, encryption before integrity.
    let mut direction = || -> Result<EspKeys, CryptoError> {
        Ok(EspKeys { encryption: stream.take(encryption)?, integrity: stream.take(integrity)? })
    };
    Ok((direction()?, direction()?))
}

/// Key material that keys are cut from, one after the other.
struct Stream<'a>(&'a [u8]);

impl Stream<'_> {
    fn take(&mut self, len: usize) -> Result<Secret, CryptoError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(CryptoError::KeyLength)?;
        self.0 = tail;
        Ok(Secret::new(head.to_vec()))
    }
}
