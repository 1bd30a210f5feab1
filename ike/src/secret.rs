//! Key material: zeroed when dropped, compared in constant time, never printed.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret octets. `Debug` shows the length alone; there is no `Display`.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over `octets`; they are zeroed when the secret is dropped.
    pub fn new(octets: Vec<u8>) -> Self {
        Secret(Zeroizing::new(octets))
    }

    /// The octets, for the primitive that uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many octets there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no octets at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Secret {
    fn from(octets: Vec<u8>) -> Self {
        Secret::new(octets)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} octets)", self.0.len())
    }
}
