//! A cursor over octets from the peer. No call on it can panic.

use super::error::WireError;

/// Reads big-endian fields from the front of a slice and remembers where it is.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `octets`.
    pub fn new(octets: &'a [u8]) -> Self {
        Reader { rest: octets, at: 0 }
    }

    /// The offset of the next octet, for error messages.
    pub fn at(&self) -> usize {
        self.at
    }

    /// How many octets are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Whether no octet is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `count` octets; [`WireError::Truncated`] if there are fewer.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            let (at, left) = (self.at, self.rest.len());
            return Err(WireError::Truncated { what, at, needed: count, left });
        };
        self.rest = rest;
        self.at += count;
        Ok(head)
    }

    /// A reader of the next `count` octets, which are passed over here.
    pub fn sub(&mut self, count: usize, what: &'static str) -> Result<Reader<'a>, WireError> {
        let at = self.at;
        Ok(Reader { rest: self.take(count, what)?, at })
    }

    /// All octets that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = std::mem::take(&mut self.rest);
        self.at += rest.len();
        rest
    }

    /// The next `N` octets.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// The next octet.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array(what).map(u8::from_be_bytes)
    }

    /// The next two octets as a number.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, WireError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// The next four octets as a number.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, WireError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// The next eight octets as a number.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// Says that `what` is over: [`WireError::Trailing`] if octets are left.
    pub fn finish(&self, what: &'static str) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            octets => Err(WireError::Trailing { what, at: self.at, octets }),
        }
    }
}
