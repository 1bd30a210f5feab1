//! Requests of the peer that concern addresses (RFC 4555 §3.5, §3.6).

use bewick_ike::{Role, SaView, extension::Request, nat, wire::NotifyType};

use crate::{
    mobility::{Intent, Mobility},
    notify,
};

/// What an INFORMATIONAL request changes. Its response is made elsewhere and always goes to where the
/// request came from (RFC 4555 §1.2).
pub(crate) fn on_request(
    mobility: &mut Mobility,
    view: &SaView,
    request: &Request<'_>,
) -> Vec<Intent> {
    let mut intents = Vec::new();
    let at = (view.epoch, request.message_id);
    let newer = |newest: Option<(u32, u32)>| newest.is_none_or(|newest| at > newest);
    if let Some(list) = notify::read_address_list(request.payloads, request.path.remote.ip())
        && newer(mobility.newest_list)
    {
        // RFC 4555 §3.6: the new list replaces the old one whole.
        mobility.newest_list = Some(at);
        mobility.peer_addresses = list;
        intents.push(Intent::PeerList);
    }
    // RFC 4555 §4.2.4: only the initiator decides where the IKE_SA goes.
    if view.role == Role::Responder
        && notify::has(request.payloads, NotifyType::UPDATE_SA_ADDRESSES)
        && newer(mobility.newest_update)
    {
        mobility.newest_update = Some(at);
        // RFC 4555 §3.5: the addresses are those of the IP header, never of a payload.
        let spis = (view.spi_i, view.spi_r);
        let nat = nat::detect(spis, request.path, request.payloads);
        intents.push(Intent::Updated { path: request.path, nat });
    } else if mobility.claimed == Some(request.path) && view.path != request.path {
        // It did not answer there, and now speaks from there: worth another check.
        intents.push(Intent::Updated { path: request.path, nat: None });
    } else if view.role == Role::Responder && view.path != request.path {
        intents.push(Intent::Heard { path: request.path });
    }
    intents
}
