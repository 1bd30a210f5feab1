//! Control messages: the local address, the interface and the traffic class of a datagram (RFC 3542
//! §6, ip(7)).

use std::{
    mem::{self, MaybeUninit},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

/// `include/uapi/linux/udp.h`: the octets of each datagram that one send or receive has several of.
pub(super) const UDP_SEGMENT: libc::c_int = 103;
pub(super) const UDP_GRO: libc::c_int = 104;

/// Room for either packet info, a traffic class and a segment's size, aligned as `cmsghdr` wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; Control::CAPACITY]);

impl Control {
    pub(super) const CAPACITY: usize = 96;

    pub(super) const fn new() -> Self {
        Control([0; Control::CAPACITY])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// Appends the source `local` and the interface (0 for any) to the control messages of `header`.
///
/// # Safety
/// `header.msg_control` points to a [`Control`] that nothing else uses during the call, and
/// `header.msg_controllen` says how much of it is used.
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

/// Appends the traffic class to the control messages of `header`.
///
/// # Safety
/// As for [`set_source`].
pub(super) unsafe fn set_class(header: &mut libc::msghdr, ipv4: bool, class: u8) {
    let (level, kind) = match ipv4 {
        true => (libc::IPPROTO_IP, libc::IP_TOS),
        false => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    };
    // SAFETY: the caller's promise.
    unsafe { put(header, level, kind, libc::c_int::from(class)) };
}

/// Has the kernel cut what `header` sends into datagrams of `size` octets, the last one shorter.
///
/// # Safety
/// As for [`set_source`].
pub(super) unsafe fn set_segment(header: &mut libc::msghdr, size: u16) {
    // SAFETY: the caller's promise.
    unsafe { put(header, libc::SOL_UDP, UDP_SEGMENT, size) };
}

/// # Safety
/// As for [`set_source`].
unsafe fn put<T: Copy>(header: &mut libc::msghdr, level: i32, kind: i32, value: T) {
    let size = mem::size_of::<T>() as libc::c_uint;
    let used: usize = header.msg_controllen as _;
    // SAFETY: sizes are counted, nothing is read.
    let (space, len) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
    let end = used.saturating_add(space as usize);
    assert!(end <= Control::CAPACITY, "packet info, traffic class and size fit");
    // SAFETY: header and value end within `Control`, as was just checked. Each message begins where
    // CMSG_SPACE of the one before ends, aligned for a header; CMSG_DATA looks at nothing.
    unsafe {
        let message = header.msg_control.cast::<u8>().add(used).cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = len as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), value);
    }
    header.msg_controllen = end as _;
}

/// What the control messages of a received datagram say.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    /// the address that it was sent to
    pub(super) local: IpAddr,
    /// the interface that it came in on, 0 if not known
    pub(super) ifindex: u32,
    /// the traffic class, 0 if it was not asked for
    pub(super) class: u8,
    /// octets of each datagram but the last, where the kernel has put several together
    pub(super) segment: Option<usize>,
}

/// How a received datagram arrived; `None` without its destination address.
///
/// # Safety
/// `header` was filled by a successful receive and its control buffer still lives.
pub(super) unsafe fn arrival(header: &libc::msghdr) -> Option<Arrival> {
    let (mut destination, mut class, mut segment) = (None, 0, None);
    // SAFETY: the kernel wrote whole control messages within msg_controllen, and the CMSG
    // functions stay within it; a value is only read if its message is long enough.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = value(message)?;
                    let address = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
                    let ifindex = u32::try_from(info.ipi_ifindex).unwrap_or(0);
                    destination = Some((address.into(), ifindex));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = value(message)?;
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    destination = Some((address.into(), info.ipi6_ifindex));
                }
                // One octet here and an integer there.
                (libc::IPPROTO_IP, libc::IP_TOS) => class = value(message)?,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    class = value::<libc::c_int>(message)? as u8;
                }
                (libc::SOL_UDP, UDP_GRO) => {
                    let size = value::<libc::c_int>(message)?;
                    segment = usize::try_from(size).ok().filter(|size| *size > 0);
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    destination.map(|(local, ifindex)| Arrival { local, ifindex, class, segment })
}

/// The error in the control messages of an entry of an error queue.
///
/// # Safety
/// As for [`arrival`].
pub(super) unsafe fn error(header: &libc::msghdr) -> Option<libc::sock_extended_err> {
    // SAFETY: as in `arrival`.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if let (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) =
                ((*message).cmsg_level, (*message).cmsg_type)
            {
                return value(message);
            }
            message = libc::CMSG_NXTHDR(header, message);
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
