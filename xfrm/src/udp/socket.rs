//! One UDP socket: its options, its port, and sends with a chosen source.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use bewick_ike::Path;
use socket2::{Domain, Protocol, SockAddr, Type};

use super::{
    UdpConfig, UdpError, control,
    errors::{self, Unreachable},
};

/// `include/uapi/linux/udp.h`: ESP in UDP as RFC 3948 has it.
const UDP_ENCAP: libc::c_int = 100;
const UDP_ENCAP_ESPINUDP: libc::c_int = 2;

/// How often a datagram is sent again at most that ICMP errors about earlier ones keep from leaving.
const RETRIES: u32 = 4;

/// Batches that go out datagram by datagram after the kernel has refused to cut one. Routes change, and a
/// refusal is only about one of them.
const PAUSE: u32 = 256;
/// The pause of a kernel that knows nothing of cutting.
const FOREVER: u32 = u32::MAX;

/// A bound socket of one family.
pub(super) struct Socket {
    inner: socket2::Socket,
    pub(super) ipv4: bool,
    /// ESP and keepalives may come in, IKE carries the non-ESP marker
    pub(super) nat: bool,
    pub(super) port: u16,
    /// which of the receiving threads of its port is its own
    pub(super) lane: usize,
    /// batches until the kernel is asked again to cut one; [`FOREVER`] if it can't
    pause: AtomicU32,
}

impl Socket {
    pub(super) fn open(
        addr: SocketAddr,
        lane: Option<usize>,
        config: &UdpConfig,
        notes: &mut Vec<String>,
    ) -> Result<Socket, UdpError> {
        let (nat, lane) = (lane.is_some(), lane.unwrap_or(0));
        let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
        let failed = |what: &'static str| {
            move |source| UdpError::Io {
                operation: format!("{what} of the UDP socket on port {} ({family})", addr.port()),
                source,
            }
        };
        let inner =
            socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))
                .map_err(failed("creation"))?;
        let fd = inner.as_raw_fd();
        if addr.is_ipv4() {
            let (level, off) = (libc::IPPROTO_IP, libc::IP_PMTUDISC_DONT);
            set(fd, level, libc::IP_PKTINFO, 1).map_err(failed("IP_PKTINFO"))?;
            // RFC 7296 §2: IKE messages that exceed the path's MTU rely on IP fragmentation.
            set(fd, level, libc::IP_MTU_DISCOVER, off).map_err(failed("IP_MTU_DISCOVER"))?;
            set(fd, level, libc::IP_RECVERR, 1).map_err(failed("IP_RECVERR"))?;
            if nat {
                set(fd, level, libc::IP_RECVTOS, 1).map_err(failed("IP_RECVTOS"))?;
            }
        } else {
            let (level, off) = (libc::IPPROTO_IPV6, libc::IPV6_PMTUDISC_DONT);
            inner.set_only_v6(true).map_err(failed("IPV6_V6ONLY"))?;
            set(fd, level, libc::IPV6_RECVPKTINFO, 1).map_err(failed("IPV6_RECVPKTINFO"))?;
            set(fd, level, libc::IPV6_MTU_DISCOVER, off).map_err(failed("IPV6_MTU_DISCOVER"))?;
            set(fd, level, libc::IPV6_RECVERR, 1).map_err(failed("IPV6_RECVERR"))?;
            if nat {
                set(fd, level, libc::IPV6_RECVTCLASS, 1).map_err(failed("IPV6_RECVTCLASS"))?;
            }
        }
        let size = libc::c_int::try_from(config.buffer).unwrap_or(libc::c_int::MAX);
        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            // Without CAP_NET_ADMIN the system's limit applies: less room for bursts, no failure.
            if set(fd, libc::SOL_SOCKET, force, size).is_err() {
                set(fd, libc::SOL_SOCKET, plain, size).map_err(failed("buffer size"))?;
            }
        }
        if let Some(mark) = config.mark
            && let Err(error) = set(fd, libc::SOL_SOCKET, libc::SO_MARK, mark as libc::c_int)
        {
            notes.push(format!(
                "packets can't be marked ({error}): routing rules that look at the mark won't see \
                 ours; CAP_NET_ADMIN allows it"
            ));
        }
        let share = || inner.set_reuse_port(true).map_err(failed("SO_REUSEPORT"));
        if lane > 0 {
            share()?;
        }
        inner.bind(&SockAddr::from(addr)).map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => UdpError::InUse { port: addr.port(), family },
            Some(libc::EACCES) => UdpError::Denied { port: addr.port() },
            _ => failed("binding")(source),
        })?;
        let bound = inner.local_addr().map_err(failed("address"))?;
        let port = bound.as_socket().map_or(addr.port(), |bound| bound.port());
        // Not before it is bound: another program that has the port, or another of us, has to be seen.
        if nat && lane == 0 && config.receivers > 1 {
            share()?;
        }
        // Kernels before 4.18 would send the whole batch as one datagram, and say nothing.
        let pause = if can_cut(fd) { 0 } else { FOREVER }.into();
        Ok(Socket { inner, ipv4: addr.is_ipv4(), nat, port, lane, pause })
    }

    /// Whether to have the kernel cut the next batch.
    pub(super) fn may_cut(&self) -> bool {
        let down = |pause| (pause != 0 && pause != FOREVER).then(|| pause - 1);
        // Most have no pause, and for them nothing is written.
        self.pause.load(Relaxed) == 0 || self.pause.fetch_update(Relaxed, Relaxed, down) == Ok(1)
    }

    /// The kernel has refused to cut a batch that it sends in single datagrams.
    pub(super) fn cannot_cut(&self) {
        let start = |pause| (pause != FOREVER).then_some(PAUSE);
        let _ = self.pause.fetch_update(Relaxed, Relaxed, start);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }

    /// Has the kernel take ESP from this socket, or leave it to us.
    pub(super) fn set_encap(&self, on: bool) -> io::Result<()> {
        let kind = if on { UDP_ENCAP_ESPINUDP } else { 0 };
        set(self.fd(), libc::IPPROTO_UDP, UDP_ENCAP, kind)
    }

    /// Has the kernel put datagrams that follow each other together, where it can.
    pub(super) fn set_gro(&self, on: bool) {
        // Kernels before 5.0 can't, and hand over one by one.
        let _ = set(self.fd(), libc::SOL_UDP, control::UDP_GRO, on.into());
    }

    /// As on a kernel that knows nothing of cutting.
    #[cfg(test)]
    pub(super) fn never_cut(&self) {
        self.pause.store(FOREVER, Relaxed);
    }

    /// Whether what is sent has UDP checksums; the kernel cuts nothing without.
    #[cfg(test)]
    pub(super) fn set_checksums(&self, on: bool) {
        let off = libc::c_int::from(!on);
        set(self.fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, off).unwrap();
    }

    /// Lets what this socket carries pass the policies of the kernel's data plane.
    pub(super) fn bypass(&self) -> io::Result<()> {
        crate::kernel::bypass(self.inner.as_fd())
    }

    /// Makes a receive that waits return, now and from now on.
    pub(super) fn wake_receiver(&self) {
        // An unconnected socket answers ENOTCONN, but Linux wakes its readers all the same.
        let _ = self.inner.shutdown(std::net::Shutdown::Read);
    }

    /// Sends `parts` as one datagram from `path.local`'s address, out of `ifindex` if it isn't 0,
    /// with the traffic class `class`; as datagrams of `segment` octets each, the last one shorter, if
    /// that isn't 0.
    ///
    /// Never waits: an uplink that has stopped taking packets must not stop its users, who may be
    /// about to leave it. ICMP errors about earlier datagrams that come to light go to `unreachable`.
    pub(super) fn send(
        &self,
        path: &Path,
        ifindex: u32,
        class: u8,
        parts: &[io::IoSlice<'_>],
        segment: u16,
        unreachable: &Unreachable,
    ) -> io::Result<()> {
        let remote = SockAddr::from(path.remote);
        let mut buffer = control::Control::new();
        // SAFETY: msghdr is plain data for which all zero octets are valid.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_name = remote.as_ptr().cast_mut().cast();
        header.msg_namelen = remote.len();
        // `IoSlice` has the layout of `iovec`, as its documentation promises.
        header.msg_iov = parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = parts.len() as _;
        header.msg_control = buffer.as_mut_ptr();
        if !path.local.ip().is_unspecified() {
            // SAFETY: msg_control is `buffer`, which nothing else uses.
            unsafe { control::set_source(&mut header, path.local.ip(), ifindex) };
        }
        // Most packets have none, and it costs them nothing.
        if class != 0 {
            // SAFETY: as above.
            unsafe { control::set_class(&mut header, self.ipv4, class) };
        }
        if segment != 0 {
            // SAFETY: as above.
            unsafe { control::set_segment(&mut header, segment) };
        }
        let mut retries = 0;
        loop {
            // SAFETY: name, vectors and control live until after the call; sendmsg only reads them.
            let sent = unsafe {
                libc::sendmsg(self.fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(errno) if errors::is_reported(errno) && retries < RETRIES => {
                    // It may be the fate of an earlier datagram, and then this one has not left; or
                    // its own, which is the same the second time. Somebody else may have emptied the
                    // queue since.
                    if unreachable.take(self) == 0 && retries > 0 {
                        return Err(error);
                    }
                    retries += 1;
                }
                _ => return Err(error),
            }
        }
    }
}

/// Whether the kernel knows UDP_SEGMENT.
fn can_cut(fd: RawFd) -> bool {
    let mut value: libc::c_int = 0;
    let mut len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: value and length outlive the call, and the length is the value's.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_UDP,
            control::UDP_SEGMENT,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    result == 0
}

/// Sets an integer option.
fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value outlives the call and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
