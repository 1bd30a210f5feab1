//! Network namespaces without names: they live as long as a descriptor or a process holds them.

use std::{
    fs::File,
    future::Future,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkFlags, LinkMessage},
        route::RouteType,
    },
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

// linux/netlink.h
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;

/// What could not be done to the network, with the kernel's word on it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct NetError {
    what: String,
    why: String,
}

impl NetError {
    /// `what` was tried, `why` it failed.
    pub fn new(what: impl Into<String>, why: impl ToString) -> Self {
        NetError { what: what.into(), why: why.to_string() }
    }
}

/// A network namespace, gone when this value and every process in it are gone.
#[derive(Debug)]
pub struct Netns {
    name: &'static str,
    fd: OwnedFd,
}

/// One end of a virtual cable.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// the namespace in which it ends
    pub netns: &'a Netns,
    /// the name of the interface there
    pub interface: &'a str,
    /// its index, which has to be another than that of the far end: of equal ones the kernel thinks
    /// that they are no cable, and lets up to a second pass until it tells of the carrier
    pub index: u32,
    /// the interface's address
    pub address: Ipv4Net,
}

impl Netns {
    /// Makes an empty namespace with its loopback up; `name` is for people only.
    pub fn create(name: &'static str) -> Result<Self, NetError> {
        // A thread of its own, so that the caller stays where it is.
        let made = run(|| {
            // SAFETY: without FILES in the flags no file descriptor table is unshared, which is
            // the only thing that makes this call unsafe.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net")?))
        });
        let fd = made
            .map_err(|error| NetError::new(format!("make a network namespace ({name})"), error))?;
        let netns = Netns { name, fd };
        netns.set_link("lo", true)?;
        Ok(netns)
    }

    /// The name for people.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs `work` on a thread inside the namespace. A socket made there stays there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        run(|| {
            move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })
    }

    /// Writes the same value to the same knob under `/proc/sys/net` for each of `paths`.
    pub fn set_sysctl(&self, paths: &[&str], value: &str) -> Result<(), NetError> {
        for path in paths {
            self.enter(|| std::fs::write(format!("/proc/sys/net/{path}"), value)).map_err(
                |error| {
                    NetError::new(
                        format!("write {value} to /proc/sys/net/{path} ({})", self.name),
                        error,
                    )
                },
            )?;
        }
        Ok(())
    }

    /// Takes an interface up or down, as an administrator does.
    pub fn set_link(&self, interface: &str, up: bool) -> Result<(), NetError> {
        let way = if up { "up" } else { "down" };
        self.netlink(format!("set {interface} {way}"), |handle| async move {
            let link = LinkUnspec::new_with_index(index(&handle, interface).await?);
            let link = if up { link.up() } else { link.down() };
            handle.link().set(link.build()).execute().await
        })
    }

    /// Whether the kernel has told everyone that the interface works.
    pub fn is_running(&self, interface: &str) -> Result<bool, NetError> {
        self.netlink(format!("look at {interface}"), |handle| async move {
            let link = link(&handle, interface).await?;
            Ok(link.header.flags.contains(LinkFlags::Running))
        })
    }

    /// Gives an interface an address.
    pub fn add_address(&self, interface: &str, address: Ipv4Net) -> Result<(), NetError> {
        self.netlink(format!("add {address} to {interface}"), |handle| async move {
            let index = index(&handle, interface).await?;
            let ip = address.addr().into();
            handle.address().add(index, ip, address.prefix_len()).execute().await
        })
    }

    /// Adds a route to the main table; `0.0.0.0/0` is the default route.
    pub fn add_route(&self, to: Ipv4Net, via: Ipv4Addr, metric: u32) -> Result<(), NetError> {
        self.netlink(format!("add a route to {to} via {via}"), |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.network(), to.prefix_len())
                .gateway(via)
                .priority(metric)
                .build();
            handle.route().add(route).execute().await
        })
    }

    /// Drops whatever would go to `to`, without a word to the sender, or no longer does.
    pub fn set_blackhole(&self, to: Ipv4Addr, on: bool) -> Result<(), NetError> {
        let what = if on { "drop" } else { "no longer drop" };
        self.netlink(format!("{what} what goes to {to}"), |handle| async move {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .kind(RouteType::BlackHole)
                .build();
            match on {
                true => handle.route().add(route).execute().await,
                false => handle.route().del(route).execute().await,
            }
        })
    }

    /// Has the connection tracking forget everything, NAT mappings included.
    pub fn forget_connections(&self) -> Result<(), NetError> {
        // linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h: IPCTNL_MSG_CT_DELETE of
        // NFNL_SUBSYS_CTNETLINK, which without attributes means all of them.
        const CT_DELETE: u16 = (1 << 8) | 2;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut request = Vec::with_capacity(20);
        request.extend(20_u32.to_ne_bytes());
        request.extend(CT_DELETE.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        // sequence number, port, and a generic header for every family
        request.extend([0; 12]);
        self.enter(|| {
            let socket = Socket::new(NETLINK_NETFILTER)?;
            socket.send(&request, 0)?;
            let (answer, _) = socket.recv_from_full()?;
            let errno = answer.get(16..).and_then(|rest| rest.first_chunk::<4>());
            match errno.map(|errno| i32::from_ne_bytes(*errno)) {
                Some(0) => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                None => Err(io::Error::other("the kernel's answer is too short")),
            }
        })
        .map_err(|error| {
            NetError::new(format!("forget the connections of the {}", self.name), error)
        })
    }

    /// Runs netlink requests inside the namespace.
    fn netlink<T, F, R>(&self, what: String, requests: F) -> Result<T, NetError>
    where
        T: Send,
        F: FnOnce(Handle) -> R + Send,
        R: Future<Output = Result<T, rtnetlink::Error>>,
    {
        let name = self.name;
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                requests(handle).await.map_err(|error| io::Error::other(error.to_string()))
            })
        })
        .map_err(|error| NetError::new(format!("{what} ({name})"), error))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Lays a virtual cable between two namespaces, with both ends addressed and up.
pub fn cable(a: End<'_>, b: End<'_>) -> Result<(), NetError> {
    let peer = LinkUnspec::new_with_name(b.interface)
        .index(b.index)
        .setns_by_fd(b.netns.fd.as_raw_fd())
        .build();
    let what = format!("make the cable {} - {}", a.interface, b.interface);
    a.netns.netlink(what, |handle| async move {
        let pair = LinkVeth::new(a.interface, b.interface)
            .index(a.index)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        handle.link().add(pair).execute().await
    })?;
    for end in [a, b] {
        end.netns.add_address(end.interface, end.address)?;
        end.netns.set_link(end.interface, true)?;
    }
    Ok(())
}

async fn index(handle: &Handle, interface: &str) -> Result<u32, rtnetlink::Error> {
    Ok(link(handle, interface).await?.header.index)
}

async fn link(handle: &Handle, interface: &str) -> Result<LinkMessage, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)
}

/// Runs `work` on a thread of its own and waits for it.
fn run<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}
