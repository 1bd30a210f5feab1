//! Looks for inner packets on the wires between client and gateway, where only ESP and IKE belong.

use std::{io, mem::MaybeUninit, time::Duration};

use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::netns::Netns;

/// The wires of one namespace, as far as packets come in.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Starts to look, on every interface of `netns`, for packets to or from `inner`. The kernel
    /// sorts out the others, so that to look costs nothing.
    pub fn start(netns: &Netns, inner: &[Ipv4Net]) -> io::Result<Self> {
        let ip = u16::try_from(libc::ETH_P_IP).map_err(io::Error::other)?.to_be();
        let socket = netns.enter(|| {
            let socket =
                Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(ip))))?;
            socket.attach_filter(&filter(inner))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(1)))?;
        Ok(Watch { socket })
    }

    /// How many such packets went by since it was last asked, as far as the kernel has kept them.
    pub fn seen(&self) -> u64 {
        let mut seen = 0;
        while self.socket.recv(&mut [MaybeUninit::uninit(); 20]).is_ok() {
            seen += 1;
        }
        seen
    }
}

/// A classic BPF program that accepts IPv4 packets to or from one of `inner`.
fn filter(inner: &[Ipv4Net]) -> Vec<SockFilter> {
    const SOURCE: u32 = 12;
    const DESTINATION: u32 = 16;
    // All codes are below 0x100.
    let instruction = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    let mut program = Vec::new();
    for offset in [SOURCE, DESTINATION] {
        for net in inner {
            program.extend([
                instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset),
                instruction(
                    libc::BPF_ALU | libc::BPF_AND | libc::BPF_K,
                    0,
                    0,
                    net.netmask().into(),
                ),
                instruction(
                    libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                    0,
                    1,
                    net.network().into(),
                ),
                instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            ]);
        }
    }
    program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0));
    program
}
