//! Message IDs, retransmission and the response cache (RFC 7296 §2.1 to §2.3), window 1.
//!
//! Retransmission belongs to the exchange, the path to send it on does not: a request in flight goes
//! on with the same bytes wherever the IKE_SA goes (RFC 4555 §3.5).

use std::time::Duration;

use crate::{config::Retransmission, event::Tag, time::Time, wire::ExchangeType};

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
    interval: Duration,
    give_up: Time,
}

/// Requests that we send.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    next_id: u32,
    outstanding: Option<Outstanding>,
}

/// What a retransmission timer asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Retransmit {
    /// send the same bytes again, and look again at this time
    Again(Time),
    /// the peer has not answered for too long
    GiveUp,
    /// nothing is outstanding
    Idle,
}

impl Outgoing {
    /// The Message ID of the next request; the IKE_SA_INIT has 0 (RFC 7296 §2.2).
    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    /// Whether a request may be sent now.
    pub(crate) fn is_open(&self) -> bool {
        self.outstanding.is_none() && self.next_id != u32::MAX
    }

    pub(crate) fn outstanding(&self) -> Option<&Outstanding> {
        self.outstanding.as_ref()
    }

    /// Records the request with [`Self::next_id`]; gives the time of its first retransmission.
    pub(crate) fn start(
        &mut self,
        now: Time,
        exchange: ExchangeType,
        datagrams: Vec<Vec<u8>>,
        tag: Option<Tag>,
        policy: &Retransmission,
        give_up: Duration,
    ) -> Time {
        self.outstanding = Some(Outstanding {
            message_id: self.next_id,
            exchange,
            datagrams,
            tag,
            tries: 1,
            tries_in_size: 1,
            interval: policy.first,
            give_up: now + give_up,
        });
        self.next_id += 1;
        now + policy.first
    }

    /// Starts the IKE_SA_INIT anew with Message ID 0, as COOKIE and INVALID_KE_PAYLOAD ask
    /// (RFC 7296 §2.6, §1.2).
    pub(crate) fn restart(&mut self) {
        *self = Outgoing::default();
    }

    /// The retransmission timer went off.
    pub(crate) fn on_timer(&mut self, now: Time, policy: &Retransmission) -> Retransmit {
        let Some(out) = &mut self.outstanding else { return Retransmit::Idle };
        if now >= out.give_up {
            return Retransmit::GiveUp;
        }
        out.tries += 1;
        out.tries_in_size += 1;
        out.interval = (out.interval * policy.factor_percent / 100).min(policy.longest);
        Retransmit::Again((now + out.interval).min(out.give_up))
    }

    /// Starts the back-off anew, as after a change of address, and the time after which the peer is
    /// given up too: on the new path it has had none yet. Gives the time of the next retransmission.
    pub(crate) fn hasten(
        &mut self,
        now: Time,
        policy: &Retransmission,
        give_up: Duration,
    ) -> Option<Time> {
        let out = self.outstanding.as_mut()?;
        (out.tries, out.tries_in_size) = (1, 1);
        out.interval = policy.first;
        out.give_up = now + give_up;
        Some(now + out.interval)
    }

    /// Goes on with the same message in other fragments, and with the shortest wait: nobody has had the
    /// time to answer these (RFC 7383 §2.5.2). The time of giving up stays.
    pub(crate) fn recut(&mut self, datagrams: Vec<Vec<u8>>, policy: &Retransmission) {
        if let Some(out) = &mut self.outstanding {
            out.datagrams = datagrams;
            out.tries_in_size = 0;
            out.interval = policy.first * 100 / policy.factor_percent.max(1);
        }
    }

    /// Gives up sooner than planned.
    pub(crate) fn limit(&mut self, give_up: Time) {
        if let Some(out) = &mut self.outstanding {
            out.give_up = out.give_up.min(give_up);
        }
    }

    /// Takes the outstanding request if a response with this Message ID and exchange type is its own.
    pub(crate) fn take(&mut self, message_id: u32, exchange: ExchangeType) -> Option<Outstanding> {
        let fits = self
            .outstanding
            .as_ref()
            .is_some_and(|out| out.message_id == message_id && out.exchange == exchange);
        if fits { self.outstanding.take() } else { None }
    }
}

/// Requests that the peer sends.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    next_id: u32,
    cached: Option<(u32, Vec<Vec<u8>>)>,
    busy: Option<u32>,
}

/// What an arriving request is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<'a> {
    /// the one that is due
    New,
    /// the last one again: send this, and do nothing else (RFC 7296 §2.1)
    Answered(&'a [Vec<u8>]),
    /// the last one again, whose response is not ready yet
    Pending,
    /// outside the window (RFC 7296 §2.3)
    OutOfWindow,
}

impl Incoming {
    /// What a request with this Message ID is. Says nothing about whether it is genuine.
    pub(crate) fn arrival(&self, message_id: u32) -> Arrival<'_> {
        if self.busy == Some(message_id) {
            return Arrival::Pending;
        }
        match &self.cached {
            Some((id, datagrams)) if *id == message_id => Arrival::Answered(datagrams),
            _ if message_id == self.next_id && self.busy.is_none() => Arrival::New,
            _ => Arrival::OutOfWindow,
        }
    }

    /// The genuine request with this Message ID is being worked on.
    pub(crate) fn begin(&mut self, message_id: u32) {
        self.busy = Some(message_id);
        self.next_id = message_id.saturating_add(1);
        self.cached = None;
    }

    /// Its response, kept until the next request arrives.
    pub(crate) fn finish(&mut self, response: Vec<Vec<u8>>) {
        if let Some(id) = self.busy.take() {
            self.cached = Some((id, response));
        }
    }

    /// Keeps the last response in smaller fragments from now on (RFC 7383 §2.5.2).
    pub(crate) fn recut(&mut self, response: Vec<Vec<u8>>) {
        if let Some((_, datagrams)) = &mut self.cached {
            *datagrams = response;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(out: &mut Outgoing, now: Time) -> Time {
        let policy = Retransmission::default();
        out.start(now, ExchangeType::INFORMATIONAL, vec![vec![1]], None, &policy, policy.give_up)
    }

    #[test]
    fn k_2_1_1_retransmissions_back_off_until_the_peer_is_given_up() {
        let policy = Retransmission::default();
        let mut out = Outgoing::default();
        let mut due = start(&mut out, Time::ZERO);
        let mut waits = vec![due.since(Time::ZERO)];
        loop {
            match out.on_timer(due, &policy) {
                Retransmit::Again(next) => {
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
        inc.finish(vec![vec![7]]);
        assert_eq!(inc.arrival(0), Arrival::Answered(&[vec![7]]));
        assert_eq!(inc.arrival(1), Arrival::New);
        inc.begin(1);
        inc.finish(vec![vec![8]]);
        assert_eq!(inc.arrival(0), Arrival::OutOfWindow);
        assert_eq!(inc.arrival(3), Arrival::OutOfWindow);
    }
}
