//! Opens the sockets and the data plane that the configuration asks for or the kernel allows.

use std::sync::Arc;

use bewick_xfrm::{
    DataPlane, Kind,
    auto::{self, Wanted},
    kernel::{self, KernelPlane},
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
    let decision = auto::choose(match config.dataplane {
        PlaneChoice::Auto => Wanted::Auto,
        PlaneChoice::Kernel => Wanted::Kernel,
        PlaneChoice::Userspace => Wanted::Userspace,
    });
    let (udp, ike) = UdpSockets::open(&UdpConfig { mark: Some(MARK), ..UdpConfig::default() })?;
    let (device, reason) = (config.device.clone(), decision.reason);
    let kernel = decision.kind == Kind::Kernel;
    let plane: Box<dyn DataPlane> = if kernel {
        let config = kernel::Config { device, mark: MARK, reason, ..kernel::Config::default() };
        let plane = KernelPlane::new(config)?;
        let failed = |e| RunError::System("hand ESP in UDP to the kernel", e);
        udp.set_kernel_encap(true).map_err(failed)?;
        Box::new(plane)
    } else {
        let config = UserspaceConfig { device, mtu: DEFAULT_MTU, reason };
        Box::new(UserspacePlane::new(config, udp.clone())?)
    };
    Ok(Opened { plane, udp, ike, force_encap: !kernel })
}
