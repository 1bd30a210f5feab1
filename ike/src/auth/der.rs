//! The little of DER (X.690 §8, §10) that signatures, keys and certificates need. Strict: definite
//! lengths in their shortest form, low tag numbers, and whoever reads says where it must end.

/// Octets that are not the DER that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed DER")]
pub struct DerError;

pub(crate) mod tag {
    pub(crate) const BOOLEAN: u8 = 0x01;
    pub(crate) const INTEGER: u8 = 0x02;
    pub(crate) const BIT_STRING: u8 = 0x03;
    pub(crate) const OCTET_STRING: u8 = 0x04;
    pub(crate) const NULL: u8 = 0x05;
    pub(crate) const OID: u8 = 0x06;
    pub(crate) const SEQUENCE: u8 = 0x30;

    /// `[number] EXPLICIT`, or `[number] IMPLICIT` of a constructed type.
    pub(crate) const fn constructed(number: u8) -> u8 {
        0xa0 | number
    }

    /// `[number] IMPLICIT` of a primitive type.
    pub(crate) const fn primitive(number: u8) -> u8 {
        0x80 | number
    }
}

/// Reads one element after the other from the front of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Der<'a> {
    rest: &'a [u8],
}

/// One element.
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    /// the contents
    pub(crate) value: &'a [u8],
    /// tag, length and contents
    pub(crate) whole: &'a [u8],
}

impl<'a> Der<'a> {
    pub(crate) fn new(octets: &'a [u8]) -> Self {
        Der { rest: octets }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next element, whatever it is.
    pub(crate) fn any(&mut self) -> Result<Element<'a>, DerError> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(DerError)?;
        if tag & 0x1f == 0x1f {
            return Err(DerError);
        }
        let (&first, mut after_length) = after_tag.split_first().ok_or(DerError)?;
        let length = match first {
            0..=0x7f => usize::from(first),
            // 0x80 is the indefinite length of BER.
            0x81..=0x84 => {
                let (octets, rest) =
                    after_length.split_at_checked(usize::from(first & 0x7f)).ok_or(DerError)?;
                after_length = rest;
                let length = octets.iter().fold(0u64, |sum, o| sum << 8 | u64::from(*o));
                let shortest = octets.first() != Some(&0) && length >= 0x80;
                shortest.then(|| usize::try_from(length).ok()).flatten().ok_or(DerError)?
            }
            _ => return Err(DerError),
        };
        let (value, rest) = after_length.split_at_checked(length).ok_or(DerError)?;
        let whole = self.rest.get(..self.rest.len() - rest.len()).ok_or(DerError)?;
        self.rest = rest;
        Ok(Element { tag, value, whole })
    }

    /// The next element if it has this tag.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, DerError> {
        if self.rest.first() == Some(&tag) { self.any().map(Some) } else { Ok(None) }
    }

    /// The contents of the next element, which must have this tag.
    pub(crate) fn value(&mut self, tag: u8) -> Result<&'a [u8], DerError> {
        self.optional(tag)?.map(|element| element.value).ok_or(DerError)
    }

    /// A reader of the contents of the next element, which must have this tag.
    pub(crate) fn inside(&mut self, tag: u8) -> Result<Der<'a>, DerError> {
        self.value(tag).map(Der::new)
    }

    /// The octets of a BIT STRING without unused bits.
    pub(crate) fn bit_string(&mut self) -> Result<&'a [u8], DerError> {
        self.value(tag::BIT_STRING)?.strip_prefix(&[0]).ok_or(DerError)
    }

    /// The magnitude of an INTEGER that is not negative, without leading zeros.
    pub(crate) fn unsigned(&mut self) -> Result<&'a [u8], DerError> {
        match self.value(tag::INTEGER)? {
            [] => Err(DerError),
            [0] => Ok(&[]),
            [0, rest @ ..] if rest.first().is_some_and(|octet| *octet >= 0x80) => Ok(rest),
            [0, ..] => Err(DerError),
            [first, ..] if *first >= 0x80 => Err(DerError),
            octets => Ok(octets),
        }
    }

    /// Says that nothing may follow.
    pub(crate) fn finish(&self) -> Result<(), DerError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DerError) }
    }
}

/// An element with this tag and these contents.
pub(crate) fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(contents.len()) {
        Ok(short @ 0..=0x7f) => out.push(short),
        _ => {
            let octets = contents.len().to_be_bytes();
            let significant: Vec<u8> = octets.into_iter().skip_while(|o| *o == 0).collect();
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(0x7f));
            out.extend(significant);
        }
    }
    out.extend(contents);
    out
}

/// An INTEGER with this magnitude.
pub(crate) fn unsigned(magnitude: &[u8]) -> Vec<u8> {
    let mut contents: Vec<u8> = magnitude.iter().copied().skip_while(|o| *o == 0).collect();
    if contents.first().is_none_or(|octet| *octet >= 0x80) {
        contents.insert(0, 0);
    }
    element(tag::INTEGER, &contents)
}
