//! The ESP packet format (RFC 4303 §2): builds and takes apart packets in place.

use std::ops::Range;

use bewick_ike::{EspKeys, EspSpi, EspSuite};

use super::cipher::{Cipher, MAX_ICV, MAX_IV, Parts};
use crate::PlaneError;

/// Octets that [`Transform::seal`] may need before the payload: SPI, sequence number, vector.
pub(super) const HEADROOM: usize = HEADER + MAX_IV;
/// Octets that [`Transform::seal`] may need after the payload: padding, trailer, check value.
pub(super) const TAILROOM: usize = 15 + TRAILER + MAX_ICV;

/// Next header (RFC 4303 §2.6): an IPv4 packet, in tunnel mode.
pub(super) const NEXT_IPV4: u8 = 4;
/// Next header: an IPv6 packet, in tunnel mode.
pub(super) const NEXT_IPV6: u8 = 41;
/// Next header: a dummy packet that hides when there is traffic (RFC 4303 §2.6).
pub(super) const NEXT_NONE: u8 = 59;

/// SPI and sequence number.
const HEADER: usize = 8;
/// Pad length and next header.
const TRAILER: usize = 2;

/// Why a packet could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EspError {
    /// shorter than its algorithms allow, or not whole blocks
    Malformed,
    /// the integrity check failed
    Integrity,
    /// the pad length or the padding is wrong, though the integrity is right
    Padding,
    /// the buffer lacks head room or tail room
    NoRoom,
}

/// What an ESP packet held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    /// where in the packet the payload is; traffic-flow padding may follow the inner packet in it
    pub(super) payload: Range<usize>,
    pub(super) next_header: u8,
}

/// The SPI and the sequence number's low half; `None` if the packet is too short for them.
pub(super) fn peek(packet: &[u8]) -> Option<(EspSpi, u32)> {
    let ([a, b, c, d, e, f, g, h], _) = packet.split_first_chunk::<HEADER>()?;
    Some((EspSpi(u32::from_be_bytes([*a, *b, *c, *d])), u32::from_be_bytes([*e, *f, *g, *h])))
}

/// One direction of an ESP SA: its SPI, algorithms and keys. Sequence numbers are the caller's.
pub(super) struct Transform {
    spi: EspSpi,
    esn: bool,
    cipher: Cipher,
}

impl Transform {
    /// A direction with `keys`; an error if they don't fit `suite`.
    pub(super) fn new(
        spi: EspSpi,
        suite: EspSuite,
        esn: bool,
        keys: &EspKeys,
    ) -> Result<Self, PlaneError> {
        Ok(Transform { spi, esn, cipher: Cipher::new(suite, keys)? })
    }

    /// Makes an ESP packet of the payload at `payload` in `buffer` and says where it is.
    ///
    /// Needs [`HEADROOM`] octets before and [`TAILROOM`] octets after the payload at most. The caller
    /// never gives one sequence number twice: an AEAD's nonce depends on it.
    pub(super) fn seal(
        &self,
        sequence: u64,
        buffer: &mut [u8],
        payload: Range<usize>,
        next_header: u8,
    ) -> Result<Range<usize>, EspError> {
        let start = payload.start.checked_sub(self.head()).ok_or(EspError::NoRoom)?;
        let len = payload.end.checked_sub(payload.start).ok_or(EspError::NoRoom)?;
        let text_len = self.text_len(len);
        let end = payload.start + text_len + self.cipher.icv_len();

        let packet = buffer.get_mut(start..end).ok_or(EspError::NoRoom)?;
        self.write_frame(sequence, packet, len, text_len, next_header).ok_or(EspError::NoRoom)?;
        let parts = self.parts(sequence, packet).ok_or(EspError::NoRoom)?;
        self.cipher.make_iv(sequence, parts.iv).map_err(|_| EspError::NoRoom)?;
        self.cipher.seal(parts).map_err(|_| EspError::NoRoom)?;
        Ok(start..end)
    }

    /// Octets before the payload: SPI, sequence number and vector.
    pub(super) fn head(&self) -> usize {
        HEADER + self.cipher.iv_len()
    }

    /// Octets of the ESP packet that [`Transform::seal`] makes of `len` octets.
    pub(super) fn sealed_len(&self, len: usize) -> usize {
        self.head() + self.text_len(len) + self.cipher.icv_len()
    }

    fn text_len(&self, len: usize) -> usize {
        (len + TRAILER).next_multiple_of(self.cipher.alignment())
    }

    /// Checks and decrypts `packet`, whose whole sequence number is `sequence`.
    pub(super) fn open(&self, sequence: u64, packet: &mut [u8]) -> Result<Opened, EspError> {
        let start = self.head();
        let parts = self.parts(sequence, packet).ok_or(EspError::Malformed)?;
        let text_len = parts.text.len();
        // An AEAD's alignment binds the sender alone; a block cipher can't do with less.
        if text_len < TRAILER || (self.cipher.alignment() == 16 && !text_len.is_multiple_of(16)) {
            return Err(EspError::Malformed);
        }
        self.cipher.open(parts).map_err(|_| EspError::Integrity)?;

        let text = packet.get(start..start + text_len).ok_or(EspError::Malformed)?;
        let (rest, &[pad_len, next_header]) =
            text.split_last_chunk::<TRAILER>().ok_or(EspError::Malformed)?;
        let len = rest.len().checked_sub(usize::from(pad_len)).ok_or(EspError::Padding)?;
        // RFC 4303 §2.4: the receiver should look at the padding.
        let padding = rest.get(len..).ok_or(EspError::Padding)?;
        if !padding.iter().zip(1..=u8::MAX).all(|(octet, counter)| *octet == counter) {
            return Err(EspError::Padding);
        }
        Ok(Opened { payload: start..start + len, next_header })
    }

    /// Writes header and trailer around the `len` octets of payload in `packet`.
    fn write_frame(
        &self,
        sequence: u64,
        packet: &mut [u8],
        len: usize,
        text_len: usize,
        next_header: u8,
    ) -> Option<()> {
        let (header, rest) = packet.split_first_chunk_mut::<HEADER>()?;
        *header = self.header(sequence);
        let text = rest.get_mut(self.cipher.iv_len()..)?.get_mut(..text_len)?;
        let (padding, trailer) = text.get_mut(len..)?.split_last_chunk_mut::<TRAILER>()?;
        for (octet, counter) in padding.iter_mut().zip(1..) {
            *octet = counter;
        }
        *trailer = [u8::try_from(padding.len()).ok()?, next_header];
        Some(())
    }

    fn parts<'a>(&self, sequence: u64, packet: &'a mut [u8]) -> Option<Parts<'a>> {
        let esn_high = self.esn.then_some((sequence >> 32) as u32);
        let rest = packet.get_mut(HEADER..)?;
        let (iv, rest) = rest.split_at_mut_checked(self.cipher.iv_len())?;
        let text_len = rest.len().checked_sub(self.cipher.icv_len())?;
        let (text, icv) = rest.split_at_mut_checked(text_len)?;
        Some(Parts { header: self.header(sequence), esn_high, iv, text, icv })
    }

    /// SPI and the low half of the sequence number.
    fn header(&self, sequence: u64) -> [u8; HEADER] {
        let [a, b, c, d] = self.spi.0.to_be_bytes();
        let [.., e, f, g, h] = sequence.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use bewick_ike::{HmacSha2, Secret};

    use super::*;

    const ALL: [EspSuite; 8] = [
        EspSuite::AesGcm16 { key_bits: 128 },
        EspSuite::AesGcm16 { key_bits: 192 },
        EspSuite::AesGcm16 { key_bits: 256 },
        EspSuite::ChaCha20Poly1305,
        EspSuite::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 },
        EspSuite::AesCbc { key_bits: 192, integrity: HmacSha2::Sha384 },
        EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 },
        EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha256 },
    ];

    fn octets(range: std::ops::Range<u8>) -> Vec<u8> {
        range.collect()
    }

    fn keys(suite: EspSuite) -> EspKeys {
        let key = |len: usize, start: u8| {
            Secret::new((0..len).map(|i| start.wrapping_add(i as u8)).collect())
        };
        EspKeys {
            encryption: key(suite.encryption_key_len(), 0x80),
            integrity: key(suite.integrity_key_len(), 0x11),
        }
    }

    fn transform(suite: EspSuite, esn: bool) -> Transform {
        Transform::new(EspSpi(0x0102_0304), suite, esn, &keys(suite)).ok().unwrap()
    }

    fn seal(transform: &Transform, sequence: u64, payload: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0xee; HEADROOM + payload.len() + TAILROOM];
        let place = HEADROOM..HEADROOM + payload.len();
        buffer[place.clone()].copy_from_slice(payload);
        let packet = transform.seal(sequence, &mut buffer, place, NEXT_IPV4).unwrap();
        buffer[packet].to_vec()
    }

    #[test]
    fn every_suite_opens_what_it_sealed_and_nothing_else() {
        for suite in ALL {
            for esn in [false, true] {
                let transform = transform(suite, esn);
                for len in (0..70).chain([1400, 65_000]) {
                    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                    let sequence = if esn { 0x0007_0000_0001 + len as u64 } else { 1 + len as u64 };
                    let packet = seal(&transform, sequence, &payload);
                    assert_eq!(peek(&packet), Some((EspSpi(0x0102_0304), sequence as u32)));
                    let mut copy = packet.clone();
                    let opened = transform.open(sequence, &mut copy).unwrap();
                    assert_eq!(opened.next_header, NEXT_IPV4);
                    assert_eq!(copy[opened.payload], payload);
                    if len > 64 {
                        continue;
                    }
                    // The SPI is looked up, not compared: the transform uses its own.
                    for index in 8..packet.len() {
                        let mut bad = packet.clone();
                        bad[index] ^= 0x40;
                        assert_eq!(
                            transform.open(sequence, &mut bad),
                            Err(EspError::Integrity),
                            "{suite:?} octet {index}"
                        );
                    }
                    for cut in 0..packet.len() {
                        let mut bad = packet[..cut].to_vec();
                        assert!(transform.open(sequence, &mut bad).is_err(), "{suite:?} {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_high_half_of_an_extended_sequence_number_is_authenticated() {
        for suite in ALL {
            let esn = transform(suite, true);
            let packet = seal(&esn, 0x0000_0002_0000_0005, b"payload");
            for wrong in [0x5, 0x0000_0001_0000_0005, 0x0000_0003_0000_0005] {
                assert_eq!(esn.open(wrong, &mut packet.clone()), Err(EspError::Integrity));
            }
            let plain = transform(suite, false);
            assert_eq!(plain.open(5, &mut packet.clone()), Err(EspError::Integrity));
        }
    }

    #[test]
    fn no_two_packets_share_a_vector() {
        for suite in ALL {
            let transform = transform(suite, false);
            let len = transform.cipher.iv_len();
            let mut seen = std::collections::BTreeSet::new();
            for sequence in 1..1000 {
                let packet = seal(&transform, sequence, b"payload");
                assert!(seen.insert(packet[8..8 + len].to_vec()), "{suite:?} {sequence}");
            }
        }
    }

    #[test]
    fn keys_of_the_wrong_length_are_refused() {
        for suite in ALL {
            let good = keys(suite);
            let short = Secret::new(good.encryption.expose()[1..].to_vec());
            let bad = EspKeys { encryption: short, integrity: good.integrity.clone() };
            assert!(Transform::new(EspSpi(1), suite, false, &bad).is_err());
            let bad = EspKeys { encryption: good.encryption, integrity: Secret::new(vec![0; 7]) };
            assert!(Transform::new(EspSpi(1), suite, false, &bad).is_err());
        }
        let odd = EspSuite::AesGcm16 { key_bits: 512 };
        assert!(Transform::new(EspSpi(1), odd, false, &keys(odd)).is_err());
    }

    #[test]
    fn wrong_padding_is_refused_even_with_the_right_integrity() {
        for (trailer, expected) in [
            ([1, 2, 2, NEXT_IPV4], Ok(0)),
            ([0, 0, 0, NEXT_IPV4], Ok(2)),
            ([1, 3, 2, NEXT_IPV4], Err(EspError::Padding)),
            ([1, 2, 3, NEXT_IPV4], Err(EspError::Padding)),
            ([1, 2, 255, NEXT_IPV4], Err(EspError::Padding)),
        ] {
            let transform = transform(EspSuite::ChaCha20Poly1305, false);
            let mut packet = vec![0; HEADER + 8 + 4 + 16];
            packet[..HEADER].copy_from_slice(&transform.header(9));
            packet[16..20].copy_from_slice(&trailer);
            transform.cipher.seal(transform.parts(9, &mut packet).unwrap()).unwrap();
            assert_eq!(transform.open(9, &mut packet).map(|opened| opened.payload.len()), expected);
        }
    }

    /// RFC 7634 Appendix A.
    #[test]
    fn the_example_of_rfc_7634_is_reproduced() {
        let suite = EspSuite::ChaCha20Poly1305;
        let keys =
            EspKeys { encryption: Secret::new(octets(0x80..0xa4)), integrity: Secret::default() };
        let transform = Transform::new(EspSpi(0x0102_0304), suite, false, &keys).ok().unwrap();
        let inner = hex("45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
             0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
             2425262728292a2b2c2d2e2f3031323334353637");
        let expected = hex("01020304000000051011121314151617240394 28b97f417e3c13753a4f05087b
             67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7
             2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da
             9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43");
        let mut packet = [&[0; 16][..], &inner, &[0; 4 + 16]].concat();
        transform.write_frame(5, &mut packet, inner.len(), inner.len() + 4, NEXT_IPV4).unwrap();
        let parts = transform.parts(5, &mut packet).unwrap();
        parts.iv.copy_from_slice(&octets(0x10..0x18));
        transform.cipher.seal(parts).unwrap();
        assert_eq!(packet, expected);
        let opened = transform.open(5, &mut packet).unwrap();
        assert_eq!(packet[opened.payload], inner);
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }
}
