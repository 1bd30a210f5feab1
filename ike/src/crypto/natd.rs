//! The hash of NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP (RFC 7296 §2.23).

use std::net::{IpAddr, SocketAddr};

use ring::digest;

/// SHA-1(SPIi | SPIr | address | port), the SPIs as the message's header has them. A mapped IPv4
/// address counts as IPv4, which is what travels.
pub fn nat_detection_hash(spi_i: &[u8; 8], spi_r: &[u8; 8], address: SocketAddr) -> [u8; 20] {
    // RFC 7296 §2.23 asks for SHA-1; no security rests on it.
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(spi_i);
    context.update(spi_r);
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => context.update(&ip.octets()),
        IpAddr::V6(ip) => context.update(&ip.octets()),
    }
    context.update(&address.port().to_be_bytes());
    let mut out = [0; 20];
    out.copy_from_slice(context.finish().as_ref());
    out
}
