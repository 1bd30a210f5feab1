//! Lengths and counts of what we send, checked against the fields that must hold them.

use super::error::TooLong;

/// `value` as the content of a one-octet field.
pub(super) fn octet(value: usize, what: &'static str) -> Result<u8, TooLong> {
    u8::try_from(value).map_err(|_| TooLong { what, octets: value })
}

/// `value` as the content of a two-octet field.
pub(super) fn short(value: usize, what: &'static str) -> Result<[u8; 2], TooLong> {
    u16::try_from(value).map(u16::to_be_bytes).map_err(|_| TooLong { what, octets: value })
}

/// Appends a generic payload header (RFC 7296 §3.2) for a body of `body_len` octets.
pub(super) fn generic_header(
    out: &mut Vec<u8>,
    next: u8,
    critical: bool,
    body_len: usize,
) -> Result<(), TooLong> {
    let length = short(body_len.saturating_add(4), "payload")?;
    out.extend([next, if critical { 0x80 } else { 0 }]);
    out.extend(length);
    Ok(())
}
