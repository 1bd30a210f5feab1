//! Why something could not be done, as a sentence for the person who reads the verdict.

use std::fmt;

/// One reason, complete enough to be printed beside a scenario's name.
#[derive(Debug, Clone)]
pub struct Failure(String);

/// A result whose error is a reason to print.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `what` in front of the reason.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

/// A failure made from a format string.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { $crate::failure::Failure::new(format!($($arg)*)) };
}
