//! The sockets of TCP: their options, and whom they are for.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use bewick_ike::Path;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::Footing;
use crate::udp::{UdpError, no_ipv6};

/// What was sent and is not acknowledged for so long ends a connection: by then the tunnel is elsewhere.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it takes to find out that the peer's host is gone, where nothing is sent (RFC 9329 §6.7). It says
/// nothing about the IKE_SA.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// Opens `port` for IPv4 and, if the machine can, the same port for IPv6.
pub(super) fn listen(
    port: u16,
    footing: Footing,
    notes: &mut Vec<String>,
) -> Result<(u16, Vec<std::net::TcpListener>), UdpError> {
    let v4 = listen_on(SocketAddr::new(footing.v4.into(), port), footing)?;
    let port = v4.local_addr().map_or(port, |addr| addr.port());
    let mut out = vec![v4];
    if let Some(v6) = footing.v6 {
        match listen_on(SocketAddr::new(v6.into(), port), footing) {
            Ok(v6) => out.push(v6),
            Err(UdpError::Io { source, .. }) if no_ipv6(&source) => {
                notes.push(format!("IPv6 is not available on this machine ({source}): IPv4 only"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((port, out))
}

fn listen_on(addr: SocketAddr, footing: Footing) -> Result<std::net::TcpListener, UdpError> {
    let family = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    let port = addr.port();
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of the daemon before are no reason to wait.
        socket.set_reuse_address(true)?;
        mark(&socket, footing);
        socket.bind(&SockAddr::from(addr))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map(Into::into).map_err(|source| match source.raw_os_error() {
        Some(libc::EADDRINUSE) => UdpError::TcpInUse { port, family },
        Some(libc::EACCES) => UdpError::Denied { port },
        _ => UdpError::Io { operation: format!("listening on TCP port {port} ({family})"), source },
    })
}

/// Lets the runtime of this thread have it.
pub(super) fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

/// Opens the connection of `path`, out of the interface `ifindex` if that is not 0.
pub(super) async fn connect(path: Path, ifindex: u32, footing: Footing) -> io::Result<TcpStream> {
    let socket = match path.local.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    mark(&SockRef::from(&socket), footing);
    if ifindex != 0 {
        bind_to(&socket, ifindex)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(path.local)?;
    let stream = socket.connect(path.remote).await?;
    settle(&stream)?;
    Ok(stream)
}

/// The options of a connection that stands.
pub(super) fn settle(stream: &TcpStream) -> io::Result<()> {
    // A packet never waits for the next one.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4))
}

fn mark(socket: &Socket, footing: Footing) {
    if let Some(mark) = footing.mark {
        // Refused as it is for UDP, where a note says so.
        let _ = socket.set_mark(mark);
    }
}

fn bind_to(socket: &TcpSocket, ifindex: u32) -> io::Result<()> {
    /// `include/uapi/asm-generic/socket.h`
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    let index = ifindex as libc::c_int;
    // SAFETY: the option takes one int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_BINDTOIFINDEX,
            std::ptr::from_ref(&index).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
