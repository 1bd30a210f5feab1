//! Opens the sockets and the data plane that the configuration asks for or the kernel allows.

use std::sync::Arc;

use bewick_xfrm::{
    DataPlane,
    udp::{IkeDatagram, UdpConfig, UdpSockets},
    userspace::{DEFAULT_MTU, UserspaceConfig, UserspacePlane},
};
use tokio::sync::mpsc;

use super::RunError;
use crate::{
    config::{DaemonConfig, PlaneChoice},
    net::MARK,
};

/// What carries the packets.
pub(super) struct Opened {
    pub(super) plane: Box<dyn DataPlane>,
    pub(super) udp: Arc<UdpSockets>,
    /// IKE messages from the network
    pub(super) ike: mpsc::Receiver<IkeDatagram>,
    /// the plane can do nothing but ESP in UDP
    pub(super) force_encap: bool,
}

/// Opens the sockets on ports 500 and 4500, and the plane.
pub(super) fn open(config: &DaemonConfig) -> Result<Opened, RunError> {
    let reason = match config.dataplane {
        PlaneChoice::Userspace => "the configuration says so",
        PlaneChoice::Auto | PlaneChoice::Kernel => "the kernel's is not there yet",
    };
    let (udp, ike) = UdpSockets::open(&UdpConfig { mark: Some(MARK), ..UdpConfig::default() })?;
    let plane = UserspacePlane::new(
        UserspaceConfig { device: config.device.clone(), mtu: DEFAULT_MTU, reason: reason.into() },
        udp.clone(),
    )?;
    Ok(Opened { plane: Box::new(plane), udp, ike, force_encap: true })
}
