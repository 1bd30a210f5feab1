//! A peer by hand, over real sockets: it does IKE_SA_INIT and the exchanges behind it as either side, and says in
//! them what it is told to say. X25519 and AES-GCM, a pre-shared key, no fragments, no ESP.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bewick_ike::crypto::{psk_auth, verify_psk_auth};
use bewick_ike::wire::{
    AuthMethod, Delete, ExchangeType, Header, Message, Notify, NotifyType, Payload,
};
use bewick_ike::{Random, Role, Secret};
use bewick_tests::channel::{Channel, Ours};
use bewick_tests::lab::X25519_GCM;

use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::PSK;
use crate::peer::tunnel::Tunnel;
use crate::topology::{Node, Topology};

pub use bewick_tests::channel::SUITE;

/// How long bewick may take to say something.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is not ESP on port 4500 (RFC 7296 §2.23).
const MARKER: [u8; 4] = [0; 4];

/// The peer.
pub struct Hand {
    sockets: Sockets,
    channel: Channel,
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

fn ours() -> Result<Ours> {
    let mut seed = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut seed))
        .context("/dev/urandom")?;
    Ok(Ours::new(Random::from_seed(seed)))
}

/// Besides these, NAT detection with hashes that fit nothing, so that bewick takes both ends for translated
/// (RFC 7296 §2.23).
fn translated(ours: &mut Ours, extra: &[Payload]) -> Vec<Payload> {
    let kinds = [NotifyType::NAT_DETECTION_SOURCE_IP, NotifyType::NAT_DETECTION_DESTINATION_IP];
    let hashes = kinds.map(|kind| Payload::Notify(Notify::new(kind, ours.random.array::<20>())));
    [&hashes, extra].concat()
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
        let mut ours = ours()?;
        let spi = ours.random.u64() | 1;
        let payloads = translated(&mut ours, extra);
        let request = ours.message(Role::Initiator, (spi, 0), &payloads).context("IKE_SA_INIT")?;
        sockets.send(&request)?;
        let response = sockets.receive(|head| head.spi_i == spi && head.flags.response)?;
        let message = Message::parse(&response).context("bewick's IKE_SA_INIT")?;
        let (spis, init) = ((spi, message.header.spi_r), message.payloads);
        if !init.iter().any(|payload| matches!(payload, Payload::SecurityAssociation(_))) {
            return Ok(Err(init));
        }
        // Both ends are behind a NAT, as far as they know.
        sockets.to.set_port(4500);
        let channel = ours.finish(Role::Initiator, spis, [request, response], &init);
        let channel = channel.context("bewick's IKE_SA_INIT")?;
        Ok(Ok(Hand { sockets, channel, next: 1 }))
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
        let mut ours = ours()?;
        let request = sockets
            .receive(|head| head.exchange == ExchangeType::IKE_SA_INIT && head.spi_r == 0)?;
        let message = Message::parse(&request).context("bewick's IKE_SA_INIT")?;
        let (head, init) = (message.header, message.payloads);
        let spis = (head.spi_i, ours.random.u64() | 1);
        let payloads = translated(&mut ours, extra);
        let response = ours.message(Role::Responder, spis, &payloads).context("IKE_SA_INIT")?;
        sockets.send(&response)?;
        let channel = ours.finish(Role::Responder, spis, [request, response], &init);
        Ok(Hand { sockets, channel: channel.context("bewick's IKE_SA_INIT")?, next: 0 })
    }

    /// Asks something, and gives what bewick answers.
    ///
    /// # Errors
    /// It does not answer.
    pub fn ask(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> Result<Vec<Payload>> {
        let id = self.next;
        self.next += 1;
        self.say(exchange, false, id, payloads)?;
        let (spis, role) = (self.channel.spis, self.channel.role);
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
        let spis = self.channel.spis;
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
        let data =
            psk_auth(X25519_GCM.prf, &psk(), &self.channel.signed_by(self.channel.role, &id));
        let id = match self.channel.role {
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
        let other = match self.channel.role {
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
        let signed = self.channel.signed_by(other, id);
        verify_psk_auth(X25519_GCM.prf, &psk(), &signed, auth).context("bewick's AUTH")
    }

    /// A DELETE of the IKE_SA.
    pub fn end() -> Payload {
        Payload::Delete(Delete::Ike)
    }

    fn say(
        &mut self,
        exchange: ExchangeType,
        response: bool,
        id: u32,
        payloads: &[Payload],
    ) -> Result<()> {
        let message = self.channel.seal_payloads((exchange, response, id), payloads);
        let message = message.context("a message")?;
        self.sockets.send(&message)
    }

    fn open(&self, datagram: &[u8]) -> Result<Vec<Payload>> {
        let opened = self.channel.open(datagram).context("what bewick says")?;
        opened.map_err(|clear| fail!("bewick says in the clear: {clear:?}"))
    }
}

fn psk() -> Secret {
    Secret::new(PSK.as_bytes().to_vec())
}
