//! Which of a connection's CHILD_SAs is asked for, and by what packet (RFC 7296 §2.9).

use crate::selector::TrafficSelector;

/// What a packet is, as far as selectors can say it: one address and, where there are ports, one port on
/// each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// its end on our side
    pub local: TrafficSelector,
    /// its end on the peer's side
    pub remote: TrafficSelector,
}

/// A CHILD_SA of a connection's configuration that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// its place there
    pub config: usize,
    /// the packet that wants it, if one does: then a refusal is the end of it, until another packet comes
    pub packet: Option<Packet>,
}

impl Asked {
    /// One that is wanted whether or not there is a packet for it.
    pub fn anyhow(config: usize) -> Self {
        Asked { config, packet: None }
    }

    /// The selectors to offer for both sides: before those of the configuration what the packet has, so that
    /// a responder which narrows knows what must be in it (RFC 7296 §2.9).
    pub(crate) fn offer(
        &self,
        mut local: Vec<TrafficSelector>,
        mut remote: Vec<TrafficSelector>,
    ) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        // One whose ports can't be seen says less than the configuration.
        let within = |one: &TrafficSelector, all: &[TrafficSelector]| {
            all.iter().any(|ts| one.is_subset_of(ts))
        };
        let packet = self.packet.filter(|p| within(&p.local, &local) && within(&p.remote, &remote));
        if let Some(packet) = packet {
            put_first(&mut local, packet.local);
            put_first(&mut remote, packet.remote);
        }
        (local, remote)
    }
}

fn put_first(selectors: &mut Vec<TrafficSelector>, first: TrafficSelector) {
    selectors.retain(|ts| *ts != first);
    selectors.insert(0, first);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(text: &str) -> TrafficSelector {
        text.parse().unwrap()
    }

    #[test]
    fn k_2_9_1_the_packet_stands_before_the_configuration() {
        let (nets, other) = (ts("10.1.0.0/16"), ts("10.2.0.0/16"));
        let packet = Packet { local: ts("10.2.0.7[tcp/40000]"), remote: ts("10.1.0.9[tcp/80]") };
        let asked = Asked { config: 0, packet: Some(packet) };
        let offered = asked.offer(vec![ts("10.3.0.0/16"), other], vec![nets]);
        assert_eq!(offered.0, [packet.local, ts("10.3.0.0/16"), other]);
        assert_eq!(offered.1, [packet.remote, nets]);
        assert_eq!(Asked::anyhow(0).offer(vec![other], vec![nets]), (vec![other], vec![nets]));
    }

    #[test]
    fn k_2_9_1_nothing_is_offered_twice_or_beyond_the_configuration() {
        let packet = Packet { local: ts("10.2.0.7"), remote: ts("192.0.2.1") };
        let asked = Asked { config: 0, packet: Some(packet) };
        let offered = asked.offer(vec![ts("10.2.0.7")], vec![ts("10.1.0.0/16")]);
        assert_eq!(offered, (vec![ts("10.2.0.7")], vec![ts("10.1.0.0/16")]));
        let packet = Packet { local: ts("10.2.0.7"), remote: ts("10.1.0.9") };
        let asked = Asked { config: 0, packet: Some(packet) };
        let offered = asked.offer(vec![ts("10.2.0.7")], vec![ts("10.1.0.0/16"), ts("10.1.0.9")]);
        assert_eq!(offered, (vec![ts("10.2.0.7")], vec![ts("10.1.0.9"), ts("10.1.0.0/16")]));
    }
}
