//! The ECP groups of RFC 5903, over any of the NIST curves.

use p256::elliptic_curve::{
    AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey,
    sec1::{FromSec1Point, ModulusSize, ToSec1Point},
};

use crate::{crypto::CryptoError, secret::Secret};

/// The octet with which SEC 1 marks a point that has both its coordinates.
const UNCOMPRESSED: u8 = 0x04;

/// x and y, without the octet that SEC 1 puts in front of them (RFC 5903 §7).
pub(super) fn public<C>(private: &SecretKey<C>) -> Option<Vec<u8>>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    let point = private.public_key().to_sec1_point(false);
    Some(point.as_bytes().get(1..)?.to_vec())
}

/// The x coordinate of the common point (RFC 5903 §7).
pub(super) fn agree<C>(private: &SecretKey<C>, peer: &[u8]) -> Result<Secret, CryptoError>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    let point = [&[UNCOMPRESSED], peer].concat();
    // RFC 6989 §2.3: both coordinates below the prime, and the point on the curve.
    let peer =
        PublicKey::<C>::from_sec1_bytes(&point).map_err(|_| CryptoError::InvalidPublicValue)?;
    let shared =
        p256::elliptic_curve::ecdh::diffie_hellman(private.to_nonzero_scalar(), peer.as_affine());
    Ok(Secret::new(shared.raw_secret_bytes().to_vec()))
}
