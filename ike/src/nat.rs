//! NAT detection (RFC 7296 §2.23; RFC 4555 §3.8).

use std::net::SocketAddr;

use crate::{
    crypto::{constant_time_eq, nat_detection_hash},
    path::Path,
    random::Random,
    wire::{Notify, NotifyType, Payload},
};

/// Which sides of a path are behind a NAT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// ours: the peer sees another address than we do
    pub local: bool,
    /// the peer's
    pub remote: bool,
}

impl Nat {
    /// Whether there is a NAT at all, so that ESP must travel in UDP.
    pub fn any(self) -> bool {
        self.local || self.remote
    }
}

fn hash(spis: (u64, u64), address: SocketAddr) -> [u8; 20] {
    nat_detection_hash(&spis.0.to_be_bytes(), &spis.1.to_be_bytes(), address)
}

/// NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP for a message on `path`.
///
/// With `force` the source hash matches nothing, so that the peer finds a NAT and sends ESP in UDP:
/// for a data plane that can do nothing else.
pub fn payloads(spis: (u64, u64), path: Path, force: bool, random: &mut Random) -> [Payload; 2] {
    let source = if force { random.array() } else { hash(spis, path.local) };
    let notify = |kind, hash: [u8; 20]| Payload::Notify(Notify::new(kind, hash.to_vec()));
    [
        notify(NotifyType::NAT_DETECTION_SOURCE_IP, source),
        notify(NotifyType::NAT_DETECTION_DESTINATION_IP, hash(spis, path.remote)),
    ]
}

/// What the peer's hashes say of the path that its message came on; `None` if it sent none.
///
/// A peer may send several source hashes, one of which must match (RFC 7296 §2.23).
pub fn detect<'a>(
    spis: (u64, u64),
    path: Path,
    payloads: impl IntoIterator<Item = &'a Payload>,
) -> Option<Nat> {
    let (mut source, mut destination) = (None, None);
    let (from, to) = (hash(spis, path.remote), hash(spis, path.local));
    for payload in payloads {
        let Payload::Notify(notify) = payload else { continue };
        match notify.kind {
            NotifyType::NAT_DETECTION_SOURCE_IP => {
                let seen = source.get_or_insert(false);
                *seen |= constant_time_eq(&notify.data, &from);
            }
            NotifyType::NAT_DETECTION_DESTINATION_IP => {
                let seen = destination.get_or_insert(false);
                *seen |= constant_time_eq(&notify.data, &to);
            }
            _ => {}
        }
    }
    Some(Nat { local: !destination?, remote: !source? })
}
