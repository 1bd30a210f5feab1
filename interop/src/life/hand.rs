//! A peer by hand, over real sockets: it does IKE_SA_INIT and the exchanges behind it as either side, and says in
//! them what it is told to say. X25519 and AES-GCM, a pre-shared key, no fragments, no ESP.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bewick_ike::crypto::{
    IkeEncryption, IkeSuite, KeyExchange, KeyExchangeMethod, Opener, Prf, Sealer, SkKeys,
    derive_ike, psk_auth, signed_octets, verify_psk_auth,
};
use bewick_ike::wire::proposal::{encr, ke, prf};
use bewick_ike::wire::{
    AuthMethod, Delete, ExchangeType, Flags, Header, Identification, Message, Notify, NotifyType,
    Payload, Proposal, Protocol, Transform, TransformType, emit_chain, emit_encrypted_prefix,
    emit_message, parse_chain,
};
use bewick_ike::{Random, Role, Secret};

use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::PSK;
use crate::peer::tunnel::Tunnel;
use crate::topology::{Node, Topology};

/// In the words of the configurations.
pub const SUITE: &str = "aes256gcm16-prfsha384-x25519";
const IKE: IkeSuite = IkeSuite {
    encryption: IkeEncryption::AesGcm16 { key_bits: 256 },
    prf: Prf::HmacSha384,
    key_exchange: KeyExchangeMethod::X25519,
};

/// How long bewick may take to say something.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is not ESP on port 4500 (RFC 7296 §2.23).
const MARKER: [u8; 4] = [0; 4];

/// The peer.
pub struct Hand {
    role: Role,
    sockets: Sockets,
    spis: (u64, u64),
    keys: SkKeys,
    sealer: Sealer,
    opener: Opener,
    random: Random,
    messages: [Vec<u8>; 2],
    nonces: [Vec<u8>; 2],
    next: u32,
}

/// Ports 500 and 4500 of a host, and where bewick is.
pub struct Sockets {
    plain: UdpSocket,
    marked: UdpSocket,
    to: SocketAddr,
}

impl Sockets {
    fn bind(topology: &Topology, node: Node) -> Result<Self> {
        let any = |port| topology.udp_socket(node, ([0, 0, 0, 0], port).into());
        let (plain, marked) = (any(500)?, any(4500)?);
        let short = Some(Duration::from_millis(20));
        plain.set_read_timeout(short).context("receive timeout")?;
        marked.set_read_timeout(short).context("receive timeout")?;
        let to = (Tunnel::default().gateway_address(), 500).into();
        Ok(Self { plain, marked, to })
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        if self.to.port() == 500 {
            return self.plain.send_to(message, self.to).map(drop).context("a message");
        }
        let marked = [&MARKER, message].concat();
        self.marked.send_to(&marked, self.to).map(drop).context("a message on port 4500")
    }

    /// The next message that is `wanted`; it is where bewick is from then on.
    fn receive(&mut self, wanted: impl Fn(&Header) -> bool) -> Result<Vec<u8>> {
        let mut buffer = [0; 4096];
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for (socket, marked) in [(&self.plain, false), (&self.marked, true)] {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let datagram = buffer.get(..length).unwrap_or_default();
                let message = match marked {
                    true => datagram.strip_prefix(&MARKER),
                    false => Some(datagram),
                };
                // ESP and keepalives are nobody's here.
                let Some(message) = message else { continue };
                if Header::parse(message).is_ok_and(|head| wanted(&head)) {
                    self.to = from;
                    return Ok(message.to_vec());
                }
            }
        }
        Err(fail!("bewick has not said what was waited for"))
    }
}

/// An IKE_SA_INIT of ours, and what it rests on.
struct Ours {
    random: Random,
    exchange: KeyExchange,
    nonce: Vec<u8>,
}

impl Ours {
    fn new() -> Result<Self> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut seed))
            .context("/dev/urandom")?;
        let mut random = Random::from_seed(seed);
        let exchange = KeyExchange::generate(IKE.key_exchange, &mut random);
        let nonce = random.array::<32>().to_vec();
        Ok(Self { random, exchange, nonce })
    }

    /// With hashes that fit nothing, so that bewick takes both ends for translated (RFC 7296 §2.23).
    fn payloads(&mut self, extra: &[Payload]) -> Vec<Payload> {
        let transforms = vec![
            Transform::encryption(encr::AES_GCM_16, Some(256)),
            Transform::new(TransformType::PRF, prf::HMAC_SHA2_384),
            Transform::new(TransformType::KE, ke::CURVE25519),
        ];
        let (protocol, spi) = (Protocol::IKE, Vec::new());
        let proposal = Proposal { number: 1, protocol, spi, transforms };
        let group = IKE.key_exchange.id();
        let mut payloads = vec![
            Payload::SecurityAssociation(vec![proposal]),
            Payload::KeyExchange { group, data: self.exchange.public().to_vec() },
            Payload::Nonce(self.nonce.clone()),
        ];
        for kind in [NotifyType::NAT_DETECTION_SOURCE_IP, NotifyType::NAT_DETECTION_DESTINATION_IP]
        {
            payloads.push(Payload::Notify(Notify::new(kind, self.random.array::<20>())));
        }
        payloads.extend_from_slice(extra);
        payloads
    }

    fn finish(
        self,
        role: Role,
        sockets: Sockets,
        spis: (u64, u64),
        messages: [Vec<u8>; 2],
        init: &[Payload],
    ) -> Result<Hand> {
        let mut public = None;
        let mut theirs = None;
        for payload in init {
            match payload {
                Payload::KeyExchange { data, .. } => public = Some(data.clone()),
                Payload::Nonce(nonce) => theirs = Some(nonce.clone()),
                _ => {}
            }
        }
        let (Some(public), Some(theirs)) = (public, theirs) else {
            return Err(fail!("bewick's IKE_SA_INIT has no KE or no Nonce: {init:?}"));
        };
        let nonces = match role {
            Role::Initiator => [self.nonce, theirs],
            Role::Responder => [theirs, self.nonce],
        };
        let spi = (spis.0.to_be_bytes(), spis.1.to_be_bytes());
        let secret = self.exchange.agree(&public).context("bewick's public value")?;
        let [ni, nr] = &nonces;
        let keys = derive_ike(IKE, &secret, ni, nr, &spi.0, &spi.1).context("keys")?;
        let (own, peer) = match role {
            Role::Initiator => ((&keys.ei, &keys.ai), (&keys.er, &keys.ar)),
            Role::Responder => ((&keys.er, &keys.ar), (&keys.ei, &keys.ai)),
        };
        let sealer = Sealer::new(IKE.encryption, own.0, own.1).context("keys")?;
        let opener = Opener::new(IKE.encryption, peer.0, peer.1).context("keys")?;
        let (random, next) = (self.random, u32::from(role == Role::Initiator));
        Ok(Hand { role, sockets, spis, keys, sealer, opener, random, messages, nonces, next })
    }
}

fn header(role: Role, spis: (u64, u64), exchange: ExchangeType, response: bool, id: u32) -> Header {
    let flags = Flags { initiator: role == Role::Initiator, response, version: false };
    Header::new(spis, exchange, flags, id)
}

impl Hand {
    /// Asks bewick for an IKE_SA, with these payloads besides the usual ones; either the IKE_SA, or what bewick
    /// says instead.
    ///
    /// # Errors
    /// It says nothing.
    pub fn ask_for_ike_sa(
        topology: &Topology,
        extra: &[Payload],
    ) -> Result<std::result::Result<Self, Vec<Payload>>> {
        let mut sockets = Sockets::bind(topology, Node::Client)?;
        let mut ours = Ours::new()?;
        let spi = ours.random.u64() | 1;
        let head = header(Role::Initiator, (spi, 0), ExchangeType::IKE_SA_INIT, false, 0);
        let request = emit_message(&head, &ours.payloads(extra)).context("IKE_SA_INIT")?;
        sockets.send(&request)?;
        let response = sockets.receive(|head| head.spi_i == spi && head.flags.response)?;
        let message = Message::parse(&response).context("bewick's IKE_SA_INIT")?;
        let (spis, init) = ((spi, message.header.spi_r), message.payloads);
        if !init.iter().any(|payload| matches!(payload, Payload::SecurityAssociation(_))) {
            return Ok(Err(init));
        }
        // Both ends are behind a NAT, as far as they know.
        sockets.to.set_port(4500);
        ours.finish(Role::Initiator, sockets, spis, [request, response], &init).map(Ok)
    }

    /// What hears a bewick that asks from now on.
    ///
    /// # Errors
    /// The ports are taken.
    pub fn hear(topology: &Topology) -> Result<Sockets> {
        Sockets::bind(topology, Node::Gateway)
    }

    /// Waits for bewick to ask for an IKE_SA, and answers with these payloads besides the usual ones.
    ///
    /// # Errors
    /// It does not ask, or for something else.
    pub fn await_ike_sa(mut sockets: Sockets, extra: &[Payload]) -> Result<Self> {
        let mut ours = Ours::new()?;
        let request = sockets
            .receive(|head| head.exchange == ExchangeType::IKE_SA_INIT && head.spi_r == 0)?;
        let message = Message::parse(&request).context("bewick's IKE_SA_INIT")?;
        let spis = (message.header.spi_i, ours.random.u64() | 1);
        let head = header(Role::Responder, spis, ExchangeType::IKE_SA_INIT, true, 0);
        let response = emit_message(&head, &ours.payloads(extra)).context("IKE_SA_INIT")?;
        sockets.send(&response)?;
        let init = message.payloads;
        ours.finish(Role::Responder, sockets, spis, [request, response], &init)
    }

    /// Asks something, and gives what bewick answers.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> Result<Vec<Payload>> {
        let id = self.next;
        self.next += 1;
        self.say(exchange, false, id, payloads)?;
        let (spis, role) = (self.spis, self.role);
        let response = self.sockets.receive(|head| {
            let ours = head.flags.initiator != (role == Role::Initiator);
            (head.spi_i, head.spi_r) == spis && ours && head.flags.response && head.message_id == id
        })?;
        self.open(&response)
    }

    /// What bewick asks with this number, as the hand's to answer.
    ///
    /// # Errors
    /// It does not ask.
    pub fn asked(&mut self, exchange: ExchangeType, id: u32) -> Result<Vec<Payload>> {
        let spis = self.spis;
        let request = self.sockets.receive(|head| {
            let this = head.exchange == exchange && head.message_id == id;
            (head.spi_i, head.spi_r) == spis && !head.flags.response && this
        })?;
        self.open(&request)
    }

    /// Answers it.
    ///
    /// # Errors
    /// It does not fit into a message.
    pub fn answer(&mut self, exchange: ExchangeType, id: u32, payloads: &[Payload]) -> Result<()> {
        self.say(exchange, true, id, payloads)
    }

    /// ID and AUTH of ours.
    ///
    /// # Errors
    /// The name is none.
    pub fn proof(&self, name: &str) -> Result<[Payload; 2]> {
        let identity: bewick_ike::wire::Identity = name.parse().context("a name")?;
        let id = identity.to_wire();
        let data = psk_auth(IKE.prf, &psk(), &self.signed(self.role, &id));
        let id = match self.role {
            Role::Initiator => Payload::IdInitiator(id),
            Role::Responder => Payload::IdResponder(id),
        };
        Ok([id, Payload::Authentication { method: AuthMethod::SHARED_KEY, data }])
    }

    /// Fails if bewick has not shown that it knows the key (RFC 7296 §2.15).
    ///
    /// # Errors
    /// It has not.
    pub fn proven(&self, payloads: &[Payload]) -> Result<()> {
        let other = match self.role {
            Role::Initiator => Role::Responder,
            Role::Responder => Role::Initiator,
        };
        let id = payloads.iter().find_map(|payload| match (other, payload) {
            (Role::Initiator, Payload::IdInitiator(id)) => Some(id),
            (Role::Responder, Payload::IdResponder(id)) => Some(id),
            _ => None,
        });
        let auth = payloads.iter().find_map(|payload| match payload {
            Payload::Authentication { data, .. } => Some(data),
            _ => None,
        });
        let (Some(id), Some(auth)) = (id, auth) else {
            return Err(fail!("no identity or no AUTH in {payloads:?}"));
        };
        verify_psk_auth(IKE.prf, &psk(), &self.signed(other, id), auth).context("bewick's AUTH")
    }

    /// A DELETE of the IKE_SA.
    pub fn end() -> Payload {
        Payload::Delete(Delete::Ike)
    }

    fn signed(&self, role: Role, id: &Identification) -> Vec<u8> {
        let [request, response] = &self.messages;
        let [nonce_i, nonce_r] = &self.nonces;
        let body = id.body();
        match role {
            Role::Initiator => signed_octets(IKE.prf, &self.keys.pi, request, nonce_r, &body),
            Role::Responder => signed_octets(IKE.prf, &self.keys.pr, response, nonce_i, &body),
        }
    }

    fn say(
        &mut self,
        exchange: ExchangeType,
        response: bool,
        id: u32,
        payloads: &[Payload],
    ) -> Result<()> {
        let head = header(self.role, self.spis, exchange, response, id);
        let (first, chain) = emit_chain(payloads).context("a message")?;
        let length = self.sealer.sealed_len(chain.len());
        let mut message = emit_encrypted_prefix(&head, first, length).context("a message")?;
        let body = self.sealer.seal(&mut self.random, &message, &chain).context("a message")?;
        message.extend(body);
        self.sockets.send(&message)
    }

    fn open(&self, datagram: &[u8]) -> Result<Vec<Payload>> {
        let message = Message::parse(datagram).context("what bewick says")?;
        let Some(sealed) = message.encrypted else {
            return Err(fail!("bewick says in the clear: {:?}", message.payloads));
        };
        let chain = self.opener.open(sealed.aad, sealed.body).context("what bewick has sealed")?;
        parse_chain(sealed.first_inner, &chain).context("what bewick says")
    }
}

fn psk() -> Secret {
    Secret::new(PSK.as_bytes().to_vec())
}
