//! Numbered packets through the tunnel in both directions, and what became of them.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often each side sends.
pub const PERIOD: Duration = Duration::from_millis(1);
/// Octets in each packet's UDP payload.
const SIZE: usize = 200;
const MAGIC: [u8; 8] = *b"bewick-d";
/// How long a packet may be on its way before it counts as lost.
pub const GRACE: Duration = Duration::from_millis(300);
/// A sender that the machine has held up for longer than this starts afresh instead of catching up.
const HELD_UP: Duration = Duration::from_millis(100);

/// The time since the demo began; all marks of one run are on one such clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Clock(Instant::now())
    }

    /// Time since the beginning.
    pub fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// The packets of one direction: when each was sent and when it arrived, by number.
#[derive(Clone, Debug, Default)]
pub struct Track {
    sent: Vec<Duration>,
    arrived: Vec<Option<Duration>>,
    refused: Option<String>,
}

impl Track {
    fn send(&mut self, at: Duration) -> u64 {
        self.sent.push(at);
        self.arrived.push(None);
        self.sent.len() as u64 - 1
    }

    fn arrive(&mut self, number: u64, at: Duration) {
        let number = usize::try_from(number).ok();
        // Anything else was doubled on its way, or is not ours.
        if let Some(arrived @ None) = number.and_then(|number| self.arrived.get_mut(number)) {
            *arrived = Some(at);
        }
    }

    /// What became of the packets sent from `from` until before `until`.
    pub fn figures(&self, from: Duration, until: Duration) -> Figures {
        let first = self.sent.partition_point(|at| *at < from);
        let last = self.sent.partition_point(|at| *at < until);
        let sent = self.sent.get(first..last).unwrap_or_default();
        let arrived = self.arrived.get(first..last).unwrap_or_default();
        let delivered = arrived.iter().flatten().count();
        let (gap, resumed) = longest_gap(sent, arrived, until);
        let recent = sent.partition_point(|at| *at < until.saturating_sub(RECENT));
        let recent = arrived.get(recent..).unwrap_or_default();
        let recent_delivered = recent.iter().flatten().count();
        Figures {
            sent: sent.len() as u64,
            lost: (arrived.len() - delivered) as u64,
            gap,
            resumed,
            flowing: !recent.is_empty() && recent_delivered * 10 >= recent.len() * 9,
        }
    }

    /// When the first packet arrived, if one did.
    pub fn first_arrival(&self) -> Option<Duration> {
        self.arrived.iter().flatten().min().copied()
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.len() as u64
    }

    /// The last error that the kernel gave for a packet to be sent.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

/// The end of a window in which traffic has to flow for the move to count.
const RECENT: Duration = Duration::from_millis(200);

/// What became of the packets of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// packets sent
    pub sent: u64,
    /// packets that never arrived
    pub lost: u64,
    /// the longest time in which packets were sent and none arrived
    pub gap: Duration,
    /// when that time ended
    pub resumed: Duration,
    /// whether packets arrived at the end of the window
    pub flowing: bool,
}

impl Figures {
    /// The worse of two directions: its packets, and the longer gap.
    pub fn worse(self, other: Figures) -> Figures {
        let (more, less) = if other.lost > self.lost { (other, self) } else { (self, other) };
        let longer = if less.gap > more.gap { less } else { more };
        Figures {
            gap: longer.gap,
            resumed: longer.resumed,
            flowing: more.flowing && less.flowing,
            ..more
        }
    }
}

/// The longest time in which packets were sent and none arrived, and its end.
///
/// It begins with the first packet sent after the last one that arrived, so that a sender that the
/// machine held up makes no gap.
fn longest_gap(
    sent: &[Duration],
    arrived: &[Option<Duration>],
    until: Duration,
) -> (Duration, Duration) {
    let numbered = arrived.iter().enumerate();
    let mut arrivals: Vec<(Duration, usize)> =
        numbered.filter_map(|(number, at)| Some(((*at)?, number))).collect();
    arrivals.sort_unstable();
    let mut longest = (Duration::ZERO, Duration::ZERO);
    let (mut before, mut next) = (Duration::ZERO, 0);
    for (at, number) in arrivals.into_iter().chain([(until, usize::MAX - 1)]) {
        if let Some(missing) = sent.get(next) {
            let gap = at.saturating_sub(before.max(*missing));
            longest = longest.max((gap, at));
        }
        before = at;
        next = next.max(number + 1);
    }
    longest
}

/// Both directions of the numbered packets, sent and received by threads of their own.
#[derive(Debug)]
pub struct Flow {
    up: Arc<Mutex<Track>>,
    down: Arc<Mutex<Track>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// Starts to send from `client` to `target`, where `gateway` listens, and from there back to
    /// where the client's packets came from.
    pub fn start(
        client: UdpSocket,
        gateway: UdpSocket,
        target: SocketAddr,
        clock: Clock,
    ) -> io::Result<Self> {
        let (up, down) = (Arc::<Mutex<Track>>::default(), Arc::<Mutex<Track>>::default());
        let stop = Arc::<AtomicBool>::default();
        let mut flow =
            Flow { up: up.clone(), down: down.clone(), stop: stop.clone(), threads: Vec::new() };
        let to_gateway = Arc::new(Mutex::new(Some(target)));
        // The gateway learns the client's inner address from the client's own packets.
        let to_client = Arc::<Mutex<Option<SocketAddr>>>::default();
        let ends = [
            (client, "client", up.clone(), to_gateway.clone(), down.clone(), to_gateway),
            (gateway, "gateway", down, to_client.clone(), up, to_client),
        ];
        for (socket, name, outgoing, peer, incoming, learnt) in ends {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let receiving = socket.try_clone()?;
            let stopped = stop.clone();
            flow.spawn(format!("{name}-sends"), move || {
                send(&socket, &outgoing, &peer, &stopped, clock);
            })?;
            let stopped = stop.clone();
            flow.spawn(format!("{name}-receives"), move || {
                receive(&receiving, &incoming, &learnt, &stopped, clock);
            })?;
        }
        Ok(flow)
    }

    /// What became of the packets in the window: client to gateway, then gateway to client.
    pub fn figures(&self, from: Duration, until: Duration) -> [Figures; 2] {
        [&self.up, &self.down].map(|track| lock(track).figures(from, until))
    }

    /// Reads the tracks: client to gateway, then gateway to client.
    pub fn tracks(&self) -> [Track; 2] {
        [&self.up, &self.down].map(|track| lock(track).clone())
    }

    /// When packets had arrived in both directions, if they have.
    pub fn both_ways(&self) -> Option<Duration> {
        let up = lock(&self.up).first_arrival()?;
        let down = lock(&self.down).first_arrival()?;
        Some(up.max(down))
    }

    /// Packets sent by the client so far.
    pub fn sent(&self) -> u64 {
        lock(&self.up).sent()
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A sender that panicked has already said so.
            let _ = thread.join();
        }
    }
}

fn send(
    socket: &UdpSocket,
    track: &Mutex<Track>,
    peer: &Mutex<Option<SocketAddr>>,
    stop: &AtomicBool,
    clock: Clock,
) {
    let mut due = clock.now();
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        if let Some(early) = due.checked_sub(now) {
            thread::sleep(early);
        } else if now - due > HELD_UP {
            due = now;
        }
        due += PERIOD;
        let Some(peer) = *lock(peer) else { continue };
        let number = lock(track).send(clock.now());
        // A packet that the kernel refuses is a lost packet like any other.
        if let Err(error) = socket.send_to(&packet(number), peer) {
            lock(track).refused = Some(error.to_string());
        }
    }
}

fn receive(
    socket: &UdpSocket,
    track: &Mutex<Track>,
    peer: &Mutex<Option<SocketAddr>>,
    stop: &AtomicBool,
    clock: Clock,
) {
    let mut buffer = [0; SIZE + 1];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let now = clock.now();
        let Some(number) = buffer.get(..length).and_then(number) else { continue };
        lock(track).arrive(number, now);
        *lock(peer) = Some(from);
    }
}

fn packet(number: u64) -> [u8; SIZE] {
    let mut packet = [0; SIZE];
    packet[..8].copy_from_slice(&MAGIC);
    packet[8..16].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> Option<u64> {
    let (magic, rest) = packet.split_first_chunk::<8>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    (*magic == MAGIC && packet.len() == SIZE).then(|| u64::from_be_bytes(*number))
}

/// A mutex whose holder panicked still holds good marks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A thousand packets, one each millisecond, of which the given ones are lost.
    fn track(lost: std::ops::Range<u64>) -> Track {
        let mut track = Track::default();
        for number in 0..1000 {
            assert_eq!(track.send(ms(number)), number);
            if !lost.contains(&number) {
                track.arrive(number, ms(number));
            }
        }
        track
    }

    #[test]
    fn a_gap_is_the_longest_time_without_an_arrival() {
        let figures = track(300..310).figures(ms(0), ms(1000));
        assert_eq!((figures.sent, figures.lost), (1000, 10));
        assert_eq!((figures.gap, figures.resumed), (ms(10), ms(310)));
        assert!(figures.flowing);
    }

    #[test]
    fn only_packets_of_the_window_count() {
        let figures = track(300..310).figures(ms(400), ms(900));
        assert_eq!((figures.sent, figures.lost, figures.gap), (500, 0, ms(0)));
    }

    #[test]
    fn traffic_that_never_resumes_is_a_gap_to_the_end() {
        let figures = track(300..1000).figures(ms(0), ms(1000));
        assert_eq!((figures.lost, figures.gap), (700, ms(700)));
        assert!(!figures.flowing);
        assert!(!Track::default().figures(ms(0), ms(1000)).flowing);
    }

    #[test]
    fn a_sender_that_was_held_up_makes_no_gap() {
        let mut track = track(0..0);
        let number = track.send(ms(1400));
        track.arrive(number, ms(1402));
        let figures = track.figures(ms(0), ms(1500));
        assert_eq!((figures.lost, figures.gap, figures.resumed), (0, ms(2), ms(1402)));
    }

    #[test]
    fn reordered_and_doubled_packets_are_not_lost() {
        let mut track = track(300..302);
        track.arrive(301, ms(320));
        track.arrive(300, ms(321));
        track.arrive(300, ms(322));
        track.arrive(5000, ms(322));
        let figures = track.figures(ms(0), ms(1000));
        assert_eq!(figures.lost, 0);
        assert_eq!(figures.gap, ms(2));
    }

    #[test]
    fn the_worse_direction_is_told() {
        let [good, bad] = [track(0..0), track(300..310)].map(|t| t.figures(ms(0), ms(1000)));
        assert_eq!(good.worse(bad), bad);
        assert_eq!(bad.worse(good), bad);
        let stuck = Figures { lost: 3, gap: ms(50), resumed: ms(400), flowing: false, ..good };
        let worse = bad.worse(stuck);
        assert_eq!((worse.lost, worse.gap, worse.resumed), (10, ms(50), ms(400)));
        assert!(!worse.flowing);
    }

    #[test]
    fn packets_flow_both_ways_between_two_sockets() {
        let [client, gateway] =
            [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a loopback socket"));
        let target = gateway.local_addr().expect("its address");
        let clock = Clock::start();
        let flow = Flow::start(client, gateway, target, clock).expect("threads");
        while flow.both_ways().is_none() {
            assert!(clock.now() < ms(5000), "nothing arrives");
            thread::sleep(ms(5));
        }
        let from = clock.now();
        thread::sleep(ms(300));
        let until = clock.now();
        thread::sleep(GRACE);
        for figures in flow.figures(from, until) {
            assert_eq!(figures.lost, 0);
            assert!(figures.sent >= 100 && figures.flowing, "{figures:?}");
        }
    }

    #[test]
    fn a_foreign_packet_has_no_number() {
        assert_eq!(number(&packet(7)), Some(7));
        assert_eq!(number(&packet(7)[1..]), None);
        assert_eq!(number(&[0; SIZE]), None);
        assert_eq!(number(&[]), None);
    }
}
