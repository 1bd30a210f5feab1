//! The TUN device that inner packets come from and go to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{
    offload::{VNET, Vnet},
    outbound::MAX_SEND,
};
use crate::{
    PlaneError,
    eager::{Eager, Wait},
};

/// What [`Device::read`] found.
pub(super) enum Read {
    /// so many octets of one inner packet, or of several in one piece, as the header says
    Frame(Vnet, usize),
    /// nothing for now
    Nothing,
    /// [`Device::stop`] was called
    Stopped,
}

/// Which packets of one flow a device takes in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merges {
    Nothing,
    Tcp,
    TcpAndUdp,
}

/// Where inner packets come from and go to: a TUN device, or a queue in tests.
pub(super) trait Device: Send + Sync {
    /// Reads one frame into `buffer`, and waits for it if `wait`.
    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<Read>;
    /// Delivers one frame: the octets of a [`Vnet`], and the packet in one piece or, where the header
    /// says that it is to be cut, in several. Never waits.
    fn write(&self, frame: &[IoSlice<'_>]) -> io::Result<()>;
    /// What may be delivered in one piece.
    fn merges(&self) -> Merges;
    /// Ends a waiting [`Device::read`] and all later ones.
    fn stop(&self);
}

/// `include/uapi/linux/if_tun.h`: what user space takes in one piece.
const TUN_F_CSUM: libc::c_ulong = 0x01;
/// with TUN_F_TSO_ECN
const TUN_F_TSO: libc::c_ulong = 0x02 | 0x04 | 0x08;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// A TUN device without packet information; it disappears when the last handle is dropped.
///
/// With segmentation offload a [`Vnet`] stands before each frame; kernels without it hand over and
/// take bare IP packets, one by one.
pub(super) struct Tun {
    file: File,
    /// whether a header stands before each frame
    vnet: bool,
    merges: Merges,
    stop: OwnedFd,
    eager: Eager,
}

impl Tun {
    /// Creates the device `name` with `mtu` octets and sets it up, with what segmentation offloads the
    /// kernel has: its `queues`, or one if it can't have several. A flow stays in one queue.
    pub(super) fn create(name: &str, mtu: u32, queues: usize) -> Result<Vec<Tun>, PlaneError> {
        let failed = |what: String| move |source| PlaneError::Io { operation: what, source };
        let request_name = interface_name(name).ok_or_else(|| {
            PlaneError::Unsupported(format!(
                "\"{name}\" can't be the name of a device: 1 to 15 letters, digits, '-', '_', '.'"
            ))
        })?;
        let attach = |file: &File, flags: libc::c_int| {
            let mut request = Request::new(request_name);
            request.set_flags(flags as libc::c_short);
            request.run(file.as_raw_fd(), libc::TUNSETIFF as _)
        };
        let first = open()?;
        let offload = |flags| set_offload(&first, flags);
        let outcome = negotiate(queues > 1, |flags| attach(&first, flags), offload);
        let Negotiated { flags, vnet, merges } = outcome.map_err(|source| PlaneError::Io {
            operation: match source.raw_os_error() {
                Some(libc::EBUSY | libc::EINVAL) => format!(
                    "creating TUN device {name} (another program may have it: `ip link show \
                     {name}`, or set another `device`)"
                ),
                _ => format!("creating TUN device {name}"),
            },
            source,
        })?;
        let mut files = vec![first];
        while flags & libc::IFF_MULTI_QUEUE != 0 && files.len() < queues {
            let file = open()?;
            // As many as there may be are enough.
            if let Err(error) = attach(&file, flags) {
                tracing::debug!(%error, queues = files.len(), "no further queue of the TUN device");
                break;
            }
            files.push(file);
        }

        // No link-local address: it would only send router solicitations into the tunnel. The file
        // is not there where IPv6 is not.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        configure(request_name, mtu)
            .map_err(failed(format!("setting up TUN device {name} with an MTU of {mtu}")))?;
        if merges != Merges::Nothing
            && !forwards()
            && let Some(octets) = largest_frame(mtu)
            && let Err(error) = crate::kernel::limit_frames(name, octets)
        {
            // Then some frames take two sends.
            tracing::debug!(%error, "the TUN device makes frames of any size");
        }
        let tun = |file| {
            let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(io::Error::from)
                .map_err(failed("creating an eventfd".into()))?;
            Ok(Tun { file, vnet, merges, stop, eager: Eager::default() })
        };
        files.into_iter().map(tun).collect()
    }

    /// Waits for a packet; false if it is time to stop.
    fn wait(&self) -> io::Result<bool> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(fds[1].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Device for Tun {
    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<Read> {
        let mut waiting: Option<Wait<'_>> = None;
        loop {
            let mut header = [0; VNET];
            let read = match self.vnet {
                true => (&self.file)
                    .read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])
                    .map(|len| len.saturating_sub(VNET)),
                false => (&self.file).read(buffer),
            };
            match read {
                Ok(len) => return Ok(Read::Frame(Vnet::parse(header), len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait {
                        return Ok(Read::Nothing);
                    }
                    let wait = waiting.get_or_insert_with(|| self.eager.wait());
                    if !wait.again() && !self.wait()? {
                        return Ok(Read::Stopped);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever does not wait may hold up others meanwhile.
                Err(error) if !wait => return Err(error),
                // The device is gone, and waiting for it returns at once: stopping still counts.
                Err(error) => return if self.wait()? { Err(error) } else { Ok(Read::Stopped) },
            }
        }
    }

    fn write(&self, frame: &[IoSlice<'_>]) -> io::Result<()> {
        let frame = if self.vnet { frame } else { frame.get(1..).unwrap_or_default() };
        (&self.file).write_vectored(frame).map(|_| ())
    }

    fn merges(&self) -> Merges {
        self.merges
    }

    fn stop(&self) {
        // Only a full counter can refuse, and then it is readable already.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }
}

fn open() -> Result<File, PlaneError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let file = file.map_err(|source| PlaneError::Io {
        operation: "opening /dev/net/tun (`modprobe tun`; in a container, pass the device in)"
            .into(),
        source,
    })?;
    set_nonblocking(file.as_raw_fd()).map_err(|source| PlaneError::Io {
        operation: "O_NONBLOCK on the TUN device".into(),
        source,
    })?;
    Ok(file)
}

/// Whether this machine forwards packets of others, which come in frames as large as they made them: the
/// kernel would cut those that are beyond the limit into single packets.
fn forwards() -> bool {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].iter().any(|setting| {
        let value = fs::read_to_string(format!("/proc/sys/net/{setting}"));
        value.is_ok_and(|value| value.trim() != "0")
    })
}

/// Octets of a frame at most, so that what it becomes fits into one send; `None` for an MTU that leaves
/// no room for headers.
fn largest_frame(mtu: u32) -> Option<u32> {
    // What ESP with an AEAD adds to a packet, and IPv6 and TCP with time stamps to its payload.
    let (around, headers) = (36, 72);
    let packets = MAX_SEND as u32 / (mtu + around);
    // The kernel leaves room for the largest headers that there may be.
    let spare = 400;
    Some(packets * mtu.checked_sub(headers).filter(|payload| *payload > spare)? + spare)
}

/// `name` as the kernel takes it; `None` if it is not a name for a device.
fn interface_name(name: &str) -> Option<[libc::c_char; libc::IFNAMSIZ]> {
    let ok = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if name.is_empty() || name == "." || name == ".." || !name.bytes().all(ok) {
        return None;
    }
    let mut out = [0; libc::IFNAMSIZ];
    let room = out.len().checked_sub(1)?;
    let place = out.get_mut(..room)?.get_mut(..name.len())?;
    for (to, from) in place.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(out)
}

/// Sets the MTU and brings the interface up.
fn configure(name: [libc::c_char; libc::IFNAMSIZ], mtu: u32) -> io::Result<()> {
    // SAFETY: no pointers are passed; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = Request::new(name);
    request.set_mtu(libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX));
    request.run(socket.as_raw_fd(), libc::SIOCSIFMTU as _)?;
    let mut request = Request::new(name);
    request.run(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _)?;
    request.set_flags(request.flags() | libc::IFF_UP as libc::c_short);
    request.run(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _)
}

/// An `ifreq`.
struct Request(libc::ifreq);

impl Request {
    fn new(name: [libc::c_char; libc::IFNAMSIZ]) -> Self {
        // SAFETY: ifreq is plain data for which all zero octets are valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_name = name;
        Request(request)
    }

    fn set_flags(&mut self, flags: libc::c_short) {
        self.0.ifr_ifru.ifru_flags = flags;
    }

    fn flags(&self) -> libc::c_short {
        // SAFETY: every bit pattern is a valid integer, and the whole union is initialised.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }

    fn set_mtu(&mut self, mtu: libc::c_int) {
        self.0.ifr_ifru.ifru_mtu = mtu;
    }

    fn run(&mut self, fd: RawFd, operation: libc::Ioctl) -> io::Result<()> {
        // SAFETY: the operations used here read and write one ifreq, which lives and is exclusive.
        let result = unsafe { libc::ioctl(fd, operation, &raw mut self.0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// What the kernel has of what was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Negotiated {
    /// that the device is attached with
    flags: libc::c_int,
    /// whether a header stands before each frame
    vnet: bool,
    merges: Merges,
}

/// Attaches to the device, with several queues if `multi`, and asks for segmentation offloads. The error
/// is that of attaching without any.
fn negotiate(
    multi: bool,
    mut attach: impl FnMut(libc::c_int) -> io::Result<()>,
    mut offload: impl FnMut(libc::c_ulong) -> io::Result<()>,
) -> io::Result<Negotiated> {
    let plain = libc::IFF_TUN | libc::IFF_NO_PI;
    let vnet = plain | libc::IFF_VNET_HDR;
    let queues = vnet | libc::IFF_MULTI_QUEUE;
    // Another program's device with several queues would take us in as one more.
    let flags = if multi && attach(queues | libc::IFF_TUN_EXCL).is_ok() {
        Some(queues)
    } else {
        attach(vnet).is_ok().then_some(vnet)
    };
    let Some(flags) = flags else {
        attach(plain)?;
        return Ok(Negotiated { flags: plain, vnet: false, merges: Merges::Nothing });
    };
    // Kernels before 6.2 know nothing of UDP in one piece.
    let levels = [(TUN_F_USO, Merges::TcpAndUdp), (0, Merges::Tcp)];
    let level = levels.into_iter().find(|(more, _)| offload(TUN_F_CSUM | TUN_F_TSO | more).is_ok());
    let merges = level.map_or(Merges::Nothing, |(_, merges)| merges);
    Ok(Negotiated { flags, vnet: true, merges })
}

/// Says what this program takes in one piece.
fn set_offload(file: &File, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the argument is a number, no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as _, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offload_that_the_kernel_refuses_is_done_without() {
        let no = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let plain = libc::IFF_TUN | libc::IFF_NO_PI;
        let outcome = |multi, attached: libc::c_int, offered: libc::c_ulong| {
            let mut tried = 0;
            let attach = |flags| if flags & !attached == 0 { Ok(()) } else { no() };
            let offload = |flags| {
                tried += 1;
                if flags & !offered == 0 { Ok(()) } else { no() }
            };
            let got = negotiate(multi, attach, offload).ok();
            (got.map(|got| (got.flags & !plain, got.merges)), tried)
        };
        let all = TUN_F_CSUM | TUN_F_TSO | TUN_F_USO;
        let (header, queues) = (libc::IFF_VNET_HDR, libc::IFF_MULTI_QUEUE);
        let mine = queues | libc::IFF_TUN_EXCL;
        let vnet = plain | header;
        for (multi, attached, flags) in [
            (false, vnet | mine, header),
            (true, vnet, header),
            (true, vnet | queues, header),
            (true, vnet | mine, header | queues),
        ] {
            let outcome = |offered| outcome(multi, attached, offered);
            assert_eq!(outcome(all), (Some((flags, Merges::TcpAndUdp)), 1));
            assert_eq!(outcome(all & !TUN_F_USO), (Some((flags, Merges::Tcp)), 2));
            assert_eq!(outcome(TUN_F_CSUM), (Some((flags, Merges::Nothing)), 2));
            assert_eq!(outcome(0), (Some((flags, Merges::Nothing)), 2));
        }
        // Without the header there is nothing that could say what a frame is made of.
        assert_eq!(outcome(true, plain | mine, all), (Some((0, Merges::Nothing)), 0));
        assert_eq!(outcome(true, 0, all), (None, 0));
    }

    #[test]
    fn what_the_largest_frame_becomes_fits_into_one_send() {
        for mtu in [1280, 1400, 1438, 1500, 9000] {
            let frame = largest_frame(mtu).unwrap();
            for headers in [40, 52, 60, 72] {
                // Linux, net/core/sock.c: as many whole packets as fit beside MAX_TCP_HEADER.
                let sent = (frame - 320) / (mtu - headers) * (mtu + 36);
                assert!(sent as usize <= MAX_SEND, "{mtu} {headers}: {sent}");
                assert!(sent > 50_000, "{mtu}: {sent}");
            }
        }
        assert_eq!(largest_frame(400), None);
    }

    #[test]
    fn bad_device_names_are_refused() {
        for name in ["", ".", "..", "a b", "a/b", "sixteen-letters-", "a%d"] {
            assert!(interface_name(name).is_none(), "{name}");
        }
        assert!(interface_name("bewick0").is_some());
        assert!(interface_name("fifteen-letters").is_some());
    }
}
