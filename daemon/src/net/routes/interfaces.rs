//! The XFRM interfaces that the operator has made for connections with `if_id`: they are found by that
//! number, whatever their names are, and may come, go and come again.

use std::{collections::BTreeMap, num::NonZeroU32};

use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoData, InfoXfrm, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use tracing::warn;

use super::{Link, Routes, wanted::Kind};
use crate::net::{NetError, addresses::mtu_of};

/// What is known of them: the name of each that was there when it was looked for last.
#[derive(Default)]
pub(super) struct Interfaces(BTreeMap<NonZeroU32, Option<String>>);

impl Interfaces {
    /// Their names, for the packet filter.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.values().flatten()
    }
}

/// The number of an XFRM interface; `None` of anything else.
pub(in crate::net) fn if_id(link: &LinkMessage) -> Option<NonZeroU32> {
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    })?;
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Xfrm(data)) => Some(data),
        _ => None,
    })?;
    data.iter().find_map(|data| match data {
        InfoXfrm::IfId(if_id) => NonZeroU32::new(*if_id),
        _ => None,
    })
}

impl Routes {
    /// Where routes of this kind lead; `None` if it is nowhere, or to an interface that is not there.
    pub(super) async fn find(&mut self, kind: Kind) -> Result<Option<Link>, NetError> {
        match kind {
            Kind::Device => self.find_device().await.map(Some),
            Kind::Interface(if_id) => self.find_interface(if_id).await,
            Kind::Block | Kind::Pass => Ok(None),
        }
    }

    async fn find_interface(&mut self, wanted: NonZeroU32) -> Result<Option<Link>, NetError> {
        let mut links = self.handle.link().get().execute();
        let failed = |e| NetError::new("list links", &e);
        let (mut found, mut name) = (None, None);
        while let Some(link) = links.try_next().await.map_err(failed)? {
            // The kernel takes no route to one that is down; once that is up it is told (RTM_NEWLINK).
            if if_id(&link) != Some(wanted) || !link.header.flags.contains(LinkFlags::Up) {
                continue;
            }
            let index = link.header.index;
            found = Some(Link { index, mtu: mtu_of(&link).unwrap_or(u32::MAX) });
            name = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
        }
        let known = self.interfaces.0.insert(wanted, name);
        if found.is_none() && known.is_none_or(|known| known.is_some()) {
            warn!(
                "no XFRM interface here that is up has if_id {wanted}, so that no route leads to it; to make one: \
                 `ip link add ipsec0 type xfrm dev lo if_id {wanted}`, `ip link set ipsec0 up`"
            );
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    #[test]
    fn an_xfrm_interface_is_known_by_its_number() {
        let link = |data| {
            let mut link = LinkMessage::default();
            let info = vec![LinkInfo::Kind(InfoKind::Xfrm), LinkInfo::Data(data)];
            link.attributes.push(LinkAttribute::LinkInfo(info));
            if_id(&link)
        };
        let xfrm = |if_id| InfoData::Xfrm(vec![InfoXfrm::Link(1), InfoXfrm::IfId(if_id)]);
        assert_eq!(link(xfrm(42)), NonZeroU32::new(42));
        assert_eq!(link(xfrm(0)), None);
        assert_eq!(link(InfoData::Other(Vec::new())), None);
        assert_eq!(if_id(&LinkMessage::default()), None);
    }
}
