//! Watches links, addresses and routes, and tells when the local addresses have changed.
//!
//! A loss is acted on at once, and so is the first event after a quiet time; what follows within
//! 100 ms is taken together. Each time the kernel's whole state is read again, so that an event that
//! was lost (ENOBUFS) costs nothing but that.

use std::{io, time::Duration};

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use crate::net::{
    LocalAddress, NetError,
    addresses::{all, dump},
};

/// Events that add something and come within this time are taken together.
const MERGE: Duration = Duration::from_millis(100);

/// However many losses there are, they are looked at no more often than this: our own routes that
/// go with a thousand clients are among them.
const BREATH: Duration = Duration::from_millis(3);

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR and _IPV6_ROUTE as bits of `nl_groups`.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 10;

/// The watcher; dropping it ends it.
pub struct Monitor {
    addresses: watch::Receiver<Vec<LocalAddress>>,
    handle: rtnetlink::Handle,
    tasks: [JoinHandle<()>; 2],
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
        let watcher = tokio::spawn(watch_events(events, handle.clone(), own.to_owned(), sender));
        Ok(Monitor { addresses, handle, tasks: [connection, watcher] })
    }

    /// The local addresses as of now, and a wake-up whenever they have changed.
    pub fn addresses(&self) -> watch::Receiver<Vec<LocalAddress>> {
        self.addresses.clone()
    }

    /// Every address of this machine, on whatever interface.
    pub async fn all_addresses(&self) -> Result<Vec<std::net::IpAddr>, NetError> {
        all(&self.handle).await
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

async fn watch_events(
    events: TokioSocket,
    handle: rtnetlink::Handle,
    own: String,
    sender: watch::Sender<Vec<LocalAddress>>,
) {
    let mut last = Instant::now();
    let mut due: Option<Instant> = None;
    loop {
        let wake = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            event = events.recv_from_full() => {
                let urgent = match event {
                    Ok((octets, _)) => is_loss(&octets) || sender.borrow().is_empty(),
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                        debug!("the kernel dropped network events; reading everything again");
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
                match dump(&handle, &own).await {
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

/// Whether a datagram of the kernel's has news of something that is gone: a link that went away or
/// lost its carrier, an address or a route that was removed.
fn is_loss(mut octets: &[u8]) -> bool {
    const FLAGS: u32 = (libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_RUNNING) as u32;
    let u32_at =
        |octets: &[u8], at: usize| octets.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let u16_at =
        |octets: &[u8], at: usize| octets.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    while let (Some(len), Some(kind)) = (u32_at(octets, 0), u16_at(octets, 4)) {
        match kind {
            libc::RTM_DELLINK | libc::RTM_DELADDR | libc::RTM_DELROUTE => return true,
            // ifinfomsg: family, type, index, then the flags
            libc::RTM_NEWLINK
                if u32_at(octets, 16 + 8).is_some_and(|flags| flags & FLAGS != FLAGS) =>
            {
                return true;
            }
            _ => {}
        }
        let next = (len as usize).max(16).next_multiple_of(4);
        octets = octets.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u32) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(32u32.to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend([0; 8]);
        out.extend(flags.to_ne_bytes());
        out.extend([0; 4]);
        out
    }

    #[test]
    fn a_loss_is_told_from_a_gain() {
        let up = (libc::IFF_UP | libc::IFF_LOWER_UP | libc::IFF_RUNNING) as u32;
        let no_carrier = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
        assert!(!is_loss(&message(libc::RTM_NEWLINK, up)));
        assert!(is_loss(&message(libc::RTM_NEWLINK, no_carrier)));
        assert!(!is_loss(&message(libc::RTM_NEWADDR, 0)));
        assert!(is_loss(&message(libc::RTM_DELADDR, 0)));
        let both = [message(libc::RTM_NEWADDR, 0), message(libc::RTM_DELROUTE, 0)].concat();
        assert!(is_loss(&both));
    }

    #[test]
    fn a_short_or_wrong_datagram_is_nothing() {
        assert!(!is_loss(&[]));
        assert!(!is_loss(&[0; 5]));
        assert!(!is_loss(&message(libc::RTM_NEWLINK, 0)[..20]));
        assert!(!is_loss(&[0xff; 7]));
        assert!(!is_loss(&[0; 64]));
    }
}
