//! How big an inner packet may be so that the ESP packet around it fits the uplink.

use bewick_ike::{ChildSa, EspSuite, HmacSha2};

use crate::net::LocalAddress;

/// What a path beyond the uplink is taken to carry at most, in octets: that of Ethernet.
const ETHERNET: u32 = 1500;

/// What every IPv6 link carries (RFC 8200 §5). Where ESP leaves less, its packets are fragmented
/// (RFC 4301 §8.1).
const LEAST_IPV6: u32 = 1280;

/// What every host takes (RFC 791 §3.1).
const LEAST_IPV4: u32 = 576;

/// The outer packet of a CHILD_SA, as far as its size goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outer {
    /// the address that says which uplink it is
    local: std::net::IpAddr,
    /// ESP is in UDP (RFC 3948 §2.1)
    encap: bool,
    suite: EspSuite,
}

impl Outer {
    pub(super) fn of(sa: &ChildSa) -> Self {
        Outer { local: sa.path.local.ip(), encap: sa.encap, suite: sa.suite }
    }

    /// The same CHILD_SA on another path.
    pub(super) fn moved(self, path: &bewick_ike::Path, encap: bool) -> Self {
        Outer { local: path.local.ip(), encap, ..self }
    }

    /// The MTU of an inner route, in octets, by the uplink that holds the outer address.
    pub(super) fn inner_mtu(self, locals: &[LocalAddress], ipv6: bool) -> u32 {
        let uplink = locals.iter().find(|local| local.address == self.local);
        let link = uplink.map_or(ETHERNET, |uplink| uplink.mtu.min(ETHERNET));
        let least = if ipv6 { LEAST_IPV6 } else { LEAST_IPV4 };
        self.room(link).max(least)
    }

    /// The biggest inner packet that an outer one of `mtu` octets has room for (RFC 4303 §2).
    fn room(self, mtu: u32) -> u32 {
        let header = if self.local.is_ipv4() { 20 } else { 40 };
        let udp = if self.encap { 8 } else { 0 };
        // initialisation vector, ICV, and what pad length and next header are aligned to
        let (iv, icv, block) = match self.suite {
            EspSuite::AesGcm16 { .. } | EspSuite::ChaCha20Poly1305 => (8, 16, 4),
            EspSuite::AesCbc { integrity, .. } => {
                let icv = match integrity {
                    HmacSha2::Sha256 => 16,
                    HmacSha2::Sha384 => 24,
                    HmacSha2::Sha512 => 32,
                };
                (16, icv, 16)
            }
        };
        let (spi_and_sequence, trailer) = (8, 2);
        let room = mtu.saturating_sub(header + udp + spi_and_sequence + iv + icv);
        (room / block * block).saturating_sub(trailer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::tests::local;

    const V4: &str = "192.0.2.1";
    const V6: &str = "2001:db8::1";

    fn outer(local: &str, encap: bool, suite: EspSuite) -> Outer {
        Outer { local: local.parse().unwrap(), encap, suite }
    }

    #[test]
    fn x_8_the_mtu_is_that_of_the_outer_family_with_and_without_udp() {
        let gcm = EspSuite::AesGcm16 { key_bits: 256 };
        let locals = [local(V4, 1500), local(V6, 1500)];
        let mtu = |local, encap| outer(local, encap, gcm).inner_mtu(&locals, false);
        assert_eq!([mtu(V4, true), mtu(V4, false)], [1438, 1446]);
        assert_eq!([mtu(V6, true), mtu(V6, false)], [1418, 1426]);
        let moved = outer(V4, true, gcm).moved(
            &bewick_ike::Path::new(
                "[2001:db8::1]:4500".parse().unwrap(),
                "[::2]:4500".parse().unwrap(),
            ),
            false,
        );
        assert_eq!(moved.inner_mtu(&locals, false), 1426);
    }

    /// Every size of inner packet up to the limit fits, and the next one does not, by the packet
    /// as RFC 4303 §2 draws it.
    #[test]
    fn the_room_is_all_that_there_is_and_no_more() {
        let suites = [
            (EspSuite::AesGcm16 { key_bits: 128 }, 8, 16, 4),
            (EspSuite::ChaCha20Poly1305, 8, 16, 4),
            (EspSuite::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 }, 16, 16, 16),
            (EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha384 }, 16, 24, 16),
            (EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha512 }, 16, 32, 16),
        ];
        for (suite, iv, icv, block) in suites {
            for (address, header) in [(V4, 20), (V6, 40)] {
                for (encap, udp) in [(false, 0), (true, 8)] {
                    for mtu in 1280..=1500_u32 {
                        let size = |inner: u32| {
                            header + udp + 8 + iv + (inner + 2).next_multiple_of(block) + icv
                        };
                        let room = outer(address, encap, suite).room(mtu);
                        assert!(size(room) <= mtu && size(room + 1) > mtu, "{suite:?} {mtu}");
                    }
                }
            }
        }
    }

    #[test]
    fn it_goes_by_the_uplink_within_what_hosts_can_take() {
        let gcm = EspSuite::AesGcm16 { key_bits: 256 };
        let mtu = |link, ipv6| outer(V4, true, gcm).inner_mtu(&[local(V4, link)], ipv6);
        assert_eq!([mtu(1400, false), mtu(9000, false), mtu(100, false)], [1338, 1438, 576]);
        assert_eq!([mtu(1400, true), mtu(1300, true)], [1338, 1280]);
        assert_eq!(outer(V4, true, gcm).inner_mtu(&[], false), 1438, "an uplink that is not known");
    }
}
