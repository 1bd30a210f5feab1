//! mobike
