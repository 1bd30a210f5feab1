//! Things that bewick does not know, from a peer by hand: what may be passed over is passed over, and what must
//! not be is refused by its number (RFC 7296 §2.5, §3.10.1, §3.12).

use bewick_ike::TrafficSelector;
use bewick_ike::wire::proposal::encr;
use bewick_ike::wire::{
    ExchangeType, Notify, NotifyType, Payload, Proposal, Protocol, Transform, TransformType,
};

use super::case::Running;
use super::hand::Hand;
use crate::ends::AGREED;
use crate::fail;
use crate::failure::{Context, Result};
use crate::peer::tunnel::Network;
use crate::process;
use crate::topology::Node;

const AUTH: ExchangeType = ExchangeType::IKE_AUTH;
const INFORMATIONAL: ExchangeType = ExchangeType::INFORMATIONAL;
const CREATE: ExchangeType = ExchangeType::CREATE_CHILD_SA;

/// Of a range that nobody has assigned.
const STRANGE: u8 = 200;
/// The SPI of a CHILD_SA that nothing is sent on.
const SPI: u32 = 0x1234_5678;

/// What the peer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// In each exchange a Vendor ID, notifies of unknown types and a payload of an unknown one, that may be
    /// passed over; then one that must not be, in a request.
    Anything,
    /// A payload that must not be passed over, in IKE_SA_INIT.
    CriticalInInit,
    /// One in IKE_AUTH.
    CriticalInAuth,
    /// An error of an unknown type, in the answer to IKE_AUTH.
    ErrorInAnswer,
}

fn notify(kind: u16, data: &[u8]) -> Payload {
    Payload::Notify(Notify::new(NotifyType(kind), data))
}

fn strange(critical: bool) -> Payload {
    Payload::Unknown { kind: STRANGE, critical, data: b"from the future".to_vec() }
}

/// What may be passed over: status types of the IETF's range and of private use, and an error, which means
/// nothing in a request (RFC 7296 §3.10.1).
fn anything() -> Vec<Payload> {
    vec![
        Payload::VendorId(b"somebody else, 7.1".to_vec()),
        notify(40_000, b"status"),
        notify(50_000, b"private"),
        strange(false),
    ]
}

fn with(mut payloads: Vec<Payload>, more: Vec<Payload>) -> Vec<Payload> {
    payloads.extend(more);
    payloads
}

/// What refuses the strange payload.
fn refusal() -> Payload {
    let kind = NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD;
    Payload::Notify(Notify::new(kind, vec![STRANGE]))
}

fn is(said: &[Payload], expected: &[Payload], upon: &str) -> Result<()> {
    match said == expected {
        true => Ok(()),
        false => Err(fail!("upon {upon} bewick said {said:?}, not {expected:?}")),
    }
}

/// SA, TSi and TSr of the CHILD_SA between the sites.
fn child() -> Result<Vec<Payload>> {
    let transforms = vec![
        Transform::encryption(encr::AES_GCM_16, Some(256)),
        Transform::new(TransformType::ESN, 0),
    ];
    let (protocol, spi) = (Protocol::ESP, SPI.to_be_bytes().to_vec());
    let selector = |network: Network| -> Result<TrafficSelector> {
        network.prefix.parse().map_err(|_| fail!("{} is no network", network.prefix))
    };
    Ok(vec![
        Payload::SecurityAssociation(vec![Proposal { number: 1, protocol, spi, transforms }]),
        Payload::TsInitiator(vec![selector(Network::SITE)?]),
        Payload::TsResponder(vec![selector(Network::FIRST)?]),
    ])
}

impl Unknown {
    /// Says it to a bewick, at whichever end that is.
    ///
    /// # Errors
    /// bewick says or has something else than it must.
    pub fn live(self, running: &mut Running<'_>, bewick: Node) -> Result<()> {
        match bewick {
            Node::Gateway => self.to_gateway(running)?,
            _ => self.to_client(running)?,
        }
        has(running, bewick, None).context("at last")
    }

    fn to_gateway(self, running: &mut Running<'_>) -> Result<()> {
        let topology = running.ends.topology;
        let extra = match self {
            Unknown::CriticalInInit => vec![strange(true)],
            _ => anything(),
        };
        let mut hand = match (self, Hand::ask_for_ike_sa(topology, &extra)?) {
            (Unknown::CriticalInInit, Err(said)) => return is(&said, &[refusal()], "IKE_SA_INIT"),
            (Unknown::CriticalInInit, Ok(_)) => {
                return Err(fail!("bewick has answered IKE_SA_INIT in spite of it"));
            }
            (_, Err(said)) => return Err(fail!("bewick has refused IKE_SA_INIT: {said:?}")),
            (_, Ok(hand)) => hand,
        };
        let auth = with(hand.proof(running.case.tunnel.id(Node::Client))?.to_vec(), child()?);
        if self == Unknown::CriticalInAuth {
            let said = hand.ask(AUTH, &with(auth, vec![strange(true)]))?;
            return is(&said, &[refusal()], "IKE_AUTH");
        }
        let said = hand.ask(AUTH, &with(auth, anything()))?;
        hand.proven(&said)?;
        if !said.iter().any(|payload| matches!(payload, Payload::TsResponder(_))) {
            return Err(fail!("bewick has made no CHILD_SA: {said:?}"));
        }
        has(running, Node::Gateway, Some(1)).context("after IKE_AUTH")?;
        passed_over_and_refused(running, &mut hand, Node::Gateway)?;
        let said = hand.ask(INFORMATIONAL, &with(vec![Hand::end()], anything()))?;
        is(&said, &[], "the DELETE")
    }

    fn to_client(self, running: &mut Running<'_>) -> Result<()> {
        let topology = running.ends.topology;
        let name = running.case.tunnel.id(Node::Gateway);
        let extra = anything();
        let client = &mut running.ends.client;
        std::thread::scope(|scope| {
            let hearing = Hand::hear(topology)?;
            let up = scope.spawn(|| client.up());
            let mut hand = Hand::await_ike_sa(hearing, &extra)?;
            let asked = hand.asked(AUTH, 1)?;
            hand.proven(&asked)?;
            let answer = match self {
                Unknown::ErrorInAnswer => vec![notify(4_000, b"error")],
                _ => with(with(hand.proof(name)?.to_vec(), child()?), anything()),
            };
            hand.answer(AUTH, 1, &answer)?;
            let up = up.join().map_err(|_| fail!("who brings it up has died"))?;
            match (self, up) {
                (Unknown::ErrorInAnswer, Ok(())) => {
                    return Err(fail!("the tunnel is up in spite of the error"));
                }
                (Unknown::ErrorInAnswer, Err(_)) => return Ok(None),
                (_, up) => up.context("tunnel up")?,
            }
            Ok(Some(hand))
        })
        .and_then(|hand| match hand {
            Some(hand) => self.with_client(running, hand),
            None => Ok(()),
        })
    }

    fn with_client(self, running: &mut Running<'_>, mut hand: Hand) -> Result<()> {
        has(running, Node::Client, Some(1)).context("after IKE_AUTH")?;
        passed_over_and_refused(running, &mut hand, Node::Client)?;
        std::thread::scope(|scope| {
            let client = &mut running.ends.client;
            let down = scope.spawn(|| client.down());
            let asked = hand.asked(INFORMATIONAL, 2)?;
            is(&asked, &[Hand::end()], "\"bewick down\"")?;
            hand.answer(INFORMATIONAL, 2, &anything())?;
            down.join().map_err(|_| fail!("who takes it down has died"))?.context("tunnel down")
        })
    }
}

/// Requests of an IKE_SA that stands.
fn passed_over_and_refused(running: &mut Running<'_>, hand: &mut Hand, bewick: Node) -> Result<()> {
    let error = notify(4_000, b"error");
    let said = hand.ask(INFORMATIONAL, &with(anything(), vec![error]))?;
    is(&said, &[], "what may be passed over")?;
    let said = hand.ask(INFORMATIONAL, &with(anything(), vec![strange(true)]))?;
    is(&said, &[refusal()], "a critical payload")?;
    let nonce = Payload::Nonce(vec![7; 32]);
    let create = with(with(child()?, vec![nonce]), vec![strange(true)]);
    let said = hand.ask(CREATE, &create)?;
    is(&said, &[refusal()], "a critical payload in CREATE_CHILD_SA")?;
    // Neither has harmed what there was.
    is(&hand.ask(INFORMATIONAL, &[])?, &[], "the question whether bewick is there")?;
    has(running, bewick, Some(1)).context("after what it has refused")
}

/// Waits until bewick has one IKE_SA with this many CHILD_SAs, or none.
fn has(running: &mut Running<'_>, bewick: Node, children: Option<usize>) -> Result<()> {
    process::eventually(AGREED, || {
        let sas = running.ends.at(bewick).sas()?;
        match (sas.as_slice(), children) {
            ([], None) => Ok(()),
            ([sa], Some(children)) if sa.children.len() == children => Ok(()),
            _ => Err(fail!("bewick has {sas:?}")),
        }
    })
}
