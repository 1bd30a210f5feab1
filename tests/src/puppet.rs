//! A peer that does what a test says: the IKE machines with a MOBIKE of the test's making.
//!
//! Left alone it is honest: it offers MOBIKE, echoes COOKIE2, answers NAT detection, and moves
//! nothing.

use bewick_ike::{
    ActionError, ActionId, ConnectionConfig, ConnectionId, Endpoint, Event, Extension, Output,
    Path, Random, SaId, SaView, Tag, Time,
    extension::Request,
    nat,
    wire::{Notify, NotifyType, Payload},
};

use crate::{
    node::translate,
    pair::{self, Input},
};

/// A request that reached the puppet.
#[derive(Clone, Debug)]
pub struct Heard {
    /// when
    pub time: Time,
    /// on which path
    pub path: Path,
    /// its Message ID
    pub message_id: u32,
    /// what was in it
    pub payloads: Vec<Payload>,
}

/// Turns the honest answer to a request into what the test wants to be said.
pub type Answerer = Box<dyn FnMut(&Heard, Vec<Payload>) -> Vec<Payload> + Send>;

/// The puppet's MOBIKE.
#[derive(Default)]
pub struct Script {
    /// what goes into IKE_AUTH
    pub auth: Vec<Payload>,
    /// what came in IKE_AUTH
    pub auth_heard: Vec<Payload>,
    /// INFORMATIONAL requests so far
    pub heard: Vec<Heard>,
    /// changes the answers
    pub answerer: Option<Answerer>,
}

/// A notify with data.
pub fn notify(kind: NotifyType, data: impl Into<Vec<u8>>) -> Payload {
    Payload::Notify(Notify::new(kind, data.into()))
}

/// The data of the first notify of that kind.
pub fn find(payloads: &[Payload], kind: NotifyType) -> Option<&[u8]> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(n) if n.kind == kind => Some(n.data.as_slice()),
        _ => None,
    })
}

/// All notifies' kinds, in order.
pub fn kinds(payloads: &[Payload]) -> Vec<NotifyType> {
    let kind = |payload: &Payload| match payload {
        Payload::Notify(n) => Some(n.kind),
        _ => None,
    };
    payloads.iter().filter_map(kind).collect()
}

impl Extension for Script {
    fn auth_request(&mut self, _: &SaView) -> Vec<Payload> {
        self.auth.clone()
    }

    fn auth_request_received(&mut self, _: &SaView, payloads: &[Payload]) -> Vec<Payload> {
        self.auth_heard = payloads.to_vec();
        self.auth.clone()
    }

    fn auth_response_received(&mut self, _: &SaView, payloads: &[Payload]) {
        self.auth_heard = payloads.to_vec();
    }

    fn informational(
        &mut self,
        sa: &SaView,
        request: &Request<'_>,
        random: &mut Random,
    ) -> Vec<Payload> {
        let heard = Heard {
            time: request.now,
            path: request.path,
            message_id: request.message_id,
            payloads: request.payloads.to_vec(),
        };
        let mut answer = Vec::new();
        if let Some(cookie) = find(&heard.payloads, NotifyType::COOKIE2) {
            answer.push(notify(NotifyType::COOKIE2, cookie));
        }
        if find(&heard.payloads, NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
            answer.extend(nat::payloads((sa.spi_i, sa.spi_r), request.path, false, random));
        }
        if let Some(answerer) = &mut self.answerer {
            answer = answerer(&heard, answer);
        }
        self.heard.push(heard);
        answer
    }

    fn liveness(&mut self, _: &SaView, _: &mut Random) -> Vec<Payload> {
        Vec::new()
    }
}

/// The puppet.
pub struct Puppet {
    /// its IKE machines
    pub endpoint: Endpoint,
    /// its MOBIKE
    pub script: Script,
    /// what its IKE machines reported
    pub events: Vec<(Time, Event)>,
    now: Time,
}

impl Puppet {
    /// A puppet with these connections, which offers MOBIKE.
    pub fn new(connections: Vec<ConnectionConfig>, random: Random) -> Self {
        let script =
            Script { auth: vec![notify(NotifyType::MOBIKE_SUPPORTED, [])], ..Script::default() };
        let endpoint = Endpoint::new(random, connections, false);
        Puppet { endpoint, script, events: Vec::new(), now: Time::ZERO }
    }

    /// Starts an IKE_SA of its first connection.
    ///
    /// # Panics
    /// If it can't.
    pub fn connect(&mut self, now: Time, path: Path) -> SaId {
        self.now = now;
        let connected = self.endpoint.connect(now, ConnectionId(0), path, &mut self.script);
        connected.expect("the puppet's connection")
    }

    /// Its only IKE_SA that is not over.
    ///
    /// # Panics
    /// If there is none.
    pub fn sa(&self) -> SaId {
        self.endpoint.status().next().expect("the puppet's IKE_SA").id
    }

    /// The SPIs of its IKE_SA.
    pub fn spis(&self) -> (u64, u64) {
        self.endpoint.status().next().expect("the puppet's IKE_SA").spis
    }

    /// Sends an INFORMATIONAL request on `path`, which becomes the path of its IKE_SA.
    ///
    /// # Panics
    /// If the window is closed.
    pub fn ask(&mut self, now: Time, path: Path, payloads: &[Payload]) {
        self.now = now;
        let sa = self.sa();
        self.endpoint.set_path(sa, path);
        let sent = self.endpoint.request(now, sa, payloads, Tag::Upper(0), &mut self.script);
        assert!(sent, "the puppet's window is closed");
    }

    /// The responses so far to what [`Self::ask`] sent.
    pub fn responses(&self) -> impl Iterator<Item = (Time, Path, &[Payload])> {
        self.events.iter().filter_map(|(time, event)| match event {
            Event::Response { path, payloads, .. } => Some((*time, *path, payloads.as_slice())),
            _ => None,
        })
    }

    pub(crate) fn handle(&mut self, now: Time, input: Input) {
        self.now = now;
        let script = &mut self.script;
        match input {
            Input::Datagram { path, bytes } => self.endpoint.datagram(now, path, &bytes, script),
            Input::Timeout => self.endpoint.timeout(now, script),
            Input::Addresses(_)
            | Input::Expiring(_)
            | Input::Counted { .. }
            | Input::Mapping { .. }
            | Input::Unreachable(_)
            | Input::Resumed => {}
            Input::Answer { id, result } => {
                let result = result.map_err(ActionError);
                self.endpoint.answer(now, ActionId(id), result, script);
            }
        }
    }

    pub(crate) fn poll_output<E>(&mut self) -> Option<pair::Output<E>> {
        loop {
            match self.endpoint.poll_output()? {
                Output::Transmit(t) => {
                    return Some(pair::Output::Transmit { path: t.path, bytes: t.bytes });
                }
                Output::Action { id, action } => {
                    return Some(pair::Output::Action { id: id.0, action: translate(action) });
                }
                Output::Event(event) => self.events.push((self.now, event)),
                Output::Keys(_) => {}
            }
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.endpoint.next_timeout().map(|(at, _)| at)
    }
}
