//! Control messages: the local address and the interface of a datagram (RFC 3542 §6, ip(7)).

use std::{
    mem::{self, MaybeUninit},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

/// Room for one control message with either packet info, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 64]);

impl Control {
    pub(super) const fn new() -> Self {
        Control([0; 64])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }

    pub(super) const fn capacity() -> usize {
        64
    }
}

/// Writes the source `local` and the interface (0 for any) into the control buffer of `header`.
///
/// # Safety
/// `header.msg_control` points to a [`Control`] that nothing else uses during the call.
pub(super) unsafe fn set_source(header: &mut libc::msghdr, local: IpAddr, ifindex: u32) {
    match local {
        IpAddr::V4(local) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: ifindex as libc::c_int,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(local).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            // SAFETY: the caller's promise.
            unsafe { put(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info) };
        }
        IpAddr::V6(local) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: local.octets() },
                ipi6_ifindex: ifindex,
            };
            // SAFETY: the caller's promise.
            unsafe { put(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info) };
        }
    }
}

/// # Safety
/// `header.msg_control` points to a [`Control`] that nothing else uses during the call.
unsafe fn put<T: Copy>(header: &mut libc::msghdr, level: i32, kind: i32, value: T) {
    let size = mem::size_of::<T>() as libc::c_uint;
    // SAFETY: both packet infos are 12 or 20 octets, so header and value fit into the 64 of
    // `Control`, and CMSG_FIRSTHDR is not null as msg_controllen is at least a header's size.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(size) as _;
        let message = libc::CMSG_FIRSTHDR(header);
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(size) as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), value);
    }
}

/// The destination address and the interface of a received datagram.
///
/// # Safety
/// `header` was filled by a successful receive and its control buffer still lives.
pub(super) unsafe fn destination(header: &libc::msghdr) -> Option<(IpAddr, u32)> {
    // SAFETY: the kernel wrote whole control messages within msg_controllen, and the CMSG
    // functions stay within it; a value is only read if its message is long enough.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = value(message)?;
                    let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    return Some((address.into(), u32::try_from(info.ipi_ifindex).unwrap_or(0)));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = value(message)?;
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    return Some((address.into(), info.ipi6_ifindex));
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// # Safety
/// `message` points to a control message whose `cmsg_len` octets are readable.
unsafe fn value<T: Copy>(message: *const libc::cmsghdr) -> Option<T> {
    // SAFETY: the caller's promise; CMSG_LEN counts the header.
    unsafe {
        if (*message).cmsg_len < libc::CMSG_LEN(mem::size_of::<T>() as _) as _ {
            return None;
        }
        let mut out = MaybeUninit::<T>::uninit();
        ptr::copy_nonoverlapping(
            libc::CMSG_DATA(message),
            out.as_mut_ptr().cast::<u8>(),
            mem::size_of::<T>(),
        );
        Some(out.assume_init())
    }
}
