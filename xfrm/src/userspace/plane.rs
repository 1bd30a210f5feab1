//! The [`DataPlane`] of the userspace plane: owns the device, the outbound threads and the table.

use std::{
    future::ready,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use bewick_ike::{ChildId, ChildMove, ChildSa, Path};
use tokio::sync::mpsc;

use super::{
    flow::{Drops, Flow},
    tun::{Device, Tun},
};
use crate::{
    Answer, Counters, DataPlane, Description, Kind, MoveReport, PlaneError, PlaneEvent, Since,
    Trap, TrapId, udp::UdpSockets,
};

/// Fits into 1500 octets with any suite over IPv4 and IPv6.
pub const DEFAULT_MTU: u32 = 1400;

/// Events that wait for the daemon at most.
const EVENTS: usize = 256;

/// How to set up the userspace plane.
#[derive(Clone, Debug)]
pub struct UserspaceConfig {
    /// the name of the TUN device
    pub device: String,
    /// the MTU of the device, in octets
    pub mtu: u32,
    /// threads a direction, for as many flows at a time: no more than the sockets have receivers
    /// ([`crate::udp::UdpConfig::receivers`])
    pub workers: usize,
    /// why this plane was taken, in one sentence
    pub reason: String,
}

/// ESP in UDP in this process, over a TUN device.
///
/// It knows nothing of ESP without UDP: CHILD_SAs need `encap` and the NAT port on our side. The
/// outer packet has the DSCP and the ECN field of the inner one (RFC 4301 §5.1.2, RFC 6040 §4.1), as
/// in the kernel's plane.
/// Addresses and routes on the device are the daemon's to set.
pub struct UserspacePlane {
    config: UserspaceConfig,
    udp: Arc<UdpSockets>,
    flow: Arc<Flow>,
    outbound: Vec<JoinHandle<()>>,
    events: Option<mpsc::Receiver<PlaneEvent>>,
}

impl UserspacePlane {
    /// Creates the device and takes over ESP from `udp`; errors name what the system refused and a
    /// remedy.
    pub fn new(config: UserspaceConfig, udp: Arc<UdpSockets>) -> Result<Self, PlaneError> {
        let queues = Tun::create(&config.device, config.mtu, config.workers.max(1))?;
        let queues = queues.into_iter().map(|queue| Arc::new(queue) as Arc<dyn Device>).collect();
        UserspacePlane::with_queues(config, udp, queues)
    }

    pub(super) fn with_queues(
        config: UserspaceConfig,
        udp: Arc<UdpSockets>,
        queues: Vec<Arc<dyn Device>>,
    ) -> Result<Self, PlaneError> {
        let (sender, events) = mpsc::channel(EVENTS);
        let flow = Arc::new(Flow::new(queues.clone(), sender));
        let mut plane =
            UserspacePlane { config, udp, flow, outbound: Vec::new(), events: Some(events) };
        for (lane, queue) in queues.into_iter().enumerate() {
            let (flow, udp) = (plane.flow.clone(), plane.udp.clone());
            let thread = thread::Builder::new()
                .name(format!("esp-out.{lane}"))
                .spawn(move || flow.run_outbound(&*queue, &udp));
            plane.outbound.push(thread.map_err(|source| PlaneError::Io {
                operation: "starting a thread".into(),
                source,
            })?);
        }
        plane.udp.set_esp_sink(Some(plane.flow.clone()));
        Ok(plane)
    }

    /// Packets dropped that no CHILD_SA's counters show.
    pub fn drops(&self) -> Drops {
        self.flow.drops()
    }

    #[cfg(test)]
    pub(super) fn sink(&self) -> &dyn crate::udp::EspSink {
        &*self.flow
    }

    #[cfg(test)]
    pub(super) fn is_replay_free(&self, id: ChildId) -> bool {
        self.flow.table.load().child(id).unwrap().sa.is_replay_free()
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&self, id: ChildId, sequence: u64) {
        self.flow.table.load().child(id).unwrap().sa.set_sequence(sequence);
    }

    fn check(&self, path: &Path, encap: bool) -> Result<(), PlaneError> {
        if path.is_tcp() {
            return Ok(());
        }
        let nat_port = self.udp.nat_port();
        if !encap {
            return Err(PlaneError::Unsupported(
                "the userspace data plane carries ESP in UDP only: the CHILD_SA has to use UDP \
                 encapsulation"
                    .into(),
            ));
        }
        if path.local.port() != nat_port {
            return Err(PlaneError::Unsupported(format!(
                "the userspace data plane sends ESP from port {nat_port}, not from port {}",
                path.local.port()
            )));
        }
        Ok(())
    }

    fn install_now(&self, sa: &ChildSa) -> Result<(), PlaneError> {
        self.check(&sa.path, sa.encap)?;
        self.flow.table.store(self.flow.table.load().with(sa)?);
        self.flow.let_in(sa.spi_in);
        self.flow.send_held(&self.udp);
        Ok(())
    }

    fn move_now(&self, moves: &[ChildMove]) -> Result<MoveReport, PlaneError> {
        let start = Instant::now();
        for step in moves {
            self.check(&step.path, step.encap)?;
        }
        self.flow.table.store(self.flow.table.load().moved(moves)?);
        Ok(MoveReport { took: start.elapsed(), ..MoveReport::default() })
    }

    fn stop(&mut self) {
        self.udp.set_esp_sink(None);
        self.flow.queues.iter().for_each(|queue| queue.stop());
        for thread in self.outbound.drain(..) {
            let _ = thread.join();
        }
        self.flow.traps.clear_all();
        self.flow.table.store(Default::default());
    }
}

impl DataPlane for UserspacePlane {
    fn describe(&self) -> Description {
        Description {
            kind: Kind::Userspace,
            reason: self.config.reason.clone(),
            move_method: "swap",
        }
    }

    fn device(&self) -> &str {
        &self.config.device
    }

    fn needs_encap(&self) -> bool {
        true
    }

    fn install<'a>(&'a mut self, sa: &'a ChildSa) -> Answer<'a, ()> {
        Box::pin(ready(self.install_now(sa)))
    }

    fn move_children<'a>(&'a mut self, moves: &'a [ChildMove]) -> Answer<'a, MoveReport> {
        Box::pin(ready(self.move_now(moves)))
    }

    fn remove(&mut self, id: ChildId) -> Answer<'_, ()> {
        self.flow.table.store(self.flow.table.load().without(id));
        self.flow.events.forget(id);
        Box::pin(ready(Ok(())))
    }

    fn retire<'a>(&'a mut self, ids: &'a [ChildId]) -> Answer<'a, ()> {
        self.flow.table.store(self.flow.table.load().retired(ids));
        Box::pin(ready(Ok(())))
    }

    fn set_trap<'a>(&'a mut self, trap: &'a Trap) -> Answer<'a, ()> {
        self.flow.traps.set(trap);
        Box::pin(ready(Ok(())))
    }

    fn clear_trap(&mut self, id: TrapId) -> Answer<'_, ()> {
        self.flow.traps.clear(id);
        Box::pin(ready(Ok(())))
    }

    fn counters(&mut self, id: ChildId) -> Answer<'_, Counters> {
        let table = self.flow.table.load();
        let slot = table.child(id).ok_or(PlaneError::UnknownChild(id));
        Box::pin(ready(slot.map(|slot| slot.sa.counters())))
    }

    fn can_cap(&self) -> bool {
        true
    }

    fn cap(&mut self, ids: &[ChildId], on: bool) {
        let table = self.flow.table.load();
        for slot in ids.iter().filter_map(|id| table.child(*id)) {
            slot.sa.cap(on);
        }
    }

    fn mark(&mut self, id: ChildId) {
        if let Some(slot) = self.flow.table.load().child(id) {
            slot.sa.mark();
        }
    }

    fn since_mark(&mut self, id: ChildId) -> Option<Since> {
        self.flow.table.load().child(id)?.sa.since_mark()
    }

    fn take_events(&mut self) -> Option<mpsc::Receiver<PlaneEvent>> {
        self.events.take()
    }

    fn path(&self, id: ChildId) -> Option<Path> {
        self.flow.table.load().child(id).map(|slot| slot.path)
    }

    fn shutdown(&mut self) -> Answer<'_, ()> {
        self.stop();
        Box::pin(ready(Ok(())))
    }
}

impl Drop for UserspacePlane {
    fn drop(&mut self) {
        self.stop();
    }
}
