//! A peer by hand: it does IKE_SA_INIT and IKE_AUTH with an endpoint as either side, and says in both
//! what a test wants to be said, true or not. X25519 and AES-GCM, no fragments, no network.

use bewick_ike::{
    ActionError, CloseReason, ConnectionId, Endpoint, Event, Output, Path, Random, Role, Time,
    TrafficSelector,
    crypto::psk_auth,
    extension::Plain,
    wire::{
        AttributeValue, AuthMethod, CfgType, Configuration, ExchangeType, Header, Identification,
        Identity, Message, Payload, Proposal, Protocol, Transform, TransformType, emit_chain,
        proposal::encr,
    },
};

use crate::{
    channel::{Channel, Ours, proposal},
    lab::{X25519_GCM, path, psk},
};

/// The moment at which all of it happens.
const NOW: Time = Time::ZERO;

/// The peer, and what has been said so far.
pub struct Hand {
    channel: Channel,
    /// the payloads of the endpoint's IKE_SA_INIT
    pub init: Vec<Payload>,
    /// as responder: the payloads of the endpoint's IKE_AUTH request
    pub request: Vec<Payload>,
    /// as responder: why the endpoint sent no such request
    pub reasons: Vec<CloseReason>,
    /// the endpoint's data plane says no to everything, and not yes
    pub plane_refuses: bool,
}

/// What an endpoint did upon a message.
#[derive(Debug, Default)]
pub struct Said {
    /// how many things came out of it
    pub outputs: usize,
    /// the payloads of its response
    pub answer: Option<Vec<Payload>>,
    /// its requests, and the payloads of each
    pub requests: Vec<(Header, Vec<Payload>)>,
    /// why it closed the IKE_SA, if it did
    pub closed: Option<CloseReason>,
}

/// Where the endpoint believes to be.
fn way(endpoint: Role) -> Path {
    match endpoint {
        Role::Initiator => path("198.51.100.2:500", "192.0.2.1:500"),
        Role::Responder => path("192.0.2.1:500", "198.51.100.2:500"),
    }
}

/// What the endpoint sends now, and why it gave up if it did.
fn outputs(endpoint: &mut Endpoint) -> (Vec<Vec<u8>>, Vec<CloseReason>) {
    let (mut sent, mut reasons) = (Vec::new(), Vec::new());
    while let Some(output) = endpoint.poll_output() {
        match output {
            Output::Transmit(transmit) => sent.push(transmit.bytes),
            Output::Event(Event::Closed { reason, .. } | Event::Refused { reason, .. }) => {
                reasons.push(reason);
            }
            _ => {}
        }
    }
    (sent, reasons)
}

fn parse(datagram: &[u8]) -> (Header, Vec<Payload>) {
    let message = Message::parse(datagram).expect("what an endpoint sends is well formed");
    (message.header, message.payloads)
}

/// Draws from the endpoint's generator, so that no two peers of one endpoint are the same.
fn ours(endpoint: &mut Endpoint) -> Ours {
    Ours::new(Random::from_seed(endpoint.random().array()))
}

impl Hand {
    fn new(channel: Channel, init: Vec<Payload>) -> Self {
        let (request, reasons) = (Vec::new(), Vec::new());
        Hand { channel, init, request, reasons, plane_refuses: false }
    }

    /// Does IKE_SA_INIT as initiator, with these payloads besides SA, KE and Nonce.
    ///
    /// # Panics
    /// If the endpoint does not answer.
    pub fn initiate(endpoint: &mut Endpoint, extra: &[Payload]) -> Hand {
        Hand::try_initiate(endpoint, extra).expect("a response to IKE_SA_INIT")
    }

    /// The same; `None` if the endpoint does not answer.
    ///
    /// # Panics
    /// If it answers something else.
    pub fn try_initiate(endpoint: &mut Endpoint, extra: &[Payload]) -> Option<Hand> {
        let mut ours = ours(endpoint);
        let spi = ours.random.u64() | 1;
        let request = ours.message(Role::Initiator, (spi, 0), extra).expect("it fits");
        endpoint.datagram(NOW, way(Role::Responder), &request, &mut Plain);
        let (mut sent, _) = outputs(endpoint);
        let response = sent.pop()?;
        let (head, init) = parse(&response);
        let (spis, messages) = ((head.spi_i, head.spi_r), [request, response]);
        let channel = ours.finish(Role::Initiator, spis, messages, &init).expect("an IKE_SA");
        Some(Hand::new(channel, init))
    }

    /// Lets the endpoint's first connection start, and does IKE_SA_INIT as responder, with these
    /// payloads besides SA, KE and Nonce.
    ///
    /// # Panics
    /// If the endpoint does not start.
    pub fn answer(endpoint: &mut Endpoint, extra: &[Payload]) -> Hand {
        let ours = ours(endpoint);
        let started = endpoint.connect(NOW, ConnectionId(0), way(Role::Initiator), &mut Plain);
        started.expect("its connection");
        let request = outputs(endpoint).0.pop().expect("IKE_SA_INIT");
        let (head, init) = parse(&request);
        let spis = (head.spi_i, 0x3344);
        let response = ours.message(Role::Responder, spis, extra).expect("it fits");
        let messages = [request, response.clone()];
        let channel = ours.finish(Role::Responder, spis, messages, &init).expect("an IKE_SA");
        let mut hand = Hand::new(channel, init);
        endpoint.datagram(NOW, way(Role::Initiator), &response, &mut Plain);
        let (mut sent, reasons) = outputs(endpoint);
        hand.request = sent.pop().map(|request| hand.open(&request)).unwrap_or_default();
        hand.reasons = reasons;
        hand
    }

    /// The octets that our AUTH with this identity covers.
    pub fn signed(&self, identity: &Identity) -> Vec<u8> {
        self.signed_by(self.channel.role, &identity.to_wire())
    }

    /// The octets that the AUTH of a side covers.
    pub fn signed_by(&self, role: Role, id: &Identification) -> Vec<u8> {
        self.channel.signed_by(role, id)
    }

    /// Sends our IKE_AUTH message; gives the payloads of what the endpoint sends thereupon, if it sends
    /// anything, and why it gave up if it did.
    ///
    /// # Panics
    /// If the message is too long for one.
    pub fn authenticate(
        &mut self,
        endpoint: &mut Endpoint,
        payloads: &[Payload],
    ) -> (Vec<Payload>, Vec<CloseReason>) {
        let response = self.channel.role == Role::Responder;
        let which = (ExchangeType::IKE_AUTH, response, 1);
        let message = self.channel.seal_payloads(which, payloads).expect("it fits");
        endpoint.datagram(NOW, self.way(), &message, &mut Plain);
        let (mut sent, reasons) = outputs(endpoint);
        let said = sent.pop().map(|message| self.open(&message)).unwrap_or_default();
        (said, reasons)
    }

    /// Sends a message of this exchange with `chain` in it, whose first payload is of kind `first`, and
    /// lets the data plane say yes to everything, or no; gives what comes out of the endpoint thereupon.
    ///
    /// # Panics
    /// If the message is too long for one.
    pub fn say(
        &mut self,
        endpoint: &mut Endpoint,
        which: (ExchangeType, bool, u32),
        chain: (u8, &[u8]),
    ) -> Said {
        let message = self.channel.seal(which, chain).expect("it fits");
        endpoint.datagram(NOW, self.way(), &message, &mut Plain);
        self.hear(endpoint)
    }

    /// What comes out of the endpoint by now, while the data plane answers at once.
    pub fn hear(&mut self, endpoint: &mut Endpoint) -> Said {
        let mut said = Said::default();
        while let Some(output) = endpoint.poll_output() {
            said.outputs += 1;
            match output {
                Output::Transmit(transmit) => {
                    let (head, _) = parse(&transmit.bytes);
                    // What is for another peer of the endpoint is sealed with keys that are not ours.
                    if (head.spi_i, head.spi_r) == self.channel.spis {
                        let payloads = self.open(&transmit.bytes);
                        match head.flags.response {
                            true => said.answer = Some(payloads),
                            false => said.requests.push((head, payloads)),
                        }
                    }
                }
                Output::Keys(_) => {}
                Output::Action { id, .. } => {
                    let result = match self.plane_refuses {
                        true => Err(ActionError("the plane was told to refuse".into())),
                        false => Ok(()),
                    };
                    endpoint.answer(NOW, id, result, &mut Plain);
                }
                Output::Event(Event::Closed { reason, .. }) => said.closed = Some(reason),
                Output::Event(_) => {}
            }
        }
        said
    }

    fn way(&self) -> Path {
        match self.channel.role {
            Role::Initiator => way(Role::Responder),
            Role::Responder => way(Role::Initiator),
        }
    }

    fn open(&self, datagram: &[u8]) -> Vec<Payload> {
        let message = self.channel.open(datagram);
        // INVALID_IKE_SPI: there is nobody who could protect it (RFC 7296 §2.21.4).
        message.expect("what an endpoint sends is well formed").unwrap_or_else(|clear| clear)
    }
}

/// The hand says these payloads to the endpoint.
///
/// # Panics
/// If they do not fit into a message.
pub fn say(
    endpoint: &mut Endpoint,
    hand: &mut Hand,
    (exchange, response, message_id): (ExchangeType, bool, u32),
    payloads: &[Payload],
) -> Said {
    let (first, chain) = emit_chain(payloads).expect("it fits");
    hand.say(endpoint, (exchange, response, message_id), (first, &chain))
}

/// The hand answers a request of the endpoint's with these payloads.
///
/// # Panics
/// If they do not fit into a message.
pub fn respond(
    endpoint: &mut Endpoint,
    hand: &mut Hand,
    (exchange, message_id): (ExchangeType, u32),
    payloads: &[Payload],
) -> Said {
    say(endpoint, hand, (exchange, true, message_id), payloads)
}

/// IDi, AUTH with the pre-shared key, CP, SA, TSi and TSr: a whole IKE_AUTH request for the lab's gateway.
///
/// # Panics
/// Never.
pub fn full_auth(hand: &Hand) -> Vec<Payload> {
    full_auth_of(hand, "laptop@example.com")
}

/// The same from a peer of another name.
///
/// # Panics
/// If it is none.
pub fn full_auth_of(hand: &Hand, who: &str) -> Vec<Payload> {
    let identity: Identity = who.parse().expect("an identity");
    let data = psk_auth(X25519_GCM.prf, &psk(), &hand.signed(&identity));
    let wanted = [AttributeValue::Ip4Address(None)];
    vec![
        Payload::IdInitiator(identity.to_wire()),
        Payload::Authentication { method: AuthMethod::SHARED_KEY, data },
        Payload::Configuration(Configuration::new(CfgType::REQUEST, wanted)),
        esp_proposal(0x1234_5678),
        Payload::TsInitiator(vec![everything()]),
        Payload::TsResponder(vec![everything()]),
    ]
}

/// IDr, AUTH, CP, SA, TSi and TSr: all that the lab's client wants to hear in IKE_AUTH.
///
/// # Panics
/// Never.
pub fn full_auth_response(hand: &Hand) -> Vec<Payload> {
    let identity: Identity = "vpn.example.com".parse().expect("an identity");
    let data = psk_auth(X25519_GCM.prf, &psk(), &hand.signed(&identity));
    let address = std::net::Ipv4Addr::new(10, 9, 0, 1);
    let reply = Configuration::new(CfgType::REPLY, [AttributeValue::Ip4Address(Some(address))]);
    vec![
        Payload::IdResponder(identity.to_wire()),
        Payload::Authentication { method: AuthMethod::SHARED_KEY, data },
        Payload::Configuration(reply),
        esp_proposal(0x1234_5678),
        Payload::TsInitiator(vec![TrafficSelector::from_addr(address.into())]),
        Payload::TsResponder(vec![selector("10.1.0.0/16")]),
    ]
}

/// A selector as an operator writes it.
///
/// # Panics
/// If it is none.
pub fn selector(text: &str) -> TrafficSelector {
    text.parse().expect("a selector")
}

/// An SA payload that offers ESP with AES-GCM, with this SPI.
pub fn esp_proposal(spi: u32) -> Payload {
    let transforms = vec![
        Transform::encryption(encr::AES_GCM_16, Some(256)),
        Transform::new(TransformType::ESN, 0),
    ];
    let (protocol, spi) = (Protocol::ESP, spi.to_be_bytes().to_vec());
    Payload::SecurityAssociation(vec![Proposal { number: 1, protocol, spi, transforms }])
}

/// An SA payload that offers a successor of the IKE_SA, with this SPI.
pub fn ike_proposal(spi: u64) -> Payload {
    let Payload::SecurityAssociation(mut proposals) = proposal() else { return proposal() };
    for proposal in &mut proposals {
        proposal.spi = spi.to_be_bytes().to_vec();
    }
    Payload::SecurityAssociation(proposals)
}

/// A selector for all of IPv4.
///
/// # Panics
/// Never.
pub fn everything() -> TrafficSelector {
    selector("0.0.0.0/0")
}
