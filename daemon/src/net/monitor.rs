//! Watches links, addresses and routes, and tells when the local addresses have changed.
//!
//! A loss is believed at once, from the event alone: a move can't wait for anything. After it, and
//! after the first event in a quiet time, the kernel's whole state is read again, so that an event
//! that was lost (ENOBUFS) costs nothing but that; what gains something and comes within 100 ms is
//! taken together.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use netlink_sys::{
    AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use crate::net::{
    LocalAddress, NetError, OUTER_PRIORITY, RULE_PRIORITY,
    addresses::{all, dump},
    guard::TABLE_NAME,
    routes::PROTOCOL,
};

/// Events that add something and come within this time are taken together.
const MERGE: Duration = Duration::from_millis(100);

/// However many losses there are, they are looked at no more often than this: another program's routes may
/// go by the thousand.
const BREATH: Duration = Duration::from_millis(3);

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE and _IPV6_RULE as
/// bits of `nl_groups`.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// The watcher; dropping it ends it.
pub struct Monitor {
    addresses: watch::Receiver<Vec<LocalAddress>>,
    disturbed: watch::Receiver<()>,
    tables: watch::Receiver<()>,
    /// The kernel makes one list at a time for a socket: who asks for a second one hears EBUSY.
    handle: Arc<Mutex<rtnetlink::Handle>>,
    tasks: [JoinHandle<()>; 3],
}

impl Monitor {
    /// Starts to watch and reads the present state; addresses on the device `own` never count.
    pub async fn start(own: &str) -> Result<Self, NetError> {
        let opening = |e| NetError::io("open a netlink socket", &e);
        // joined before the first dump, so that nothing falls between the two
        let events = open_events().map_err(opening)?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(opening)?;
        let connection = tokio::spawn(connection);
        let (sender, addresses) = watch::channel(dump(&handle, own).await?);
        let (disturb, disturbed) = watch::channel(());
        let handle = Arc::new(Mutex::new(handle));
        let (told, tables) = watch::channel(());
        let tables_watcher = tokio::spawn(watch_tables(told));
        let watching = watch_events(events, handle.clone(), own.to_owned(), sender, disturb);
        let watcher = tokio::spawn(watching);
        let tasks = [connection, watcher, tables_watcher];
        Ok(Monitor { addresses, disturbed, tables, handle, tasks })
    }

    /// The local addresses as of now, and a wake-up whenever they have changed.
    pub fn addresses(&self) -> watch::Receiver<Vec<LocalAddress>> {
        self.addresses.clone()
    }

    /// A wake-up whenever a rule that leads to the tunnel was removed, or a route that leads nowhere: it may
    /// have been another program.
    pub fn disturbed(&self) -> watch::Receiver<()> {
        self.disturbed.clone()
    }

    /// A wake-up whenever something has happened to our table of nftables.
    pub fn tables(&self) -> watch::Receiver<()> {
        self.tables.clone()
    }

    /// Every address of this machine, on whatever interface.
    pub async fn all_addresses(&self) -> Result<Vec<IpAddr>, NetError> {
        all(&*self.handle.lock().await).await
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn open_events() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().set_rx_buf_sz(1 << 20)?;
    socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// Tells of each change to our table of nftables, one of our own too.
async fn watch_tables(told: watch::Sender<()>) {
    /// NFNLGRP_NFTABLES as a bit of `nl_groups`
    const TABLES: u32 = 1 << 6;
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().set_rx_buf_sz(1 << 20)?;
        socket.socket_mut().bind(&SocketAddr::new(0, TABLES))?;
        Ok(socket)
    };
    let events = match open() {
        Ok(events) => events,
        Err(e) => return debug!("no events of nftables: {e}"),
    };
    loop {
        let ours = match events.recv_from_full().await {
            Ok((octets, _)) => names_our_table(&octets),
            Err(e) => match e.raw_os_error() {
                Some(libc::ENOBUFS) => true,
                _ => return debug!("events of nftables end: {e}"),
            },
        };
        if ours {
            told.send_replace(());
        }
    }
}

/// Whether a datagram of the kernel's is about the table of ours, whose name is the first attribute or
/// close to it, with a zero at its end.
fn names_our_table(octets: &[u8]) -> bool {
    let name = TABLE_NAME.as_bytes();
    octets.windows(name.len() + 1).any(|some| some.starts_with(name) && some.ends_with(&[0]))
}

async fn watch_events(
    events: TokioSocket,
    handle: Arc<Mutex<rtnetlink::Handle>>,
    own: String,
    sender: watch::Sender<Vec<LocalAddress>>,
    disturb: watch::Sender<()>,
) {
    let mut last = Instant::now();
    let mut due: Option<Instant> = None;
    loop {
        let wake = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            event = events.recv_from_full() => {
                if event.as_ref().is_ok_and(|(octets, _)| disturbs(octets)) {
                    disturb.send_replace(());
                }
                let urgent = match event {
                    Ok((octets, _)) if is_our_own(&octets) => continue,
                    Ok((octets, _)) => {
                        let losses = losses(&octets);
                        sender.send_if_modified(|addresses| {
                            let before = addresses.len();
                            addresses.retain(|a| !losses.iter().any(|loss| loss.takes(a)));
                            addresses.len() != before
                        });
                        !losses.is_empty() || sender.borrow().is_empty()
                    }
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                        debug!("the kernel dropped network events; reading everything again");
                        disturb.send_replace(());
                        true
                    }
                    Err(e) => {
                        warn!("network events end: {e}");
                        return;
                    }
                };
                let at = Instant::now().max(last + if urgent { BREATH } else { MERGE });
                due = Some(due.map_or(at, |due| due.min(at)));
            }
            () = sleep_until(wake), if due.is_some() => {
                due = None;
                match dump(&*handle.lock().await, &own).await {
                    Ok(found) => {
                        sender.send_if_modified(|old| {
                            let changed = *old != found;
                            *old = found;
                            changed
                        });
                    }
                    Err(e) => {
                        warn!("local addresses are not known: {e}");
                        due = Some(Instant::now() + MERGE);
                    }
                }
                last = Instant::now();
            }
        }
        if sender.is_closed() {
            return;
        }
    }
}

/// Whether a datagram of the kernel's tells of nothing but routes that we have set or removed: a gateway has one
/// for each client, and none of them says where an outer packet can go.
fn is_our_own(mut octets: &[u8]) -> bool {
    const PROTOCOL_AT: usize = 5;
    let mut any = false;
    while let Some((len, kind, body)) = message(octets) {
        let is_route = matches!(kind, libc::RTM_NEWROUTE | libc::RTM_DELROUTE);
        if !is_route || body.get(PROTOCOL_AT) != Some(&PROTOCOL) {
            return false;
        }
        any = true;
        octets = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    any
}

/// The length, the type and the body of the first of these messages (netlink(7)).
fn message(octets: &[u8]) -> Option<(usize, u16, &[u8])> {
    const HEADER: usize = 16;
    let len = (u32_at(octets, 0)? as usize).max(HEADER);
    Some((len, u16_at(octets, 4)?, octets.get(HEADER..len).unwrap_or_default()))
}

/// Something that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// a link went away or lost its carrier
    Link(u32),
    /// an interface lost an address
    Address(u32, IpAddr),
    /// a route was removed: what that means, only the whole state tells
    Route,
}

impl Loss {
    /// Whether `local` can't be used any more, whatever else there is.
    fn takes(&self, local: &LocalAddress) -> bool {
        match *self {
            Loss::Link(index) => local.ifindex == index,
            Loss::Address(index, address) => local.ifindex == index && local.address == address,
            Loss::Route => false,
        }
    }
}

/// What a datagram of the kernel's says is gone (rtnetlink(7)).
fn losses(mut octets: &[u8]) -> Vec<Loss> {
    const WORKS: u32 = (libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_RUNNING) as u32;
    let mut out = Vec::new();
    while let Some((len, kind, body)) = message(octets) {
        // in both ifinfomsg and ifaddrmsg the family is the first octet, the index the second word
        let (family, index) = (body.first().copied().map(i32::from), u32_at(body, 4));
        match (kind, index) {
            // a bridge tells so that it has a port less
            (libc::RTM_DELLINK | libc::RTM_NEWLINK, _) if family != Some(libc::AF_UNSPEC) => {}
            (libc::RTM_DELLINK, Some(index)) => out.push(Loss::Link(index)),
            (libc::RTM_NEWLINK, Some(index))
                if u32_at(body, 8).is_some_and(|flags| flags & WORKS != WORKS) =>
            {
                out.push(Loss::Link(index));
            }
            (libc::RTM_DELADDR, Some(index)) => {
                let address = address_of(body.get(8..).unwrap_or_default());
                out.extend(address.map(|address| Loss::Address(index, address)));
            }
            (libc::RTM_DELROUTE, _) => out.push(Loss::Route),
            _ => {}
        }
        octets = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

/// Whether a datagram of the kernel's says that a rule which leads to the tunnel is gone, or a route that
/// leads nowhere, or that there is an XFRM interface. Those for uplinks come and go with each move.
fn disturbs(mut octets: &[u8]) -> bool {
    /// where the type stands in rtmsg
    const TYPE: usize = 7;
    /// what kind of link it is, as an attribute's value
    const XFRM: &[u8] = b"xfrm\0";
    while let Some((len, kind, body)) = message(octets) {
        let nowhere = || body.get(TYPE) == Some(&libc::RTN_UNREACHABLE);
        match kind {
            libc::RTM_DELRULE => {
                let at = priority_of(body);
                if at.is_none_or(|at| [OUTER_PRIORITY, RULE_PRIORITY].contains(&at)) {
                    return true;
                }
            }
            libc::RTM_DELROUTE if nowhere() => return true,
            libc::RTM_NEWLINK if body.windows(XFRM.len()).any(|some| some == XFRM) => return true,
            _ => {}
        }
        octets = octets.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Where a rule stands, from its fib_rule_hdr on (FRA_PRIORITY).
fn priority_of(body: &[u8]) -> Option<u32> {
    const HEADER: usize = 12;
    const FRA_PRIORITY: u16 = 6;
    let mut attributes = body.get(HEADER..)?;
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        if kind == FRA_PRIORITY {
            return u32_at(attributes, 4);
        }
        let len = usize::from(len).max(4);
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// The interface's own address among the attributes of an ifaddrmsg.
fn address_of(mut attributes: &[u8]) -> Option<IpAddr> {
    const HEADER: usize = 4;
    let mut out = None;
    while let (Some(len), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let len = usize::from(len).max(HEADER);
        let value = attributes.get(HEADER..len).unwrap_or_default();
        let address = <[u8; 4]>::try_from(value).map(IpAddr::from);
        let address = address.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
        match kind {
            libc::IFA_LOCAL => return address,
            libc::IFA_ADDRESS => out = address,
            _ => {}
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(body);
        out
    }

    fn link(kind: u16, index: u32, flags: i32) -> Vec<u8> {
        let words = [0, index, flags as u32, 0];
        datagram(kind, &words.map(u32::to_ne_bytes).concat())
    }

    fn address(kind: u16, index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = [0, index].map(u32::to_ne_bytes).concat();
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
        }
        datagram(kind, &body)
    }

    const UP: i32 = libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_RUNNING;

    #[test]
    fn routes_of_our_own_are_passed_over() {
        let route =
            |kind, protocol| datagram(kind, &[2, 32, 0, 0, 254, protocol, 0, 1, 0, 0, 0, 0]);
        let (new, gone) = (libc::RTM_NEWROUTE, libc::RTM_DELROUTE);
        assert!(is_our_own(&[route(new, PROTOCOL), route(gone, PROTOCOL)].concat()));
        assert!(!is_our_own(&route(gone, 3)), "another program's");
        assert!(!is_our_own(&[route(new, PROTOCOL), link(libc::RTM_NEWLINK, 7, UP)].concat()));
        assert!(!is_our_own(&[]) && !is_our_own(&[1, 2, 3]));
        assert!(!is_our_own(&datagram(new, &[])));
    }

    #[test]
    fn a_loss_is_told_from_a_gain() {
        assert_eq!(losses(&link(libc::RTM_NEWLINK, 7, UP)), []);
        let no_carrier = libc::IFF_UP | libc::IFF_RUNNING;
        assert_eq!(losses(&link(libc::RTM_NEWLINK, 7, no_carrier)), [Loss::Link(7)]);
        assert_eq!(losses(&link(libc::RTM_DELLINK, 7, UP)), [Loss::Link(7)]);
        let mut bridge = link(libc::RTM_DELLINK, 7, UP);
        bridge[16] = u8::try_from(libc::AF_BRIDGE).unwrap();
        assert_eq!(losses(&bridge), []);
        let v4: &[u8] = &[10, 0, 0, 1];
        assert_eq!(losses(&address(libc::RTM_NEWADDR, 7, &[(libc::IFA_ADDRESS, v4)])), []);
        let gone = address(libc::RTM_DELADDR, 7, &[(libc::IFA_ADDRESS, v4)]);
        assert_eq!(losses(&gone), [Loss::Address(7, "10.0.0.1".parse().unwrap())]);
    }

    #[test]
    fn on_a_point_to_point_link_the_local_end_is_gone() {
        let attributes: [(u16, &[u8]); 2] =
            [(libc::IFA_ADDRESS, &[10, 0, 0, 2]), (libc::IFA_LOCAL, &[10, 0, 0, 1])];
        let gone = address(libc::RTM_DELADDR, 7, &attributes);
        assert_eq!(losses(&gone), [Loss::Address(7, "10.0.0.1".parse().unwrap())]);
        let v6 = std::net::Ipv6Addr::LOCALHOST.octets();
        let gone = address(libc::RTM_DELADDR, 7, &[(libc::IFA_ADDRESS, &v6)]);
        assert_eq!(losses(&gone), [Loss::Address(7, "::1".parse().unwrap())]);
    }

    #[test]
    fn a_datagram_may_hold_several() {
        let both =
            [link(libc::RTM_NEWLINK, 1, UP), datagram(libc::RTM_DELROUTE, &[0; 12])].concat();
        assert_eq!(losses(&both), [Loss::Route]);
    }

    #[test]
    fn only_what_was_lost_is_taken_away() {
        let local = |ifindex, address: &str| LocalAddress {
            address: address.parse().unwrap(),
            ifindex,
            interface: "eth0".into(),
            metric: None,
            gateway: None,
            mtu: 1500,
        };
        let loss = Loss::Address(7, "10.0.0.1".parse().unwrap());
        assert!(loss.takes(&local(7, "10.0.0.1")));
        assert!(!loss.takes(&local(8, "10.0.0.1")) && !loss.takes(&local(7, "10.0.0.2")));
        assert!(Loss::Link(7).takes(&local(7, "10.0.0.1")));
        assert!(!Loss::Link(7).takes(&local(8, "10.0.0.1")));
        assert!(!Loss::Route.takes(&local(7, "10.0.0.1")));
    }

    #[test]
    fn a_short_or_wrong_datagram_is_nothing() {
        assert_eq!(losses(&[]), []);
        assert_eq!(losses(&[0; 5]), []);
        assert_eq!(losses(&link(libc::RTM_NEWLINK, 7, 0)[..20]), []);
        assert_eq!(losses(&[0xff; 7]), []);
        assert_eq!(losses(&[0xff; 64]), []);
        assert_eq!(losses(&[0; 64]), []);
        let mut cut = address(libc::RTM_DELADDR, 7, &[(libc::IFA_ADDRESS, &[10, 0, 0, 1])]);
        cut.truncate(30);
        assert_eq!(losses(&cut), []);
    }
}
