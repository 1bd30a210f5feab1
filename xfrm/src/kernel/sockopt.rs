//! The policy of a single socket, which comes before all others.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::Emitable;
use netlink_packet_xfrm::{Selector, UserPolicyInfo, constants::*};

const IP_XFRM_POLICY: libc::c_int = 17;
const IPV6_XFRM_POLICY: libc::c_int = 35;

/// Lets the packets of this UDP socket pass in the clear in both directions, whatever the policies
/// of the CHILD_SAs select: IKE must not go into the tunnels that it makes (RFC 4301 §4.4.1).
///
/// Needs CAP_NET_ADMIN. The kernel keeps one policy for each socket and direction, so IPv4 that an
/// IPv6 socket carries is not let through: IKE has a socket for each family. Errors are the system's.
pub fn bypass(socket: BorrowedFd<'_>) -> io::Result<()> {
    let (level, option, family) = match socket2::SockRef::from(&socket).domain()? {
        socket2::Domain::IPV6 => (libc::IPPROTO_IPV6, IPV6_XFRM_POLICY, AF_INET6),
        _ => (libc::IPPROTO_IP, IP_XFRM_POLICY, AF_INET),
    };
    for direction in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
        let info = UserPolicyInfo {
            selector: Selector { family, ..Selector::default() },
            direction,
            action: XFRM_POLICY_ALLOW,
            ..UserPolicyInfo::default()
        };
        let mut octets = vec![0u8; info.buffer_len()];
        info.emit(&mut octets);
        // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads as many
        // octets as we say are there.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                option,
                octets.as_ptr().cast(),
                octets.len() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
