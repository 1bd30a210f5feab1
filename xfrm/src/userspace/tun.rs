//! The TUN device that inner packets come from and go to.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::PlaneError;

/// Where inner packets come from and go to: a TUN device, or a queue in tests.
pub(super) trait Device: Send + Sync {
    /// Waits for one inner packet and reads it into `buffer`; `None` once [`Device::stop`] is called.
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
    /// Delivers one inner packet; never waits.
    fn write(&self, packet: &[u8]) -> io::Result<()>;
    /// Ends a waiting [`Device::read`] and all later ones.
    fn stop(&self);
}

/// A TUN device without packet information; it disappears when the last handle is dropped.
///
/// Frames are bare IP packets. Segmentation offload would put a `virtio_net_hdr` before each: then
/// `read` and `write` are the places that know.
pub(super) struct Tun {
    file: File,
    stop: OwnedFd,
}

impl Tun {
    /// Creates the device `name` with `mtu` octets and sets it up.
    pub(super) fn create(name: &str, mtu: u32) -> Result<Tun, PlaneError> {
        let failed = |what: String| move |source| PlaneError::Io { operation: what, source };
        let request_name = interface_name(name).ok_or_else(|| {
            PlaneError::Unsupported(format!(
                "\"{name}\" can't be the name of a device: 1 to 15 letters, digits, '-', '_', '.'"
            ))
        })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(failed(open_remedy()))?;
        set_nonblocking(file.as_raw_fd()).map_err(failed("O_NONBLOCK on the TUN device".into()))?;

        let mut request = Request::new(request_name);
        request.set_flags((libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short);
        request.run(file.as_raw_fd(), libc::TUNSETIFF as _).map_err(|source| PlaneError::Io {
            operation: match source.raw_os_error() {
                Some(libc::EBUSY | libc::EINVAL) => format!(
                    "creating TUN device {name} (another program may have it: `ip link show \
                     {name}`, or set another `device`)"
                ),
                _ => format!("creating TUN device {name}"),
            },
            source,
        })?;

        // No link-local address: it would only send router solicitations into the tunnel. The file
        // is not there where IPv6 is not.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        configure(request_name, mtu)
            .map_err(failed(format!("setting up TUN device {name} with an MTU of {mtu}")))?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .map_err(failed("creating an eventfd".into()))?;
        Ok(Tun { file, stop })
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
    fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buffer) {
                Ok(len) => return Ok(Some(len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.wait()? {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The device is gone, and waiting for it returns at once: stopping still counts.
                Err(error) => return if self.wait()? { Err(error) } else { Ok(None) },
            }
        }
    }

    fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.file).write(packet).map(|_| ())
    }

    fn stop(&self) {
        // Only a full counter can refuse, and then it is readable already.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }
}

fn open_remedy() -> String {
    "opening /dev/net/tun (`modprobe tun`; in a container, pass the device in)".into()
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
    fn bad_device_names_are_refused() {
        for name in ["", ".", "..", "a b", "a/b", "sixteen-letters-", "a%d"] {
            assert!(interface_name(name).is_none(), "{name}");
        }
        assert!(interface_name("bewick0").is_some());
        assert!(interface_name("fifteen-letters").is_some());
    }
}
