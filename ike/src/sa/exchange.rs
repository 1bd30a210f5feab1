//! Message IDs, windows, retransmission and the response cache (RFC 7296 §2.1 to §2.3).
//!
//! Retransmission belongs to the exchange, the path to send it on does not: a request in flight goes
//! on with the same bytes wherever the IKE_SA goes (RFC 4555 §3.5).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use crate::{
    config::Retransmission,
    event::Tag,
    path::Path,
    time::Time,
    wire::{ExchangeType, Notify, NotifyType, Payload},
};

/// No window is bigger, whatever the peer or the operator says: each place keeps a response.
pub(crate) const MOST_WINDOW: u32 = 16;

/// How many requests the peer says that it takes at once (RFC 7296 §2.3).
pub(crate) fn window_of(payloads: &[Payload]) -> Option<u32> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == NotifyType::SET_WINDOW_SIZE => {
            n.data.as_slice().try_into().ok().map(u32::from_be_bytes).filter(|size| *size > 0)
        }
        _ => None,
    })
}

/// SET_WINDOW_SIZE, if ours is not the default of 1 (RFC 7296 §2.3).
pub(crate) fn announce_window(window: u32) -> Option<Payload> {
    let window = window.min(MOST_WINDOW);
    let notify = || Notify::new(NotifyType::SET_WINDOW_SIZE, window.to_be_bytes());
    (window > 1).then(|| Payload::Notify(notify()))
}

/// Our request that awaits its response.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) message_id: u32,
    pub(crate) exchange: ExchangeType,
    /// the message, or its fragments (RFC 7383)
    pub(crate) datagrams: Vec<Vec<u8>>,
    pub(crate) tag: Option<Tag>,
    pub(crate) tries: u32,
    /// of these, how many in the fragments that it is in now
    pub(crate) tries_in_size: u32,
    /// when it was sent first
    pub(crate) sent: Time,
    /// it was sent there and not on the current path; without an answer it goes on there
    pub(crate) astray: Option<Path>,
    /// where it has gone, and whether elsewhere too: then its answer does not show which copy arrived
    /// (RFC 4555 §3.7)
    went: Option<Path>,
    pub(crate) scattered: bool,
    interval: Duration,
    due: Time,
    give_up: Time,
}

/// Requests that we send.
#[derive(Debug)]
pub(crate) struct Outgoing {
    next_id: u32,
    /// how many the peer takes at once (RFC 7296 §2.3)
    window: u32,
    /// by Message ID
    outstanding: Vec<Outstanding>,
    /// the last ones that were answered: copies on other paths may be answered too
    answered: VecDeque<(u32, ExchangeType)>,
}

/// So many requests are remembered after their answer.
const MOST_ANSWERED: usize = 4;

impl Default for Outgoing {
    fn default() -> Self {
        Outgoing { next_id: 0, window: 1, outstanding: Vec::new(), answered: VecDeque::new() }
    }
}

/// What the retransmission timer asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Retransmit {
    /// send the same bytes of these requests again; the most often that one has been sent by now
    Again {
        /// their Message IDs
        ids: Vec<u32>,
        /// transmissions on the current path, the first included; 0 if none is a repetition there
        tries: u32,
    },
    /// the peer has not answered for too long
    GiveUp,
    /// nothing is due
    Idle,
}

impl Outgoing {
    /// The Message ID of the next request; the IKE_SA_INIT has 0 (RFC 7296 §2.2).
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Whether a request may be sent now: it and the oldest one that is not answered are within the
    /// peer's window (RFC 7296 §2.3), and Message IDs are left (§2.2).
    pub(crate) fn is_open(&self) -> bool {
        let oldest = self.outstanding.first().map_or(self.next_id, |out| out.message_id);
        self.next_id - oldest < self.window && self.next_id != u32::MAX
    }

    /// Whether every request has been answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The peer takes that many requests at once; fewer than it said before is not a thing
    /// (RFC 7296 §2.3).
    pub(crate) fn widen(&mut self, window: u32) {
        self.window = self.window.max(window.min(MOST_WINDOW));
    }

    pub(crate) fn outstanding(&self) -> &[Outstanding] {
        &self.outstanding
    }

    pub(crate) fn find(&self, message_id: u32, exchange: ExchangeType) -> Option<&Outstanding> {
        self.outstanding.iter().find(|out| out.message_id == message_id && out.exchange == exchange)
    }

    /// Records the request with [`Self::next_id`].
    pub(crate) fn start(
        &mut self,
        now: Time,
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
        tag: Option<Tag>,
        policy: &Retransmission,
        give_up: Duration,
    ) {
        self.outstanding.push(Outstanding {
            message_id: self.next_id,
            exchange,
            datagrams,
            tag,
            tries: 1,
            tries_in_size: 1,
            sent: now,
            astray: None,
            went: None,
            scattered: false,
            interval: policy.first,
            due: now + policy.first,
            give_up: now + give_up,
        });
        self.next_id += 1;
    }

    /// Starts the IKE_SA_INIT anew with Message ID 0, as COOKIE and INVALID_KE_PAYLOAD ask
    /// (RFC 7296 §2.6, §1.2).
    pub(crate) fn restart(&mut self) {
        *self = Outgoing::default();
    }

    /// When [`Self::on_timer`] is to be called next.
    pub(crate) fn due(&self) -> Option<Time> {
        self.outstanding.iter().map(|out| out.due.min(out.give_up)).min()
    }

    /// The retransmission timer went off. On a path that is `reliable` only what went elsewhere first is
    /// sent; the rest waits, and its waiting is counted as its repetitions are (RFC 9329 §6.2).
    pub(crate) fn on_timer(
        &mut self,
        now: Time,
        policy: &Retransmission,
        reliable: bool,
    ) -> Retransmit {
        if self.outstanding.iter().any(|out| now >= out.give_up) {
            return Retransmit::GiveUp;
        }
        let (mut ids, mut most) = (Vec::new(), 0);
        for out in self.outstanding.iter_mut().filter(|out| now >= out.due) {
            if out.astray.take().is_some() {
                (out.tries, out.tries_in_size, out.due) = (1, 1, now + out.interval);
                ids.push(out.message_id);
                continue;
            }
            out.tries += 1;
            out.tries_in_size += 1;
            out.interval = (out.interval * policy.factor_percent / 100).min(policy.longest);
            out.due = now + out.interval;
            if !reliable {
                ids.push(out.message_id);
            }
            most = most.max(out.tries);
        }
        match ids.is_empty() && most == 0 {
            true => Retransmit::Idle,
            false => Retransmit::Again { ids, tries: most },
        }
    }

    /// Starts the back-off anew, as after a change of address, and the time after which the peer is
    /// given up too: on the new path it has had none yet.
    pub(crate) fn hasten(&mut self, now: Time, policy: &Retransmission, give_up: Duration) {
        for out in &mut self.outstanding {
            (out.tries, out.tries_in_size, out.sent, out.astray) = (1, 1, now, None);
            out.interval = policy.first;
            out.due = now + out.interval;
            out.give_up = now + give_up;
        }
    }

    /// Goes on with the same message in other fragments, and with the shortest wait: nobody has had the
    /// time to answer these (RFC 7383 §2.5.2). The time of giving up stays.
    pub(crate) fn recut(
        &mut self,
        message_id: u32,
        datagrams: Vec<Vec<u8>>,
        policy: &Retransmission,
    ) {
        if let Some(out) = self.outstanding.iter_mut().find(|out| out.message_id == message_id) {
            out.datagrams = datagrams;
            out.tries_in_size = 0;
            out.interval = policy.first * 100 / policy.factor_percent.max(1);
        }
    }

    /// Gives up sooner than planned.
    pub(crate) fn limit(&mut self, give_up: Time) {
        for out in &mut self.outstanding {
            out.give_up = out.give_up.min(give_up);
        }
    }

    /// Sends again no later than then.
    pub(crate) fn hurry(&mut self, due: Time) {
        for out in &mut self.outstanding {
            out.due = out.due.min(due);
        }
    }

    /// Takes the outstanding request if a response with this Message ID and exchange type is its own.
    pub(crate) fn take(&mut self, message_id: u32, exchange: ExchangeType) -> Option<Outstanding> {
        let fits = |out: &Outstanding| out.message_id == message_id && out.exchange == exchange;
        let at = self.outstanding.iter().position(fits)?;
        if self.answered.len() == MOST_ANSWERED {
            self.answered.pop_front();
        }
        self.answered.push_back((message_id, exchange));
        Some(self.outstanding.remove(at))
    }

    /// Whether that request was answered a short while ago.
    pub(crate) fn was_answered(&self, message_id: u32, exchange: ExchangeType) -> bool {
        self.answered.contains(&(message_id, exchange))
    }

    /// What goes out on `path` now, of the requests that `which` chooses.
    pub(crate) fn send(
        &mut self,
        path: Path,
        which: impl Fn(&Outstanding) -> bool,
    ) -> impl Iterator<Item = &[Vec<u8>]> {
        self.outstanding.iter_mut().filter(move |out| which(out)).map(move |out| {
            out.scattered |= *out.went.get_or_insert(path) != path;
            out.datagrams.as_slice()
        })
    }

    /// The request with this Message ID goes to another path first.
    pub(crate) fn lead_astray(&mut self, message_id: u32, path: Path) {
        if let Some(out) = self.outstanding.iter_mut().find(|out| out.message_id == message_id) {
            out.astray = Some(path);
        }
    }

    /// Takes every request that will not be answered any more.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Outstanding> {
        std::mem::take(&mut self.outstanding).into_iter()
    }
}

/// Requests that the peer sends.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// every request below has arrived
    next_id: u32,
    /// how many requests we take at once
    window: u32,
    /// requests that have arrived, with the response once there is one; those that the peer may still
    /// ask for again
    arrived: BTreeMap<u32, Option<Vec<Vec<u8>>>>,
}

impl Default for Incoming {
    fn default() -> Self {
        Incoming { next_id: 0, window: 1, arrived: BTreeMap::new() }
    }
}

/// What an arriving request is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<'a> {
    /// one that is due
    New,
    /// one again: send this, and do nothing else (RFC 7296 §2.1)
    Answered(&'a [Vec<u8>]),
    /// one again whose response is not ready yet
    Pending,
    /// outside the window (RFC 7296 §2.3)
    OutOfWindow,
}

impl Incoming {
    /// We have said SET_WINDOW_SIZE.
    pub(crate) fn widen(&mut self, window: u32) {
        self.window = self.window.max(window.min(MOST_WINDOW));
    }

    /// What a request with this Message ID is. Says nothing about whether it is genuine.
    pub(crate) fn arrival(&self, message_id: u32) -> Arrival<'_> {
        match self.arrived.get(&message_id) {
            Some(None) => return Arrival::Pending,
            Some(Some(datagrams)) => return Arrival::Answered(datagrams),
            None => {}
        }
        // A peer that keeps to the window has the response to all that is further back.
        let unanswered = self.arrived.iter().find(|(_, response)| response.is_none());
        let oldest = unanswered.map_or(self.next_id, |(id, _)| self.next_id.min(*id));
        let due = message_id >= self.next_id && message_id - oldest < self.window;
        if due { Arrival::New } else { Arrival::OutOfWindow }
    }

    /// The genuine request with this Message ID is being worked on.
    pub(crate) fn begin(&mut self, message_id: u32) {
        self.arrived.insert(message_id, None);
        while self.next_id != u32::MAX && self.arrived.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        // Who sends this one has the responses to those that are a window away.
        let newest = self.arrived.last_key_value().map_or(0, |(id, _)| *id);
        let window = self.window;
        self.arrived.retain(|id, response| response.is_none() || newest - *id < window);
    }

    /// Its response, kept for as long as the peer may ask again.
    pub(crate) fn finish(&mut self, message_id: u32, response: Vec<Vec<u8>>) {
        if let Some(place) = self.arrived.get_mut(&message_id) {
            *place = Some(response);
        }
    }

    /// Keeps a response in smaller fragments from now on (RFC 7383 §2.5.2).
    pub(crate) fn recut(&mut self, message_id: u32, response: Vec<Vec<u8>>) {
        if let Some(Some(datagrams)) = self.arrived.get_mut(&message_id) {
            *datagrams = response;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(out: &mut Outgoing, now: Time) -> Time {
        let policy = Retransmission::default();
        out.start(now, ExchangeType::INFORMATIONAL, vec![vec![1]], None, &policy, policy.give_up);
        out.due().unwrap()
    }

    #[test]
    fn k_2_1_1_retransmissions_back_off_until_the_peer_is_given_up() {
        let policy = Retransmission::default();
        let mut out = Outgoing::default();
        let mut due = start(&mut out, Time::ZERO);
        let mut waits = vec![due.since(Time::ZERO)];
        loop {
            match out.on_timer(due, &policy, false) {
                Retransmit::Again { ids, .. } => {
                    assert_eq!(ids, [0]);
                    let next = out.due().unwrap();
                    waits.push(next.since(due));
                    due = next;
                }
                Retransmit::GiveUp => break,
                Retransmit::Idle => panic!("the request is outstanding"),
            }
        }
        assert_eq!(due.since(Time::ZERO), policy.give_up);
        assert_eq!(waits[1], policy.first * 180 / 100);
        assert!(waits.iter().all(|wait| *wait <= policy.longest));
        assert!(waits[..waits.len() - 1].is_sorted(), "{waits:?}");
    }

    #[test]
    fn k_2_3_1_one_request_at_a_time_and_only_its_own_response_ends_it() {
        let mut out = Outgoing::default();
        start(&mut out, Time::ZERO);
        assert!(!out.is_open());
        assert!(out.take(1, ExchangeType::INFORMATIONAL).is_none());
        assert!(out.take(0, ExchangeType::IKE_AUTH).is_none());
        assert!(out.take(0, ExchangeType::INFORMATIONAL).is_some());
        assert!(out.is_open());
        assert_eq!(out.next_id(), 1);
    }

    #[test]
    fn k_2_1_1_a_repeated_request_gets_the_cached_response_and_an_old_one_nothing() {
        let mut inc = Incoming::default();
        assert_eq!(inc.arrival(0), Arrival::New);
        inc.begin(0);
        assert_eq!(inc.arrival(0), Arrival::Pending);
        inc.finish(0, vec![vec![7]]);
        assert_eq!(inc.arrival(0), Arrival::Answered(&[vec![7]]));
        assert_eq!(inc.arrival(1), Arrival::New);
        inc.begin(1);
        inc.finish(1, vec![vec![8]]);
        assert_eq!(inc.arrival(0), Arrival::OutOfWindow);
        assert_eq!(inc.arrival(3), Arrival::OutOfWindow);
    }

    #[test]
    fn k_2_3_1_a_wide_window_takes_requests_in_any_order_and_no_more() {
        let mut inc = Incoming::default();
        inc.widen(3);
        assert_eq!(inc.arrival(2), Arrival::New);
        assert_eq!(inc.arrival(3), Arrival::OutOfWindow);
        inc.begin(2);
        inc.finish(2, vec![vec![2]]);
        assert_eq!(inc.arrival(3), Arrival::OutOfWindow);
        for id in [0, 1] {
            assert_eq!(inc.arrival(id), Arrival::New);
            inc.begin(id);
        }
        assert_eq!(inc.arrival(0), Arrival::Pending);
        assert_eq!(inc.arrival(3), Arrival::OutOfWindow);
        inc.finish(0, vec![vec![0]]);
        assert_eq!(inc.arrival(3), Arrival::New);
        assert_eq!(inc.arrival(2), Arrival::Answered(&[vec![2]]));
        inc.finish(1, vec![vec![1]]);
        inc.begin(3);
        assert_eq!(inc.arrival(0), Arrival::OutOfWindow);
        assert_eq!(inc.arrival(1), Arrival::Answered(&[vec![1]]));
    }

    #[test]
    fn k_2_3_1_the_peer_s_window_is_never_exceeded() {
        let mut out = Outgoing::default();
        out.widen(u32::MAX);
        out.widen(1);
        for _ in 0..MOST_WINDOW {
            assert!(out.is_open());
            start(&mut out, Time::ZERO);
        }
        assert!(!out.is_open());
        // An answer to a later one opens nothing: the oldest counts.
        assert!(out.take(1, ExchangeType::INFORMATIONAL).is_some());
        assert!(!out.is_open());
        assert!(out.take(0, ExchangeType::INFORMATIONAL).is_some());
        assert!(out.is_open());
    }
}
