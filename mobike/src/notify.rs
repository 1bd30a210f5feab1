//! The notifies of RFC 4555 §4: built and read.

use std::net::{IpAddr, SocketAddr};

use bewick_ike::{
    Path, Random,
    wire::{Notify, NotifyType, Payload},
};

/// More additional addresses than this are neither sent nor kept: a list is input to a choice
/// (RFC 4555 §3.4), not a store that the peer fills.
pub(crate) const MOST_ADDRESSES: usize = 32;

/// A notify without data.
pub(crate) fn empty(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, Vec::new()))
}

/// Whether a notify of that kind is among the payloads; its data is ignored (RFC 4555 §4.2.1).
pub(crate) fn has(payloads: &[Payload], kind: NotifyType) -> bool {
    notifies(payloads).any(|n| n.kind == kind)
}

/// Whether any notify reports an error (RFC 7296 §3.10.1).
pub(crate) fn has_error(payloads: &[Payload]) -> bool {
    notifies(payloads).any(|n| n.kind.is_error())
}

fn notifies(payloads: &[Payload]) -> impl Iterator<Item = &Notify> {
    payloads.iter().filter_map(|payload| match payload {
        Payload::Notify(notify) => Some(notify),
        _ => None,
    })
}

/// ADDITIONAL_IP4_ADDRESS and ADDITIONAL_IP6_ADDRESS for all `addresses` but the one that the message
/// is sent from, or NO_ADDITIONAL_ADDRESSES (RFC 4555 §3.6).
pub(crate) fn address_list(addresses: &[IpAddr], source: IpAddr) -> Vec<Payload> {
    let additional: Vec<Payload> = addresses
        .iter()
        .filter(|address| **address != source)
        .take(MOST_ADDRESSES)
        .map(|address| {
            Payload::Notify(match address {
                IpAddr::V4(a) => Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, a.octets()),
                IpAddr::V6(a) => Notify::new(NotifyType::ADDITIONAL_IP6_ADDRESS, a.octets()),
            })
        })
        .collect();
    if additional.is_empty() {
        return vec![empty(NotifyType::NO_ADDITIONAL_ADDRESSES)];
    }
    additional
}

/// The peer's list: the address that the message came from and the additional ones; `None` if the
/// message has no list (RFC 4555 §3.6). A notify of the wrong length is ignored, and where
/// NO_ADDITIONAL_ADDRESSES stands beside addresses, the addresses count.
pub(crate) fn read_address_list(payloads: &[Payload], source: IpAddr) -> Option<Vec<IpAddr>> {
    let mut list = vec![source];
    let mut any = false;
    for notify in notifies(payloads) {
        let address: Option<IpAddr> = match notify.kind {
            NotifyType::ADDITIONAL_IP4_ADDRESS => {
                <[u8; 4]>::try_from(notify.data.as_slice()).ok().map(Into::into)
            }
            NotifyType::ADDITIONAL_IP6_ADDRESS => {
                <[u8; 16]>::try_from(notify.data.as_slice()).ok().map(Into::into)
            }
            NotifyType::NO_ADDITIONAL_ADDRESSES => {
                any = true;
                None
            }
            _ => continue,
        };
        if let Some(address) = address {
            any = true;
            if is_host(address) && !list.contains(&address) && list.len() <= MOST_ADDRESSES {
                list.push(address);
            }
        }
    }
    any.then_some(list)
}

/// Whether the address can be a peer's at all: a peer that names ours, everybody's or nobody's gets no
/// packet sent there (RFC 4555 §3.4).
fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(broadcast || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

/// NO_NATS_ALLOWED: the addresses and ports that the message is sent from and to (RFC 4555 §4.2.6).
pub(crate) fn no_nats(path: Path) -> Payload {
    Payload::Notify(Notify::new(NotifyType::NO_NATS_ALLOWED, addresses(path.local, path.remote)))
}

/// Source and destination addresses, then both ports.
fn addresses(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut data = Vec::with_capacity(36);
    for end in [source, destination] {
        match end.ip() {
            IpAddr::V4(a) => data.extend(a.octets()),
            IpAddr::V6(a) => data.extend(a.octets()),
        }
    }
    for end in [source, destination] {
        data.extend(end.port().to_be_bytes());
    }
    data
}

/// Whether the payloads have a NO_NATS_ALLOWED that does not fit the header that they came under: a NAT has
/// been at work, or the notify is malformed (RFC 4555 §3.9). What is in it is used for nothing else.
pub(crate) fn denies_nats(payloads: &[Payload], path: Path) -> bool {
    let header = addresses(path.remote, path.local);
    // RFC 9329 §7.1: NATs are no trouble to TCP.
    !path.is_tcp()
        && notifies(payloads).any(|n| n.kind == NotifyType::NO_NATS_ALLOWED && n.data != header)
}

/// A fresh COOKIE2: 16 unpredictable octets (RFC 4555 §4.2.5).
pub(crate) fn new_cookie2(random: &mut Random) -> Vec<u8> {
    random.array::<16>().to_vec()
}

pub(crate) fn cookie2(data: &[u8]) -> Payload {
    Payload::Notify(Notify::new(NotifyType::COOKIE2, data))
}

/// The data of a COOKIE2 of 8 to 64 octets; any other length is malformed and as good as none
/// (RFC 4555 §4.2.5).
pub(crate) fn read_cookie2(payloads: &[Payload]) -> Option<&[u8]> {
    notifies(payloads)
        .find(|n| n.kind == NotifyType::COOKIE2)
        .map(|n| n.data.as_slice())
        .filter(|data| (8..=64).contains(&data.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &[&str]) -> Vec<IpAddr> {
        text.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn m_3_6_1_one_address_gives_exactly_one_no_additional_addresses() {
        let ours = list(&["192.0.2.1"]);
        let sent = address_list(&ours, ours[0]);
        assert_eq!(sent, [empty(NotifyType::NO_ADDITIONAL_ADDRESSES)]);
        assert_eq!(read_address_list(&sent, ours[0]), Some(ours));
    }

    #[test]
    fn m_3_4_1_lists_of_0_1_and_32_addresses_survive_the_trip() {
        let source: IpAddr = "192.0.2.1".parse().unwrap();
        for count in [0, 1, 32] {
            let mut ours = vec![source];
            ours.extend((0..count).map(|i| IpAddr::from([10, 0, 0, i])));
            let sent = address_list(&ours, source);
            assert_eq!(read_address_list(&sent, source), Some(ours));
        }
    }

    #[test]
    fn m_3_4_1_a_list_of_ten_thousand_addresses_is_cut() {
        let source: IpAddr = "192.0.2.1".parse().unwrap();
        let sent: Vec<Payload> = (0..10_000u32)
            .map(|i| Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, i.to_be_bytes()))
            .map(Payload::Notify)
            .collect();
        assert_eq!(read_address_list(&sent, source).unwrap().len(), MOST_ADDRESSES + 1);
    }

    #[test]
    fn m_3_6_10_a_wrong_length_is_ignored_and_addresses_win_over_none() {
        let source: IpAddr = "192.0.2.1".parse().unwrap();
        let wrong = Payload::Notify(Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, [1, 2, 3]));
        assert_eq!(read_address_list(std::slice::from_ref(&wrong), source), None);
        let mut mixed = vec![wrong, empty(NotifyType::NO_ADDITIONAL_ADDRESSES)];
        mixed.extend(address_list(&list(&["192.0.2.1", "192.0.2.9"]), source));
        assert_eq!(read_address_list(&mixed, source), Some(list(&["192.0.2.1", "192.0.2.9"])));
    }

    #[test]
    fn m_3_7_7_a_cookie_of_8_to_64_octets_is_read_and_no_other() {
        for (len, ok) in [(7, false), (8, true), (9, true), (64, true), (65, false)] {
            let payloads = [cookie2(&vec![1; len])];
            assert_eq!(read_cookie2(&payloads).is_some(), ok, "{len} octets");
        }
    }

    #[test]
    fn m_4_2_5_1_ten_thousand_cookies_without_a_repeat() {
        let mut random = Random::from_seed([3; 32]);
        let cookies: std::collections::BTreeSet<Vec<u8>> =
            (0..10_000).map(|_| new_cookie2(&mut random)).collect();
        assert_eq!(cookies.len(), 10_000);
        assert!(cookies.iter().all(|c| (8..=64).contains(&c.len())));
    }
}
