//! Known answers and refusals.

mod auth;
mod exchange;
mod kdf;
mod protect;
mod wycheproof;

/// Octets from hexadecimal digits, white space between them ignored.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.split_whitespace().flat_map(str::chars).map(|c| c.to_digit(16).unwrap()).collect();
    assert!(digits.len().is_multiple_of(2));
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}
