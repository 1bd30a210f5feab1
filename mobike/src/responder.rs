//! Requests of the peer that concern addresses (RFC 4555 §3.5, §3.6).

use bewick_ike::{Role, SaView, extension::Request, nat, wire::NotifyType};

use crate::{
    kin,
    mobility::{Intent, Mobility},
    notify,
    policy::ConnectionPolicy,
};

/// What an INFORMATIONAL request changes, or the error that it is answered with. Its response is made
/// elsewhere and always goes to where the request came from (RFC 4555 §1.2).
pub(crate) fn on_request(
    mobility: &mut Mobility,
    view: &SaView,
    request: &Request<'_>,
    policy: &ConnectionPolicy,
) -> Result<Vec<Intent>, NotifyType> {
    let mut intents = Vec::new();
    // RFC 4555 §3.9, before all else (§3.5, §3.6).
    if notify::denies_nats(request.payloads, request.path) {
        return Err(NotifyType::UNEXPECTED_NAT_DETECTED);
    }
    let at = (view.epoch, request.message_id);
    let newer = |newest: Option<(u32, u32)>| newest.is_none_or(|newest| at > newest);
    let spis = (view.spi_i, view.spi_r);
    let nat = nat::detect(spis, request.path, request.payloads);
    let updates = view.role == Role::Responder
        && notify::has(request.payloads, NotifyType::UPDATE_SA_ADDRESSES)
        && newer(mobility.newest_update);
    if updates && !policy.accept.accepts(request.path, nat) {
        mobility.newest_update = Some(at);
        return Err(NotifyType::UNACCEPTABLE_ADDRESSES);
    }
    if policy.accept_peer_addresses
        && let Some(list) = notify::read_address_list(request.payloads, request.path.remote.ip())
        && newer(mobility.newest_list)
    {
        // RFC 4555 §3.6: the new list replaces the old one whole.
        mobility.newest_list = Some(at);
        if mobility.kin {
            mobility.peer_costs = kin::read_costs(request.payloads);
        }
        mobility.peer_addresses = list;
        intents.push(Intent::PeerList);
    }
    // RFC 4555 §4.2.4: only the initiator decides where the IKE_SA goes.
    if updates {
        mobility.newest_update = Some(at);
        // RFC 4555 §3.5: the addresses are those of the IP header, never of a payload.
        intents.push(Intent::Updated { path: request.path, nat });
    } else if mobility.claimed == Some(request.path) && view.path != request.path {
        // It did not answer there, and now speaks from there: worth another check.
        intents.push(Intent::Updated { path: request.path, nat: None });
    } else if view.role == Role::Responder && view.path != request.path {
        intents.push(Intent::Heard { path: request.path });
    }
    if view.role == Role::Initiator && mobility.kin && kin::asks_to_probe(request.payloads) {
        intents.push(Intent::PleaseProbe);
    }
    Ok(intents)
}
