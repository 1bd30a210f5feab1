//! Sees every packet that leaves by any interface of a namespace.

use std::{io::ErrorKind, mem::MaybeUninit, net::IpAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// One IP packet, or what asks for the way to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) ifindex: u32,
    /// of ARP the address that is asked for
    pub(super) to: Option<IpAddr>,
}

/// A packet socket that is told of what goes out.
pub(super) struct Tap(Socket);

impl Tap {
    pub(super) fn open() -> Self {
        // ETH_P_ALL: sockets of one protocol alone are not told of what goes out
        let all = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all))).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        Tap(socket)
    }

    /// What has gone out since it was last asked.
    pub(super) fn sent(&self) -> Vec<Seen> {
        let mut out = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 64];
        loop {
            let (len, from) = match self.0.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return out,
                Err(e) if e.raw_os_error() == Some(libc::ENETDOWN) => continue,
                Err(e) => panic!("the tap: {e}"),
            };
            // SAFETY: the kernel has filled as many octets, and packet sockets' addresses are these.
            let (octets, link) = unsafe {
                let octets: Vec<u8> = buffer[..len].iter().map(|b| b.assume_init()).collect();
                (octets, *from.as_ptr().cast::<libc::sockaddr_ll>())
            };
            if link.sll_pkttype != libc::PACKET_OUTGOING {
                continue;
            }
            let ifindex = u32::try_from(link.sll_ifindex).unwrap();
            let to = match i32::from(u16::from_be(link.sll_protocol)) {
                libc::ETH_P_IP => Some(<[u8; 4]>::try_from(&octets[16..20]).unwrap().into()),
                libc::ETH_P_IPV6 => Some(<[u8; 16]>::try_from(&octets[24..40]).unwrap().into()),
                libc::ETH_P_ARP => Some(<[u8; 4]>::try_from(&octets[24..28]).unwrap().into()),
                _ => None,
            };
            out.push(Seen { ifindex, to });
        }
    }
}
