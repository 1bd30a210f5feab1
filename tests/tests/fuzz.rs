//! Hostile datagrams to both roles, at every stage: no panic, no answer that RFC 7296 does not allow, no
//! amplification before authentication, and no memory that grows.
//!
//! `BEWICK_FUZZ` is how many datagrams of each kind go to each stage (100,000 if unset). They come
//! from a seed, so that a failure comes again.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bewick_ike::{
    ConnectionId, Path, Random, Time,
    wire::{ExchangeType, Header, Message, NotifyType},
};
use bewick_mobike::Command;
use bewick_tests::{
    Lab, Node, Plan, Protocol,
    pair::{EndId, Input, Machine, Output},
    puppet::kinds,
    seed::{below, stream},
};

/// Counts the octets in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// How an end stands when the datagrams come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// a gateway that has heard nothing yet
    Gateway,
    /// a gateway that waits for IKE_AUTH
    HalfOpen,
    /// a gateway with a tunnel
    GatewayUp,
    /// a client that waits for the answer to IKE_SA_INIT
    Init,
    /// a client that waits for the answer to IKE_AUTH
    Auth,
    /// a client with a tunnel
    ClientUp,
}

impl Stage {
    fn is_client(self) -> bool {
        matches!(self, Stage::Init | Stage::Auth | Stage::ClientUp)
    }

    fn is_up(self) -> bool {
        matches!(self, Stage::GatewayUp | Stage::ClientUp)
    }
}

/// What kind of datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Random,
    Truncated,
    Flipped,
}

const MOST_IN_MEMORY: usize = 40;

/// The longest unprotected answer that carries no more than a notify of one octet.
const SHORT_ANSWER: usize = 28 + 8 + 1;

fn plan() -> Plan {
    let mut plan = Plan::default();
    // No requests of our own, so that all that comes out is an answer.
    plan.client.liveness = Duration::ZERO;
    plan.gateway.liveness = Duration::ZERO;
    plan
}

/// A lab at that stage; the messages that were sent to the end in question, up to its DELETE.
fn lab_at(stage: Stage) -> (Lab, EndId) {
    let mut lab = Lab::new(plan());
    let up = Command::Up(ConnectionId(0));
    lab.world.command(lab.client, up).expect("its connection");
    let ms = match stage {
        Stage::Gateway | Stage::Init => 0,
        Stage::HalfOpen => 15,
        Stage::Auth => 25,
        Stage::GatewayUp | Stage::ClientUp => 500,
    };
    lab.ms(ms);
    let end = if stage.is_client() { lab.client } else { lab.gateway };
    (lab, end)
}

/// All messages of a life: set-up, a move, DELETE, with the path as the receiver sees it.
fn corpus(to_client: bool) -> Vec<(Path, Vec<u8>)> {
    let mut lab = Lab::new(plan());
    lab.world.net.capture.set_on(true);
    lab.up();
    lab.rest();
    lab.move_to(lab.lte());
    lab.rest();
    let end = if to_client { lab.gateway } else { lab.client };
    lab.world.command(end, Command::Down(ConnectionId(0))).expect("a connection");
    lab.rest();
    let client = ["198.51.100.2", "198.51.100.130"].map(bewick_tests::lab::ip);
    let delivered = lab.world.net.capture.delivered();
    delivered
        .filter(|r| r.datagram.protocol == Protocol::Udp)
        .filter(|r| client.contains(&r.datagram.dst.ip()) == to_client)
        .map(|r| {
            let payload = &r.datagram.payload;
            let message = payload.strip_prefix(&[0; 4]).unwrap_or(payload).to_vec();
            (Path::new(r.datagram.dst, r.datagram.src), message)
        })
        .collect()
}

fn random_datagram(random: &mut Random, corpus: &[(Path, Vec<u8>)]) -> (Path, Vec<u8>) {
    let (path, model) = &corpus[below(random, corpus.len() as u64) as usize];
    let mut bytes = vec![0; below(random, 700) as usize];
    random.fill(&mut bytes);
    // Half of them have a header that leads further in.
    if below(random, 2) == 0 && bytes.len() >= 28 {
        bytes[..28].copy_from_slice(&model[..28]);
        let length = bytes.len() as u32;
        bytes[24..28].copy_from_slice(&length.to_be_bytes());
        if below(random, 2) == 0 {
            bytes[16] = 33 + below(random, 22) as u8;
        }
        // And some of these a first payload that fits.
        if bytes.len() > 32 && below(random, 2) == 0 {
            let length = (bytes.len() - 28) as u16;
            bytes[29] = 0;
            bytes[30..32].copy_from_slice(&length.to_be_bytes());
            bytes[28] = 0;
        }
    }
    (*path, bytes)
}

fn datagram(kind: Kind, random: &mut Random, corpus: &[(Path, Vec<u8>)]) -> (Path, Vec<u8>) {
    if kind == Kind::Random {
        return random_datagram(random, corpus);
    }
    let (path, model) = &corpus[below(random, corpus.len() as u64) as usize];
    let mut bytes = model.clone();
    if kind == Kind::Truncated {
        bytes.truncate(below(random, model.len() as u64) as usize);
        if bytes.len() >= 28 && below(random, 2) == 0 {
            let length = bytes.len() as u32;
            bytes[24..28].copy_from_slice(&length.to_be_bytes());
        }
    } else {
        for _ in 0..1 + below(random, 4) {
            let bit = below(random, bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if bytes == *model {
            bytes[0] ^= 1;
        }
    }
    (*path, bytes)
}

/// What an end said to a datagram; data-plane work and events don't count.
fn feed(node: &mut Node, now: Time, path: Path, bytes: Vec<u8>) -> Vec<(Path, Vec<u8>)> {
    node.handle(now, Input::Datagram { path, bytes });
    outputs(node)
}

fn outputs(node: &mut Node) -> Vec<(Path, Vec<u8>)> {
    let mut said = Vec::new();
    while let Some(output) = node.poll_output() {
        match output {
            Output::Transmit { path, bytes } => said.push((path, bytes)),
            Output::Action { .. } => panic!("the data plane is asked because of a forgery"),
            Output::Event(_) | Output::Count { .. } => {}
        }
    }
    said
}

/// Whether a gateway may say this to a datagram that nobody has authenticated.
fn judge_answer(received: &[u8], path: Path, answer: &(Path, Vec<u8>)) {
    let (to, said) = answer;
    assert_eq!(*to, path, "an answer goes to where the request came from");
    let asked = Header::parse(received).expect("an answer to what is no IKE message");
    let header = Header::parse(said).expect("an IKE message");
    assert!(!asked.flags.response, "a response is never answered");
    assert!(header.flags.response);
    assert_eq!((header.spi_i, header.message_id), (asked.spi_i, asked.message_id));
    assert!(
        said.len() <= received.len().max(SHORT_ANSWER),
        "{} octets for {}",
        said.len(),
        received.len()
    );
    let message = Message::parse(said).expect("a message");
    assert!(message.encrypted.is_none(), "nothing protected for a forgery");
    if asked.version.0 > 2 {
        assert_eq!(kinds(&message.payloads), [NotifyType::INVALID_MAJOR_VERSION]);
    } else if asked.exchange == ExchangeType::IKE_SA_INIT {
        assert_eq!(header.exchange, ExchangeType::IKE_SA_INIT);
    } else {
        assert_eq!(kinds(&message.payloads), [NotifyType::INVALID_IKE_SPI]);
    }
}

/// Datagrams of one kind at one stage; returns how many were answered.
fn storm(stage: Stage, kind: Kind, count: u64) -> u64 {
    let corpus = corpus(stage.is_client());
    let mut random = stream(5, &format!("{stage:?} {kind:?}"));
    let (mut lab, end) = lab_at(stage);
    let mut now = lab.world.now();
    let mut answered = 0;
    let mut asked_again = 0;
    let mut early = None;
    for n in 0..count {
        // A client's handshake ends by itself, or goes on with a forgery that fits: then anew. Its time
        // stands still, for it would give up.
        if matches!(stage, Stage::Init | Stage::Auth) {
            if n % 1000 == 0 {
                lab = lab_at(stage).0;
                now = lab.world.now();
                asked_again = 0;
            }
        } else {
            now = now + Duration::from_millis(1);
        }
        let node = &mut lab.world.end_mut(end).machine;
        while node.next_timeout().is_some_and(|due| due <= now) {
            node.handle(now, Input::Timeout);
            assert!(outputs(node).is_empty() || stage == Stage::HalfOpen);
        }
        let (path, bytes) = datagram(kind, &mut random, &corpus);
        let said = feed(node, now, path, bytes.clone());
        assert!(said.len() <= 1, "{} messages for one", said.len());
        answered += said.len() as u64;
        for answer in &said {
            let version = Header::parse(&bytes).is_ok_and(|h| h.version.0 > 2);
            if stage.is_client() && !version {
                // A client that waits may ask once more, as COOKIE and INVALID_KE_PAYLOAD want it, or
                // believe an IKE_SA_INIT response, which nobody can check yet.
                let header = Header::parse(&answer.1).expect("an IKE message");
                assert!(stage == Stage::Init && !header.flags.response, "{header:?}");
                asked_again += 1;
                assert!(asked_again <= 6, "a client that asks without end");
            } else {
                judge_answer(&bytes, path, answer);
            }
        }
        let len = node.host().len();
        assert!(len <= MOST_IN_MEMORY, "{len} IKE_SAs in memory");
        if n == count / 4 {
            early = Some(IN_USE.load(Ordering::Relaxed));
        }
    }
    let late = IN_USE.load(Ordering::Relaxed);
    let grown = late.saturating_sub(early.unwrap_or(late));
    assert!(grown < 128 * 1024, "{stage:?} {kind:?}: {grown} octets more than after a quarter");
    if !matches!(stage, Stage::Init | Stage::Auth) {
        // When it is over, nothing of it is left and the tunnel stands as before.
        let node = &mut lab.world.end_mut(end).machine;
        let over = now + Duration::from_secs(60);
        while let Some(due) = node.next_timeout().filter(|due| *due <= over) {
            node.handle(due, Input::Timeout);
            outputs(node);
        }
        assert_eq!(node.host().len(), usize::from(stage.is_up()), "{stage:?} {kind:?}");
        assert!(node.host().status().all(|sa| sa.state == "established"));
    }
    answered
}

fn count() -> u64 {
    std::env::var("BEWICK_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

/// All in one, for memory is counted for the whole process.
#[test]
fn k_3_1_hostile_datagrams_cause_no_panic_no_growth_and_no_answer_that_is_not_allowed() {
    let kinds = [Kind::Random, Kind::Truncated, Kind::Flipped];
    let stages = [
        Stage::Gateway,
        Stage::HalfOpen,
        Stage::GatewayUp,
        Stage::Init,
        Stage::Auth,
        Stage::ClientUp,
    ];
    for stage in stages {
        for kind in kinds {
            let answered = storm(stage, kind, count());
            println!("{stage:?} {kind:?}: {answered} answered");
        }
    }
    flood();
}

/// K-2.6-1: IKE_SA_INIT requests from everywhere leave no state beyond the threshold.
fn flood() {
    let corpus = corpus(false);
    let (path, request) = &corpus[0];
    let (mut lab, end) = lab_at(Stage::Gateway);
    let node = &mut lab.world.end_mut(end).machine;
    let mut early = None;
    for n in 0..count() {
        let mut bytes = request.clone();
        bytes[..8].copy_from_slice(&(n + 1).to_be_bytes());
        let mut from = *path;
        from.remote.set_ip(std::net::IpAddr::from((n as u32).to_be_bytes()));
        let now = Time::from_micros(n * 10);
        let said = feed(node, now, from, bytes.clone());
        assert_eq!(said.len(), 1);
        judge_answer(&bytes, from, &said[0]);
        assert!(node.host().len() <= 32);
        if n == count() / 4 {
            early = Some(IN_USE.load(Ordering::Relaxed));
        }
    }
    let late = IN_USE.load(Ordering::Relaxed);
    assert!(late.saturating_sub(early.unwrap_or(late)) < 4096, "stateless");
}
