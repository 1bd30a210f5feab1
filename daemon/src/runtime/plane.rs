//! Opens the sockets and the data plane that the configuration asks for or the kernel allows.

use std::sync::Arc;

use bewick_xfrm::{
    DataPlane, Kind,
    auto::{self, Wanted},
    kernel::{self, KernelPlane},
    tcp::TcpConfig,
    udp::{IkeDatagram, UdpConfig, UdpSockets},
    userspace::{DEFAULT_MTU, UserspaceConfig, UserspacePlane},
};
use tokio::sync::mpsc;

use super::RunError;
use crate::{
    config::{DaemonConfig, PlaneChoice},
    net::MARK,
};

/// Each has some megabytes of buffers and a queue of the device.
const MOST_WORKERS: usize = 8;

/// What carries the packets.
pub(super) struct Opened {
    pub(super) plane: Box<dyn DataPlane>,
    pub(super) udp: Arc<UdpSockets>,
    /// IKE messages from the network
    pub(super) ike: mpsc::Receiver<IkeDatagram>,
    /// the plane can do nothing but ESP in UDP
    pub(super) force_encap: bool,
}

/// Opens the sockets on ports 500 and 4500, those of `tcp` if it is used, and the plane.
pub(super) fn open(config: &DaemonConfig, tcp: Option<TcpConfig>) -> Result<Opened, RunError> {
    let mut decision = auto::choose(match config.dataplane {
        PlaneChoice::Auto if tcp.is_some() => Wanted::Userspace,
        PlaneChoice::Auto => Wanted::Auto,
        PlaneChoice::Kernel => Wanted::Kernel,
        PlaneChoice::Userspace => Wanted::Userspace,
    });
    if tcp.is_some() && config.dataplane == PlaneChoice::Auto {
        decision.reason = "TCP is configured, and the kernel's plane has no ESP in TCP".into();
    }
    let sockets = UdpConfig { mark: Some(MARK), tcp, ..UdpConfig::default() };
    let (device, mut reason) = (config.device.clone(), decision.reason);
    if decision.kind == Kind::Kernel {
        // Nobody but the kernel carries much.
        let (udp, ike) = UdpSockets::open(&sockets)?;
        match kernel_plane(device.clone(), reason, &udp) {
            Ok(plane) => return Ok(Opened { plane, udp, ike, force_encap: false }),
            // It may have got half way: with these sockets ESP would not come to us.
            Err(e) => reason = fall_back(config.dataplane, e)?,
        }
    }
    let workers = workers();
    let (udp, ike) = UdpSockets::open(&UdpConfig { receivers: workers, ..sockets })?;
    let config = UserspaceConfig { device, mtu: DEFAULT_MTU, workers, reason };
    let plane = Box::new(UserspacePlane::new(config, udp.clone())?);
    Ok(Opened { plane, udp, ike, force_encap: true })
}

/// Threads a direction: one for each processor, as far as more are of use.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |all| all.get().min(MOST_WORKERS))
}

fn kernel_plane(
    device: String,
    reason: String,
    udp: &UdpSockets,
) -> Result<Box<dyn DataPlane>, RunError> {
    let config = kernel::Config { device, mark: MARK, reason, ..kernel::Config::default() };
    let plane = KernelPlane::new(config).map_err(RunError::KernelPlane)?;
    let failed = |e| RunError::System("hand ESP in UDP to the kernel", e);
    udp.set_kernel_encap(true).map_err(failed)?;
    Ok(Box::new(plane))
}

/// Why userspace is taken although the kernel has ESP, or the end if it may not be.
fn fall_back(wanted: PlaneChoice, error: RunError) -> Result<String, RunError> {
    match wanted {
        PlaneChoice::Auto => Ok(format!("the kernel's can't be had ({error})")),
        PlaneChoice::Kernel | PlaneChoice::Userspace => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use bewick_xfrm::PlaneError;

    use super::*;

    #[test]
    fn only_where_the_choice_is_open_a_kernel_that_fails_means_userspace() {
        let error = || {
            RunError::KernelPlane(PlaneError::Unsupported("making the device bewick0: no".into()))
        };
        let reason = fall_back(PlaneChoice::Auto, error()).unwrap();
        assert!(reason.contains("making the device bewick0"), "{reason}");
        let error = fall_back(PlaneChoice::Kernel, error()).unwrap_err();
        assert!(error.remedy().unwrap().contains("dataplane"));
    }
}
