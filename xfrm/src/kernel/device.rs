//! The dummy device that holds the virtual addresses and the inner routes (rtnetlink(7)).

use netlink_packet_core::Emitable;

use super::{
    message::{Request, attribute},
    socket::Socket,
};
use crate::plane::PlaneError;

const RTM_NEWLINK: u16 = libc::RTM_NEWLINK;
const RTM_DELLINK: u16 = libc::RTM_DELLINK;
const RTM_GETLINK: u16 = libc::RTM_GETLINK;
const IFLA_IFNAME: u16 = libc::IFLA_IFNAME;
const IFLA_LINKINFO: u16 = libc::IFLA_LINKINFO;
const IFLA_IFALIAS: u16 = libc::IFLA_IFALIAS;
/// `include/uapi/linux/if_link.h`
const IFLA_GSO_MAX_SIZE: u16 = 41;
const IFLA_INFO_KIND: u16 = 1;

/// By this alias we know a device that we have made, also after a crash.
const ALIAS: &str = "bewick data plane";

/// struct ifinfomsg with family, type, index and change mask 0, but for the flags.
struct LinkInfo {
    flags: u32,
}

impl Emitable for LinkInfo {
    fn buffer_len(&self) -> usize {
        16
    }

    fn emit(&self, buffer: &mut [u8]) {
        for at in [8, 12] {
            if let Some(field) = buffer.get_mut(at..at + 4) {
                field.copy_from_slice(&self.flags.to_ne_bytes());
            }
        }
    }
}

/// Makes the device `name` and sets it up. One that a former run has left is replaced.
pub(super) fn create(route: &mut Socket, name: &str) -> Result<(), PlaneError> {
    match alias(route, name)? {
        Link::Absent => {}
        Link::Present(alias) if alias == ALIAS => delete(route, name)?,
        Link::Present(_) => {
            return Err(PlaneError::Unsupported(format!(
                "a device {name} exists already and is not ours: set another name"
            )));
        }
    }
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    let kind = nested(IFLA_INFO_KIND, b"dummy");
    let request = Request::new(RTM_NEWLINK, flags, &LinkInfo { flags: libc::IFF_UP as u32 })
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]])
        .attribute(IFLA_LINKINFO, &[&kind]);
    route.request(&format!("making the device {name}"), request)?;
    // The alias is not taken from the message that makes a device.
    let alias = Request::new(RTM_NEWLINK, 0, &LinkInfo { flags: libc::IFF_UP as u32 })
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]])
        .attribute(IFLA_IFALIAS, &[ALIAS.as_bytes()]);
    route.request(&format!("marking the device {name} as ours"), alias).inspect_err(|_| {
        let _ = delete(route, name);
    })
}

/// Removes the device `name`; no error if it is gone already.
pub(super) fn delete(route: &mut Socket, name: &str) -> Result<(), PlaneError> {
    let request = Request::new(RTM_DELLINK, 0, &LinkInfo { flags: 0 })
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]]);
    match route.request(&format!("removing the device {name}"), request) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

/// Has the kernel make frames of at most so many octets for the device `name`, which cuts them itself.
pub(crate) fn limit_frames(name: &str, octets: u32) -> Result<(), PlaneError> {
    let request = Request::new(RTM_NEWLINK, 0, &LinkInfo { flags: 0 })
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]])
        .attribute(IFLA_GSO_MAX_SIZE, &[&octets.to_ne_bytes()]);
    let operation = format!("limiting the frames of {name} to {octets} octets");
    Socket::open(libc::NETLINK_ROUTE)?.request(&operation, request)
}

enum Link {
    Absent,
    Present(String),
}

fn alias(route: &mut Socket, name: &str) -> Result<Link, PlaneError> {
    let request = Request::new(RTM_GETLINK, 0, &LinkInfo { flags: 0 })
        .attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]]);
    let answer = route.ask(&format!("looking for a device {name}"), request, |kind, body| {
        let alias = || attribute(body, 16, IFLA_IFALIAS).unwrap_or_default();
        (kind == RTM_NEWLINK)
            .then(|| String::from_utf8_lossy(alias()).trim_end_matches('\0').to_owned())
    });
    match answer {
        Ok(alias) => Ok(Link::Present(alias)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(Link::Absent),
        Err(error) => Err(error),
    }
}

/// One attribute as octets, to be the value of another.
fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut octets = Vec::new();
    octets.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    octets.extend_from_slice(&kind.to_ne_bytes());
    octets.extend_from_slice(value);
    octets
}
