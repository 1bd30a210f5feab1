//! Messages that arrive for an IKE_SA: which channel they are on, whether they are due and genuine,
//! and who takes care of them (RFC 7296 §2.1, §2.2, §2.5, §2.21).

use crate::{
    config::Role,
    event::{CloseReason, Event},
    path::Path,
    wire::{ExchangeType, Message, NotifyType, Payload},
};

use super::{
    Cx, On, Sa, State, auth_initiator, auth_responder, channel::Channel, envelope::Inside,
    exchange::Arrival, former, fragment::Received, init, live,
};

/// So many messages are opened in vain before a half-open IKE_SA goes; repeated fragments count too.
const MOST_UNREADABLE: u32 = 64;

impl Sa {
    /// A message for this IKE_SA, well formed outside and still sealed.
    pub(crate) fn on_message(
        &mut self,
        cx: &mut Cx<'_>,
        path: Path,
        datagram: &[u8],
        message: &Message<'_>,
    ) {
        let header = &message.header;
        if header.exchange == ExchangeType::IKE_SA_INIT {
            let ours = header.flags.response && !header.flags.initiator;
            if matches!(self.state, State::InitResponse(_)) && ours {
                init::on_response(self, cx, path, datagram, message);
            }
            return;
        }
        let former = self.former.iter().map(|former| &former.channel);
        let on = if self.channel.is_for(header) {
            On::Current
        } else if let Some(channel) = former.into_iter().find(|channel| channel.is_for(header)) {
            On::Former(channel.own_spi())
        } else {
            return;
        };
        if message.encrypted.is_none() {
            self.on_unprotected(cx, on, message);
        } else if header.flags.response {
            self.on_sealed_response(cx, on, path, message);
        } else {
            self.on_sealed_request(cx, on, path, message);
        }
    }

    /// RFC 7296 §2.21.4: an answer without protection is a hint at best, and only if we have asked.
    fn on_unprotected(&mut self, cx: &mut Cx<'_>, on: On, message: &Message<'_>) {
        let header = &message.header;
        let unknown = message
            .payloads
            .iter()
            .any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::INVALID_IKE_SPI));
        if !header.flags.response || !unknown || !matches!(self.state, State::Live(_)) {
            return;
        }
        let asked = |channel: &mut Channel| {
            channel.outgoing.find(header.message_id, header.exchange).map(|out| out.tries)
        };
        let Some(tries) = self.on(on).and_then(asked) else { return };
        // RFC 6290 §4.5: nobody but the peer has the token, and it never tells it of an IKE_SA that it has.
        if self.on(on).is_some_and(|channel| channel.crash.is_crash(&message.payloads)) {
            self.close(cx, CloseReason::PeerRestarted);
            self.forget(cx);
            return;
        }
        match &self.state {
            // It is over for us in any case: all that a lie spares us is to ask again.
            State::Live(live) if live.is_closing() => {
                let reason = live.verdict();
                self.close(cx, reason);
                self.forget(cx);
            }
            _ => cx.shared.event(Event::Unknown { sa: self.id, tries }),
        }
    }

    /// RFC 7296 §2.2: IKE_AUTH and nothing else comes before the IKE_SA is established. `None` if not
    /// even a repeated request is answered.
    fn expects(&self, exchange: ExchangeType) -> Option<bool> {
        match self.state {
            State::AuthRequest(_) => Some(exchange == ExchangeType::IKE_AUTH),
            State::Live(_) => Some(
                exchange == ExchangeType::INFORMATIONAL
                    || exchange == ExchangeType::CREATE_CHILD_SA,
            ),
            State::Lingering => Some(false),
            State::InitResponse(_) | State::AuthResponse(_) | State::Between => None,
        }
    }

    fn on_sealed_request(&mut self, cx: &mut Cx<'_>, on: On, path: Path, message: &Message<'_>) {
        let (id, exchange) = (message.header.message_id, message.header.exchange);
        let Some(expected) = self.expects(exchange) else { return };
        let authenticated = matches!(self.state, State::Live(_));
        let now = cx.now;
        let Some(channel) = self.on(on) else { return };
        match channel.incoming.arrival(id) {
            Arrival::OutOfWindow | Arrival::Pending => return,
            Arrival::Answered(_) => {
                self.answer_again(cx, on, path, message);
                return;
            }
            Arrival::New => {}
        }
        let Some(keys) = channel.keys.as_ref().filter(|_| expected) else { return };
        // RFC 7296 §3.14, RFC 8019 §4.6: what fails the integrity check changes nothing.
        let received = channel.fragments.request(now, keys, path, message, authenticated);
        if !authenticated && matches!(received, Received::Nothing) {
            self.on_unreadable(cx);
            return;
        }
        let Some(inside) = self.received(cx, received) else { return };
        self.heard(cx, path);
        if let Some(channel) = self.on(on) {
            channel.incoming.begin(id);
        }
        let done = match inside.payloads() {
            Err(error) => Err(live::Refusal::Syntax(error.to_string())),
            Ok(payloads) => match live::unknown_critical(&payloads) {
                Some(kind) => Err(live::Refusal::UnknownCritical(kind)),
                None if exchange == ExchangeType::IKE_AUTH => {
                    auth_responder::on_request(self, cx, path, id, &payloads);
                    Ok(())
                }
                None => match on {
                    On::Current => live::on_request(self, cx, path, id, exchange, &payloads),
                    On::Former(spi) => {
                        former::on_request(self, cx, spi, path, (exchange, id), &payloads)
                    }
                },
            },
        };
        if let Err(refusal) = done {
            live::refuse(self, cx, on, path, (exchange, id), refusal);
        }
    }

    /// An IKE_AUTH that fails its integrity check: anyone can have sent it, and the true one may come, but
    /// not without end (RFC 8019 §4.6).
    fn on_unreadable(&mut self, cx: &mut Cx<'_>) {
        self.unreadable += 1;
        if self.unreadable >= MOST_UNREADABLE {
            self.close(
                cx,
                CloseReason::Protocol("too many messages that fail the integrity check".into()),
            );
            self.forget(cx);
        }
    }

    /// A request again: its response goes to where this copy came from, and nothing else happens
    /// (RFC 4555 §3.5, RFC 7296 §2.1).
    fn answer_again(&mut self, cx: &mut Cx<'_>, on: On, path: Path, message: &Message<'_>) {
        let fragment = message.encrypted.and_then(|sealed| sealed.fragment);
        // RFC 7383 §2.6.1: once for each time that all fragments come again.
        if fragment.is_some_and(|fragment| fragment.number != 1) {
            return;
        }
        let connection = self.connection;
        let config = connection.and_then(|id| cx.shared.connections.get(id.0));
        let Some(channel) = self.on(on) else { return };
        let limit = channel.fragments.repeat_limit(config, path, message);
        let Some(keys) = &mut channel.keys else { return };
        if !channel.fragments.is_genuine(keys, message) {
            return;
        }
        let id = message.header.message_id;
        let Arrival::Answered(datagrams) = channel.incoming.arrival(id) else { return };
        // RFC 7383 §2.5.2: who asks in smaller fragments has not got the response in bigger ones.
        let smaller = limit.and_then(|limit| keys.recut(&mut cx.shared.random, datagrams, limit));
        cx.shared.transmit_all(path, smaller.as_deref().unwrap_or(datagrams));
        if let Some(smaller) = smaller {
            channel.incoming.recut(id, smaller);
        }
        if matches!(self.state, State::Live(_)) {
            cx.shared.event(Event::Repeated { sa: self.id, path });
        }
    }

    /// Something genuine has come on `path`. It shows that the peer is there; to an initiator, who decides
    /// where the IKE_SA is, it shows nothing of the pair in use if it came on another (RFC 4555 §3.12).
    fn heard(&mut self, cx: &Cx<'_>, path: Path) {
        let pair = |path: Path| (path.local.ip(), path.remote.ip());
        if self.role == Role::Responder || pair(path) == pair(self.path) {
            self.last_heard = cx.now;
        }
    }

    /// The content of what arrived, if a message has become whole.
    fn received(&mut self, cx: &mut Cx<'_>, received: Received) -> Option<Inside> {
        if matches!(received, Received::Nothing) {
            return None;
        }
        self.arm_reassembly(cx);
        match received {
            Received::Whole(inside) => Some(inside),
            Received::Part | Received::Nothing => None,
            Received::TooMuch => {
                // RFC 7383 §5: an attack or a broken sender; either way it was the peer.
                let text = "the peer's fragments make a message that is too long";
                self.close(cx, CloseReason::Protocol(text.into()));
                self.forget(cx);
                None
            }
        }
    }

    fn on_sealed_response(&mut self, cx: &mut Cx<'_>, on: On, path: Path, message: &Message<'_>) {
        let (id, exchange) = (message.header.message_id, message.header.exchange);
        let now = cx.now;
        let live = matches!(self.state, State::Live(_));
        let Some(channel) = self.on(on) else { return };
        if channel.outgoing.find(id, exchange).is_none() {
            // A copy that went on another path may be answered too: that shows a way, and no more.
            if live
                && channel.outgoing.was_answered(id, exchange)
                && channel
                    .keys
                    .as_ref()
                    .is_some_and(|keys| channel.fragments.is_genuine(keys, message))
            {
                cx.shared.event(Event::Answered { sa: self.id, path, sent: None });
            }
            return;
        }
        let Some(keys) = &channel.keys else { return };
        let received = channel.fragments.response(now, keys, message);
        let Some(inside) = self.received(cx, received) else { return };
        let Some(request) = self.on(on).and_then(|c| c.outgoing.take(id, exchange)) else { return };
        self.arm_retransmit(cx);
        self.heard(cx, path);
        if matches!(self.state, State::Live(_)) {
            let once = request.tries == 1 && path == request.astray.unwrap_or(self.path);
            let sent = once.then_some(request.sent);
            cx.shared.event(Event::Answered { sa: self.id, path, sent });
        }
        let parsed = inside.payloads().map_err(|error| error.to_string()).and_then(|payloads| {
            // RFC 7296 §2.5: what we must not skip and don't know.
            match live::unknown_critical(&payloads) {
                Some(kind) => Err(format!("unknown critical payload {kind} in a response")),
                None => Ok(payloads),
            }
        });
        let payloads = match parsed {
            Ok(payloads) => payloads,
            // RFC 7296 §2.21.3: a response that is malformed after its integrity check ends the IKE_SA.
            Err(error) => {
                self.close(cx, CloseReason::Protocol(error));
                self.forget(cx);
                return;
            }
        };
        match (&self.state, on) {
            (State::AuthResponse(_), _) => auth_initiator::on_response(self, cx, path, &payloads),
            (State::Live(_), On::Current) => live::on_response(self, cx, path, request, payloads),
            (State::Live(_), On::Former(spi)) => {
                former::on_response(self, cx, spi, path, request, payloads);
            }
            _ => {}
        }
    }
}
