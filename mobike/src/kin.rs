//! What two Bewicks tell each other beyond RFC 4555: agreed by a Vendor ID in IKE_AUTH (RFC 7296 §3.12), in
//! status notifies of private use (§3.10.1), and never sent to anybody else.
//!
//! | notify | number | where | data |
//! |---|---|---|---|
//! | OBSERVED_ADDRESS | 40970 | responses | the address and port that the request came from |
//! | PATH_COST | 40971 | beside a list of addresses | cost in 4 octets, then one address |
//! | PLEASE_PROBE | 40972 | requests of the responder | none |
//! | HEARD_FROM | 40973 | responses | age in ms in 4 octets, then an address and a port |
//!
//! All of it is input to the initiator's choice or for the operator's eyes; none of it moves anything.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{
    Time,
    wire::{Notify, NotifyType, Payload},
};

const VENDOR: &[u8] = b"Bewick, an IKEv2 daemon whose tunnels move: 1";

const OBSERVED_ADDRESS: NotifyType = NotifyType(40_970);
const PATH_COST: NotifyType = NotifyType(40_971);
const PLEASE_PROBE: NotifyType = NotifyType(40_972);
const HEARD_FROM: NotifyType = NotifyType(40_973);

/// Places that are remembered and told, and costs that are kept.
const MOST: usize = 8;

/// A place from which nothing was heard for so long is not told of any more.
const LATELY: Duration = Duration::from_secs(60);

/// Says who we are.
pub(crate) fn vendor_id() -> Payload {
    Payload::VendorId(VENDOR.to_vec())
}

/// Whether the peer is one of us.
pub(crate) fn is_kin(payloads: &[Payload]) -> bool {
    payloads.iter().any(|p| matches!(p, Payload::VendorId(id) if id == VENDOR))
}

fn data(payloads: &[Payload], kind: NotifyType) -> impl Iterator<Item = &[u8]> {
    payloads.iter().filter_map(move |payload| match payload {
        Payload::Notify(n) if n.kind == kind => Some(n.data.as_slice()),
        _ => None,
    })
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn address(data: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(data).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(data).map(IpAddr::from)).ok()
}

fn place(data: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = data.split_last_chunk::<2>()?;
    Some(SocketAddr::new(address(ip)?, u16::from_be_bytes(*port)))
}

/// Where a request came from, for its response.
pub(crate) fn observed(from: SocketAddr) -> Payload {
    let mut data = octets(from.ip());
    data.extend(from.port().to_be_bytes());
    Payload::Notify(Notify::new(OBSERVED_ADDRESS, data))
}

/// As whom the peer sees us.
pub(crate) fn read_observed(payloads: &[Payload]) -> Option<SocketAddr> {
    data(payloads, OBSERVED_ADDRESS).next().and_then(place)
}

/// What our addresses cost, unless they all cost the same.
pub(crate) fn costs(ours: &[(IpAddr, u32)]) -> Vec<Payload> {
    let same = ours.windows(2).all(|pair| pair[0].1 == pair[1].1);
    let notify = |(address, cost): &(IpAddr, u32)| {
        let mut data = cost.to_be_bytes().to_vec();
        data.extend(octets(*address));
        Payload::Notify(Notify::new(PATH_COST, data))
    };
    if same { Vec::new() } else { ours.iter().take(MOST).map(notify).collect() }
}

/// What the peer's addresses cost.
pub(crate) fn read_costs(payloads: &[Payload]) -> Vec<(IpAddr, u32)> {
    let one = |data: &[u8]| {
        let (cost, ip) = data.split_first_chunk::<4>()?;
        Some((address(ip)?, u32::from_be_bytes(*cost)))
    };
    data(payloads, PATH_COST).filter_map(one).take(MOST).collect()
}

/// Our answers do not arrive: which other pairs work?
pub(crate) fn please_probe() -> Payload {
    Payload::Notify(Notify::new(PLEASE_PROBE, Vec::new()))
}

/// Whether the peer asks us to look for another pair.
pub(crate) fn asks_to_probe(payloads: &[Payload]) -> bool {
    data(payloads, PLEASE_PROBE).next().is_some()
}

/// From where the peer was heard lately, the newest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Vec<(SocketAddr, Time)>);

impl Heard {
    /// It was heard from there.
    pub(crate) fn note(&mut self, now: Time, from: SocketAddr) {
        self.0.retain(|(place, _)| *place != from);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((from, now));
    }

    /// For a response: a pair that the peer hears on and gets no answer on works in one direction
    /// (draft-ietf-multi6-failure-detection-00 §5.4).
    pub(crate) fn tell(&self, now: Time) -> Vec<Payload> {
        let lately = self.0.iter().filter(|(_, at)| now.since(*at) < LATELY);
        let notify = |(from, at): &(SocketAddr, Time)| {
            let age = u32::try_from(now.since(*at).as_millis()).unwrap_or(u32::MAX);
            let mut data = age.to_be_bytes().to_vec();
            data.extend(octets(from.ip()));
            data.extend(from.port().to_be_bytes());
            Payload::Notify(Notify::new(HEARD_FROM, data))
        };
        lately.map(notify).collect()
    }
}

/// From where the peer has heard us lately, and how long ago.
pub(crate) fn read_heard(payloads: &[Payload]) -> Vec<(SocketAddr, Duration)> {
    let one = |data: &[u8]| {
        let (age, from) = data.split_first_chunk::<4>()?;
        Some((place(from)?, Duration::from_millis(u32::from_be_bytes(*age).into())))
    };
    data(payloads, HEARD_FROM).filter_map(one).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_one_says_the_other_reads() {
        for text in ["203.0.113.7:31000", "[2001:db8::7]:4500"] {
            assert_eq!(read_observed(&[observed(at(text))]), Some(at(text)));
        }
        let ours = [(at("192.0.2.1:0").ip(), 10), (at("[2001:db8::1]:0").ip(), 200)];
        assert_eq!(read_costs(&costs(&ours)), ours);
        assert!(costs(&[ours[0], (ours[1].0, 10)]).is_empty(), "nothing to choose by");
        assert!(asks_to_probe(&[please_probe()]) && !asks_to_probe(&[observed(at("1.2.3.4:5"))]));
        assert!(is_kin(&[vendor_id()]) && !is_kin(&[Payload::VendorId(b"strongSwan".to_vec())]));
    }

    #[test]
    fn what_was_heard_is_told_for_a_minute_and_is_bounded() {
        let mut heard = Heard::default();
        let second = |n: u64| Time::ZERO + Duration::from_secs(n);
        for n in 0..20 {
            heard.note(second(n), SocketAddr::new(at("192.0.2.1:0").ip(), 1000 + n as u16));
        }
        heard.note(second(20), at("192.0.2.1:1015"));
        let told = read_heard(&heard.tell(second(25)));
        assert_eq!(told.len(), MOST);
        assert_eq!(told.last(), Some(&(at("192.0.2.1:1015"), Duration::from_secs(5))));
        assert!(heard.tell(second(100)).is_empty());
    }

    #[test]
    fn malformed_data_is_passed_over() {
        for kind in [OBSERVED_ADDRESS, PATH_COST, HEARD_FROM] {
            for len in [0, 1, 3, 5, 7, 9, 11, 17, 19, 23, 64] {
                let payloads = [Payload::Notify(Notify::new(kind, vec![1; len]))];
                assert!(read_observed(&payloads).is_none() || len == 6 || len == 18);
                assert!(read_costs(&payloads).is_empty() || len == 8 || len == 20);
                assert!(read_heard(&payloads).is_empty() || len == 10 || len == 22);
            }
        }
    }
}
