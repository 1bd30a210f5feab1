//! Why something could not be done, as a sentence for the person who reads the verdict.

use std::fmt;

/// One reason, complete enough to be printed beside a scenario's name.
#[derive(Debug, Clone)]
pub struct Failure {
    reason: String,
    is_final: bool,
}

/// A result whose error is a reason to print.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_final: false }
    }

    /// A failure that trying again cannot mend.
    pub fn of_no_return(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_final: true }
    }

    /// Whether trying again is of no use.
    pub fn is_final(&self) -> bool {
        self.is_final
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `what` in front of the reason.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let Failure { reason, is_final } = error.into();
            Failure { reason: format!("{what}: {reason}"), is_final }
        })
    }
}

macro_rules! from {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.to_string())
            }
        }
    )*};
}

from!(
    std::io::Error,
    rustix::io::Errno,
    serde_json::Error,
    std::net::AddrParseError,
    std::num::ParseIntError,
    std::time::SystemTimeError,
    bewick_ike::auth::CertificateError,
    bewick_ike::auth::CredentialsError,
    bewick_ike::auth::PrivateKeyError,
    bewick_ike::auth::TrustError,
    bewick_ike::crypto::CryptoError,
    bewick_ike::wire::IdentityError,
    bewick_tests::channel::Broken,
    bewick_ike::wire::TooLong,
    bewick_ike::wire::WireError,
    ipnet::AddrParseError,
    bewick_mobike::CommandError,
    bewick_xfrm::udp::UdpError
);

/// A failure made from a format string.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { $crate::failure::Failure::new(format!($($arg)*)) };
}
