//! Connections that wait for packets: the data plane catches the first one for each of their CHILD_SAs and
//! tells of it, and what is missing is made (RFC 4301 §5.1, step 3b).
//!
//! A trap that has told of a packet is silent until it is set again. That is done when its CHILD_SA
//! stands, or some time after it could not be made: however many packets come meanwhile, they lead to one
//! try, and a peer that is not there is asked ever less often.

use std::time::Duration;

use bewick_ike::{
    Asked, ConnectionId, Packet, Role, SaId, Time, TrafficSelector, endpoint::SaStatus,
};

use super::{CommandError, Host, Output};
use crate::event::Event;

/// After a try that failed no packet is heeded for this time, twice as long after each further one, and no
/// longer than the second.
const HOLD_OFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// The least time between two tries for one CHILD_SA. It doubles with each one that did not last, up to
/// the longest hold-off: the peer takes it and deletes it at once, or somebody else with our identity has
/// the peer do so.
const BETWEEN: Duration = Duration::from_secs(1);

/// A CHILD_SA that has stood for so long has lasted.
const LASTS: Duration = Duration::from_secs(10);

/// One CHILD_SA of a connection that waits for packets.
#[derive(Debug, Default)]
pub(super) struct Trap {
    /// the packet that it is being made for
    packet: Option<Packet>,
    /// the IKE_SA that was told to make it
    told: Option<SaId>,
    /// the last try
    tried: Option<Time>,
    /// tries in a row that came to nothing
    failures: u32,
    /// since when what the last try has made stands
    stood: Option<Time>,
    /// what earlier tries in a row have made, and did not last
    brief: u32,
    /// when it is set again
    again_at: Option<Time>,
    /// a packet that came a moment too soon: it is tried for by then, as it may still wait
    early: Option<Packet>,
}

impl Trap {
    /// The least time between the last try and the next.
    fn between(&self) -> Duration {
        BETWEEN.saturating_mul(1 << self.brief.saturating_sub(1).min(6)).min(HOLD_OFF.1)
    }
}

impl Host {
    /// Waits for packets for each CHILD_SA of the connection.
    pub(super) fn trap(&mut self, connection: ConnectionId) -> Result<(), CommandError> {
        let config = self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        if config.role != Role::Initiator {
            return Err(CommandError::NotInitiator);
        }
        for child in 0..config.children().count() {
            self.traps.entry((connection, child)).or_insert_with(|| {
                self.outputs.push_back(Output::SetTrap { connection, child });
                Trap::default()
            });
        }
        Ok(())
    }

    /// Waits for none any more.
    pub(super) fn untrap(&mut self, connection: ConnectionId) {
        self.traps.retain(|(of, child), _| {
            if *of == connection {
                self.outputs.push_back(Output::ClearTrap { connection, child: *child });
            }
            *of != connection
        });
    }

    /// Whether the connection waits for packets.
    pub fn is_trapped(&self, connection: ConnectionId) -> bool {
        self.traps.keys().any(|(of, _)| *of == connection)
    }

    /// A packet has been caught.
    pub(super) fn on_acquire(
        &mut self,
        now: Time,
        connection: ConnectionId,
        child: usize,
        packet: Packet,
    ) {
        let Some(trap) = self.traps.get(&(connection, child)) else { return };
        if trap.packet.is_some() || trap.again_at.is_some() {
            return;
        }
        let none = self.of_connection(connection).is_empty();
        // The last IKE_SA is still going.
        let going = none && self.wanted.get(&connection).is_some_and(|w| w.current.is_some());
        let carried = self.carries(connection, child, &packet);
        let Some(trap) = self.traps.get_mut(&(connection, child)) else { return };
        match carried {
            // It was on its way when the last of what it asks for came.
            Some(true) => {
                trap.again_at = Some(now + BETWEEN);
                return;
            }
            // The peer has agreed to less than is configured.
            Some(false) => {
                let after = HOLD_OFF.1;
                trap.again_at = Some(now + after);
                self.event(Event::HeldOff { connection, child, after });
                return;
            }
            None => {}
        }
        if let Some(since) = trap.stood.take() {
            trap.brief = if now.since(since) < LASTS { trap.brief.saturating_add(1) } else { 0 };
        }
        let between = trap.between();
        let just_now = trap.tried.filter(|tried| now.since(*tried) < between);
        if just_now.is_some() || going {
            let at = just_now.unwrap_or(now) + between;
            trap.again_at = Some(at);
            trap.early = (between == BETWEEN).then_some(packet);
            if between > BETWEEN {
                let after = at.since(now);
                self.event(Event::HeldOff { connection, child, after });
            }
            return;
        }
        (trap.packet, trap.told, trap.tried) = (Some(packet), None, Some(now));
        self.event(Event::Wanted { connection, child, packet });
        if none {
            self.bring_up(connection, false);
        }
    }

    /// The CHILD_SAs that a new IKE_SA of this connection is to begin with; none for all.
    pub(super) fn asked(&self, connection: ConnectionId) -> Vec<Asked> {
        let whole = self.wanted.get(&connection).is_some_and(|wanted| wanted.whole);
        if whole || !self.movers.policy(connection).trap {
            return Vec::new();
        }
        let traps = self.traps.iter().filter(|((of, _), _)| *of == connection);
        let mut asked: Vec<(Option<Time>, Asked)> = traps
            .filter_map(|((_, config), trap)| {
                let packet = Some(trap.packet?);
                Some((trap.tried, Asked { config: *config, packet }))
            })
            .collect();
        asked.sort_by_key(|(tried, _)| *tried);
        // One that takes another's place has what that one has.
        let current = self.wanted.get(&connection).and_then(|wanted| wanted.current);
        let has = current.and_then(|id| self.ike.sa(id)).into_iter().flat_map(|sa| sa.children);
        let mut all: Vec<Asked> = Vec::new();
        for one in has.map(|c| Asked::anyhow(c.config)).chain(asked.into_iter().map(|a| a.1)) {
            if !all.iter().any(|other| other.config == one.config) {
                all.push(one);
            }
        }
        all
    }

    /// Has the CHILD_SAs that packets wait for made where there is an IKE_SA, and sets the traps again whose
    /// CHILD_SA stands, or can't be had now. Whether an IKE_SA was told to do something.
    pub(super) fn look_after_traps(&mut self, now: Time) -> bool {
        let waiting = self.traps.iter().filter(|(_, trap)| trap.packet.is_some());
        let waiting: Vec<(ConnectionId, usize)> = waiting.map(|(key, _)| *key).collect();
        let mut told_one = false;
        for key in waiting {
            told_one |= self.look_after(now, key);
        }
        told_one
    }

    fn look_after(&mut self, now: Time, (connection, child): (ConnectionId, usize)) -> bool {
        let all = self.of_connection(connection);
        let stands = |sa: &SaStatus<'_>| {
            sa.state == "established" && sa.children.iter().any(|c| c.config == child)
        };
        let any = |is: &dyn Fn(&SaStatus<'_>) -> bool| {
            all.iter().copied().find(|id| self.ike.sa(*id).is_some_and(|sa| is(&sa)))
        };
        let done = any(&stands).is_some();
        let up = any(&|sa| sa.state == "established");
        let making = all.iter().any(|id| self.ike.is_making(*id, child));
        let begins =
            all.iter().any(|id| self.ike.sa(*id).is_some_and(|sa| sa.state == "connecting"));
        let wanted = self.wanted.get(&connection).is_some_and(|wanted| wanted.up);
        let Some(trap) = self.traps.get_mut(&(connection, child)) else { return false };
        let Some(packet) = trap.packet else { return false };
        if done {
            (trap.packet, trap.told, trap.failures) = (None, None, 0);
            trap.stood = Some(now);
            self.outputs.push_back(Output::SetTrap { connection, child });
            return false;
        }
        match up {
            _ if making => false,
            Some(id) if trap.told != Some(id) => {
                trap.told = Some(id);
                let asked = Asked { config: child, packet: Some(packet) };
                self.ike.make_child(now, id, asked, &mut self.movers);
                true
            }
            // It waits for an address, a name or its next try.
            None if begins || wanted => false,
            _ => {
                let after = HOLD_OFF.0.saturating_mul(1 << trap.failures.min(6)).min(HOLD_OFF.1);
                (trap.packet, trap.told) = (None, None);
                trap.failures = trap.failures.saturating_add(1);
                trap.again_at = Some(now + after);
                self.event(Event::HeldOff { connection, child, after });
                false
            }
        }
    }

    /// The data plane can't catch packets for this CHILD_SA: it is asked again later.
    pub(super) fn on_untrapped(&mut self, now: Time, connection: ConnectionId, child: usize) {
        if let Some(trap) = self.traps.get_mut(&(connection, child)) {
            trap.again_at = Some(now + HOLD_OFF.1);
        }
    }

    /// Sets again what is due.
    pub(super) fn on_trap_timeout(&mut self, now: Time) {
        let mut early = Vec::new();
        for ((connection, child), trap) in &mut self.traps {
            if trap.again_at.is_some_and(|at| at <= now) {
                trap.again_at = None;
                let (connection, child) = (*connection, *child);
                match trap.early.take() {
                    Some(packet) => early.push((connection, child, packet)),
                    None => self.outputs.push_back(Output::SetTrap { connection, child }),
                }
            }
        }
        for (connection, child, packet) in early {
            self.on_acquire(now, connection, child, packet);
        }
    }

    /// When the next trap is to be set again.
    pub(super) fn next_trap(&self) -> Option<Time> {
        self.traps.values().filter_map(|trap| trap.again_at).min()
    }

    /// Makes what the connection has not yet, packets or not.
    pub(super) fn complete(&mut self, now: Time, connection: ConnectionId) {
        let count = self.ike.connection(connection).map_or(0, |c| c.children().count());
        for id in self.of_connection(connection) {
            let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { continue };
            let has: Vec<usize> = sa.children.iter().map(|child| child.config).collect();
            for config in (0..count).filter(|config| !has.contains(config)) {
                if !self.ike.is_making(id, config) {
                    self.ike.make_child(now, id, Asked::anyhow(config), &mut self.movers);
                }
            }
        }
    }

    /// Whether the CHILD_SA that stands carries this packet; `None` if there is none.
    fn carries(&self, connection: ConnectionId, child: usize, packet: &Packet) -> Option<bool> {
        let all = self.of_connection(connection).into_iter().filter_map(|id| self.ike.sa(id));
        let up = all.filter(|sa| sa.state == "established").flat_map(|sa| sa.children);
        let within = |one: &TrafficSelector, all: &[TrafficSelector]| {
            all.iter().any(|ts| one.is_subset_of(ts))
        };
        up.filter(|stands| stands.config == child)
            .map(|stands| {
                within(&packet.local, &stands.ts_local) && within(&packet.remote, &stands.ts_remote)
            })
            .reduce(|one, other| one || other)
    }

    /// The IKE_SAs of ours that are not going.
    fn of_connection(&self, connection: ConnectionId) -> Vec<SaId> {
        self.ids(|sa| {
            sa.connection == Some(connection)
                && sa.role == Role::Initiator
                && matches!(sa.state, "connecting" | "established")
        })
    }
}
