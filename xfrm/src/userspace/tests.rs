//! The whole plane over real UDP sockets on the loopback, with queues in the place of TUN devices.

mod batches;
mod held;
mod workers;

use std::{
    future::Future,
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bewick_ike::{
    ChildId, ChildMove, ChildSa, EspKeys, EspSpi, EspSuite, HmacSha2, Limits, Path, Random, Secret,
    TrafficSelector,
};

use super::{
    ecn::{self, tests::marked},
    esp::{HEADROOM, NEXT_IPV4, NEXT_NONE, TAILROOM, Transform},
    offload::{Cut, Vnet},
    plane::{UserspaceConfig, UserspacePlane},
    selector::tests::udp as udp_packet,
    tun::{Device, Merges, Read},
};
use crate::{
    Counters, DataPlane, PlaneError, PlaneEvent, Since,
    udp::{EspSink, UdpConfig, UdpSockets},
};

const SUITE: EspSuite = EspSuite::AesGcm16 { key_bits: 128 };

fn keys(suite: EspSuite, seed: u8) -> EspKeys {
    EspKeys {
        encryption: Secret::new(vec![seed; suite.encryption_key_len()]),
        integrity: Secret::new(vec![seed ^ 0xff; suite.integrity_key_len()]),
    }
}

/// A CHILD_SA that differs from others in its number alone.
pub(super) fn child(id: u64) -> ChildSa {
    ChildSa {
        id: ChildId(id),
        reqid: id as u32,
        spi_in: EspSpi(0x1000 + id as u32),
        spi_out: EspSpi(0x2000 + id as u32),
        mode: Default::default(),
        suite: SUITE,
        esn: false,
        keys_in: keys(SUITE, 1),
        keys_out: keys(SUITE, 2),
        ts_local: vec![TrafficSelector::from_net("10.9.0.0/24".parse().unwrap())],
        ts_remote: vec![TrafficSelector::from_net("10.1.0.0/16".parse().unwrap())],
        path: Path::new("192.0.2.1:4500".parse().unwrap(), "192.0.2.2:4500".parse().unwrap()),
        encap: true,
        virtual_ips: Vec::new(),
        waits: false,
        limits: Default::default(),
        carriage: Default::default(),
    }
}

/// Resolves what a plane answers at once.
fn now<T>(answer: impl Future<Output = T>) -> T {
    match pin!(answer).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the userspace plane never waits"),
    }
}

fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[derive(Default)]
struct QueueState {
    outbound: std::collections::VecDeque<(Vnet, Vec<u8>)>,
    stopped: bool,
}

/// In the place of a TUN device.
struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
    delivered: mpsc::Sender<Vec<u8>>,
    merges: Merges,
    /// frames that were written in one piece
    merged: AtomicU64,
    /// no frame is taken in one piece, whatever `merges` says
    refuses: AtomicBool,
}

impl Queue {
    fn push(&self, packet: Vec<u8>) {
        self.push_frame(Vnet::default(), packet);
    }

    fn push_frame(&self, vnet: Vnet, packet: Vec<u8>) {
        self.state.lock().unwrap().outbound.push_back((vnet, packet));
        self.filled.notify_one();
    }
}

impl Device for Queue {
    fn read(&self, buffer: &mut [u8], wait: bool) -> io::Result<Read> {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.stopped {
                return Ok(Read::Stopped);
            }
            if let Some((vnet, packet)) = state.outbound.pop_front() {
                buffer[..packet.len()].copy_from_slice(&packet);
                return Ok(Read::Frame(vnet, packet.len()));
            }
            if !wait {
                return Ok(Read::Nothing);
            }
            state = self.filled.wait(state).unwrap();
        }
    }

    fn write(&self, frame: &[IoSlice<'_>]) -> io::Result<()> {
        let (vnet, pieces) = frame.split_first().unwrap();
        let vnet = Vnet::parse(vnet[..].try_into().unwrap());
        let packet: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        if !vnet.is_big() {
            let _ = self.delivered.send(packet);
            return Ok(());
        }
        if self.refuses.load(Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // Cut again, as the kernel does, so that a test sees the packets that a host sees.
        self.merged.fetch_add(1, Relaxed);
        for packet in cut_all(&packet, &vnet) {
            let _ = self.delivered.send(packet);
        }
        Ok(())
    }

    fn merges(&self) -> Merges {
        self.merges
    }

    fn stop(&self) {
        self.state.lock().unwrap().stopped = true;
        self.filled.notify_all();
    }
}

/// All packets that a frame is made of.
fn cut_all(frame: &[u8], vnet: &Vnet) -> Vec<Vec<u8>> {
    let cut = Cut::of(frame, vnet).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let packet = |index| cut.packet(frame, index, &mut buffer).map(|len| buffer[..len].to_vec());
    (0..).map_while(packet).collect()
}

/// An empty one, and what is written to it.
fn queue(merges: Merges) -> (Arc<Queue>, mpsc::Receiver<Vec<u8>>) {
    let (sender, delivered) = mpsc::channel();
    let queue = Queue {
        state: Mutex::default(),
        filled: Condvar::new(),
        delivered: sender,
        merges,
        merged: AtomicU64::new(0),
        refuses: AtomicBool::new(false),
    };
    (Arc::new(queue), delivered)
}

struct End {
    plane: UserspacePlane,
    udp: Arc<UdpSockets>,
    device: Arc<Queue>,
    delivered: mpsc::Receiver<Vec<u8>>,
}

impl End {
    fn new() -> End {
        End::with_ipv6(None)
    }

    fn with_ipv6(bind_v6: Option<Ipv6Addr>) -> End {
        End::with(bind_v6, Merges::Nothing)
    }

    fn with(bind_v6: Option<Ipv6Addr>, merges: Merges) -> End {
        let config = UdpConfig { ike_port: 0, nat_port: 0, bind_v6, ..UdpConfig::default() };
        let (udp, _) = UdpSockets::open(&config).unwrap();
        let (device, delivered) = queue(merges);
        let (name, reason) = ("test0".into(), "test".into());
        let config = UserspaceConfig { device: name, mtu: 1400, workers: 1, reason };
        let queues: Vec<Arc<dyn Device>> = vec![device.clone()];
        let plane = UserspacePlane::with_queues(config, udp.clone(), queues).ok().unwrap();
        End { plane, udp, device, delivered }
    }

    /// `127.0.0.1` and, if the machine has it, `::1` on our NAT port.
    fn loopbacks(&self) -> Vec<SocketAddr> {
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), self.udp.nat_port());
        let v6 = self.udp.has_ipv6().then_some(v6);
        [Some(self.at(1)), v6].into_iter().flatten().collect()
    }

    /// `127.0.0.host` on our NAT port; the whole of 127/8 is local.
    fn at(&self, host: u8) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host)), self.udp.nat_port())
    }

    fn receive(&self) -> Vec<u8> {
        self.delivered.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn counters(&mut self, id: u64) -> Counters {
        now(self.plane.counters(ChildId(id))).unwrap()
    }
}

/// The peer's view of `sa`.
fn mirror(sa: &ChildSa) -> ChildSa {
    ChildSa {
        spi_in: sa.spi_out,
        spi_out: sa.spi_in,
        keys_in: sa.keys_out.clone(),
        keys_out: sa.keys_in.clone(),
        ts_local: sa.ts_remote.clone(),
        ts_remote: sa.ts_local.clone(),
        path: Path::new(sa.path.remote, sa.path.local),
        ..sa.clone()
    }
}

/// Client and gateway with one CHILD_SA between 127.0.0.1 and 127.0.0.10.
fn pair(suite: EspSuite, esn: bool) -> (End, End, ChildSa) {
    let (mut client, mut gateway) = (End::new(), End::new());
    let sa = ChildSa {
        suite,
        esn,
        keys_in: keys(suite, 5),
        keys_out: keys(suite, 6),
        path: Path::new(client.at(1), gateway.at(10)),
        ..child(1)
    };
    now(client.plane.install(&sa)).unwrap();
    now(gateway.plane.install(&mirror(&sa))).unwrap();
    (client, gateway, sa)
}

fn ask(number: u32) -> Vec<u8> {
    udp_packet("10.9.0.1", "10.1.0.1", (1000, 7), &number.to_be_bytes())
}

fn answer(number: u32) -> Vec<u8> {
    udp_packet("10.1.0.1", "10.9.0.1", (7, 1000), &number.to_be_bytes())
}

/// An ESP packet as the peer of `sa`'s owner would seal it.
fn seal_for(sa: &ChildSa, sequence: u64, payload: &[u8], next_header: u8) -> Vec<u8> {
    let transform = Transform::new(sa.spi_in, sa.suite, sa.esn, &sa.keys_in).ok().unwrap();
    let mut buffer = vec![0; HEADROOM + payload.len() + TAILROOM];
    let place = HEADROOM..HEADROOM + payload.len();
    buffer[place.clone()].copy_from_slice(payload);
    let packet = transform.seal(sequence, &mut buffer, place, next_header).unwrap();
    buffer[packet].to_vec()
}

#[test]
fn packets_cross_in_both_directions_with_every_suite() {
    let cbc = EspSuite::AesCbc { key_bits: 256, integrity: HmacSha2::Sha256 };
    for (suite, esn) in [
        (SUITE, false),
        (SUITE, true),
        (EspSuite::AesGcm16 { key_bits: 192 }, true),
        (EspSuite::ChaCha20Poly1305, false),
        (cbc, false),
        (cbc, true),
    ] {
        let (mut client, mut gateway, _) = pair(suite, esn);
        for number in 0..20 {
            client.device.push(ask(number));
            assert_eq!(gateway.receive(), ask(number));
            gateway.device.push(answer(number));
            assert_eq!(client.receive(), answer(number));
        }
        let octets = 20 * ask(0).len() as u64;
        let expected = Counters {
            octets_in: octets,
            octets_out: octets,
            packets_in: 20,
            packets_out: 20,
            ..Counters::default()
        };
        // A packet is counted once the device has it.
        wait_for(|| (client.counters(1) == expected).then_some(()));
        wait_for(|| (gateway.counters(1) == expected).then_some(()));
    }
}

#[test]
fn a_planned_move_loses_nothing() {
    let (mut client, mut gateway, sa) = pair(SUITE, false);
    const COUNT: u32 = 5000;
    let device = client.device.clone();
    let delivered = std::mem::replace(&mut gateway.delivered, mpsc::channel().1);
    // Few packets at a time, so that a slow machine does not overflow a socket's buffer.
    let traffic = std::thread::spawn(move || {
        for number in 0..COUNT + 16 {
            if number < COUNT {
                device.push(ask(number));
            }
            if let Some(number) = number.checked_sub(16) {
                let got = delivered.recv_timeout(Duration::from_secs(20));
                assert_eq!(got, Ok(ask(number)));
            }
        }
    });
    let mut round = 0u8;
    while !traffic.is_finished() {
        let path = Path::new(client.at(2 + round % 3), gateway.at(10 + round % 2));
        let step = |path| ChildMove { id: sa.id, path, encap: true };
        now(client.plane.move_children(&[step(path)])).unwrap();
        assert_eq!(client.plane.path(sa.id), Some(path));
        std::thread::sleep(Duration::from_micros(500));
        let back = Path::new(path.remote, path.local);
        now(gateway.plane.move_children(&[step(back)])).unwrap();
        std::thread::sleep(Duration::from_micros(500));
        round = round.wrapping_add(1);
    }
    traffic.join().unwrap();
    assert!(round > 1, "it moved while packets flowed");
    wait_for(|| (gateway.counters(1).packets_in == u64::from(COUNT)).then_some(()));
    let counters = gateway.counters(1);
    assert_eq!(counters.rejected, 0);
    assert!(counters.wrong_path > 0);
    assert_eq!(client.counters(1).packets_out, u64::from(COUNT));
}

#[test]
fn m_3_12_a_packet_from_another_path_is_accepted_and_reported() {
    let (client, mut gateway, sa) = pair(SUITE, false);
    let mut events = gateway.plane.take_events().unwrap();
    assert!(gateway.plane.take_events().is_none());
    let view = mirror(&sa);
    for sequence in 1..=3 {
        let packet = seal_for(&view, sequence, &ask(sequence as u32), 4);
        let path = Path::new(client.at(9), gateway.at(10));
        client.udp.send_esp(&path, 0, &packet).unwrap();
        assert_eq!(gateway.receive(), ask(sequence as u32));
    }
    assert_eq!(gateway.counters(1).wrong_path, 3);
    let seen = client.at(9);
    assert_eq!(events.try_recv(), Ok(PlaneEvent::Mapping { id: sa.id, seen }));
    assert!(events.try_recv().is_err(), "one event a second");
    assert_eq!(gateway.plane.path(sa.id), Some(view.path));
}

#[test]
fn replays_forgeries_and_foreign_selectors_are_rejected() {
    let (client, mut gateway, sa) = pair(SUITE, false);
    let view = mirror(&sa);
    let path = sa.path;
    let inject = |packet: &[u8]| client.udp.send_esp(&path, 0, packet).unwrap();

    let good = seal_for(&view, 1, &ask(1), 4);
    inject(&good);
    assert_eq!(gateway.receive(), ask(1));
    inject(&good);
    let mut forged = seal_for(&view, 2, &ask(2), 4);
    *forged.last_mut().unwrap() ^= 1;
    inject(&forged);
    inject(&seal_for(&view, 3, &answer(3), 4));
    inject(&seal_for(&view, 4, &ask(4), 41));
    inject(&seal_for(&view, 5, &ask(5), 17));
    inject(&seal_for(&view, 6, &ask(6)[..10], 4));
    inject(&seal_for(&view, 0, &ask(0), 4));
    inject(&seal_for(&view, 7, &[0; 40], NEXT_NONE));
    inject(&seal_for(&ChildSa { spi_in: EspSpi(0x7777), ..view.clone() }, 8, &ask(8), 4));
    // Traffic-flow padding (RFC 4303 §2.7) is cut off.
    inject(&seal_for(&view, 2, &[ask(2), vec![0; 99]].concat(), 4));
    assert_eq!(gateway.receive(), ask(2));
    assert!(gateway.delivered.try_recv().is_err());
    wait_for(|| (gateway.counters(1).packets_in == 2).then_some(()));
    assert_eq!(gateway.counters(1).rejected, 7);
    let drops = gateway.plane.drops();
    assert_eq!((drops.dummies, drops.unknown_spi), (1, 1));
}

#[test]
fn genuine_packets_alone_count_as_arrivals() {
    let (mut client, _gateway, sa) = pair(SUITE, false);
    let path = sa.path;
    let comes = |plane: &mut UserspacePlane, sequence, forged: bool| {
        let mut packet = seal_for(&sa, sequence, &answer(1), NEXT_IPV4);
        packet[20] ^= u8::from(forged);
        plane.sink().esp(path, 0, &mut packet);
        plane.since_mark(sa.id)
    };
    assert_eq!(comes(&mut client.plane, 1, false), None);
    client.plane.mark(sa.id);
    client.plane.mark(ChildId(9));
    assert_eq!(client.plane.since_mark(ChildId(9)), None);
    std::thread::sleep(Duration::from_millis(30));
    let forged = comes(&mut client.plane, 100, true).unwrap();
    let copy = comes(&mut client.plane, 1, false).unwrap();
    assert_eq!([forged, copy], [Since::default(); 2]);
    let genuine = comes(&mut client.plane, 4, false).unwrap();
    assert!(genuine.longest_gap >= Duration::from_millis(30), "{genuine:?}");
    assert_eq!(genuine.lost, 2);
    // A move changes nothing of it.
    let step = ChildMove { id: sa.id, path: Path::new(client.at(2), path.remote), encap: true };
    now(client.plane.move_children(&[step])).unwrap();
    assert_eq!(client.plane.since_mark(sa.id), Some(genuine));
}

#[test]
fn outbound_packets_without_an_sa_are_dropped_and_counted() {
    let (mut client, gateway, sa) = pair(SUITE, false);
    client.device.push(answer(1));
    client.device.push(vec![0; 40]);
    client.device.push(ask(1));
    assert_eq!(gateway.receive(), ask(1));
    now(client.plane.remove(sa.id)).unwrap();
    now(client.plane.remove(sa.id)).unwrap();
    client.device.push(ask(2));
    wait_for(|| (client.plane.drops().no_sa == 2).then_some(()));
    assert_eq!(client.plane.drops().not_ip, 1);
    assert!(gateway.delivered.try_recv().is_err());
    assert!(matches!(now(client.plane.counters(sa.id)), Err(PlaneError::UnknownChild(_))));
}

#[test]
fn what_the_plane_cannot_carry_is_refused_whole() {
    let (mut client, _gateway, sa) = pair(SUITE, false);
    assert!(client.plane.needs_encap());
    let second = ChildSa { path: sa.path, ..child(2) };
    let plain = ChildSa { encap: false, ..second.clone() };
    assert!(matches!(now(client.plane.install(&plain)), Err(PlaneError::Unsupported(_))));
    let mut other_port = second.clone();
    other_port.path.local.set_port(1);
    assert!(matches!(now(client.plane.install(&other_port)), Err(PlaneError::Unsupported(_))));
    now(client.plane.install(&second)).unwrap();

    let new = Path::new(client.at(3), sa.path.remote);
    let step = |id| ChildMove { id: ChildId(id), path: new, encap: true };
    let plain = ChildMove { encap: false, ..step(2) };
    assert!(now(client.plane.move_children(&[step(1), plain])).is_err());
    assert!(now(client.plane.move_children(&[step(1), step(3)])).is_err());
    assert_eq!(client.plane.path(ChildId(1)), Some(sa.path));
    let report = now(client.plane.move_children(&[step(1), step(2)])).unwrap();
    assert_eq!(report.requests, 0);
    assert_eq!(client.plane.path(ChildId(2)), Some(new));
}

#[test]
fn random_octets_do_nothing() {
    let (_client, mut gateway, sa) = pair(SUITE, true);
    let mut random = Random::from_seed([7; 32]);
    let spi = sa.spi_out.0.to_be_bytes();
    let good = seal_for(&mirror(&sa), 1, &ask(1), 4);
    let path = Path::new(sa.path.remote, sa.path.local);
    for round in 0..100_000 {
        let len = random.u32() as usize % 200;
        let mut packet = vec![0; len];
        random.fill(&mut packet);
        match round % 3 {
            0 => {}
            1 => packet.iter_mut().zip(spi).for_each(|(octet, spi)| *octet = spi),
            _ => {
                packet = good.clone();
                let bit = random.u32() as usize % (packet.len() * 8);
                packet[bit / 8] ^= 1 << (bit % 8);
                packet.truncate(random.u32() as usize % (packet.len() + 1));
            }
        }
        gateway.plane.sink().esp(path, 0, &mut packet);
    }
    let counters = gateway.counters(1);
    assert_eq!((counters.packets_in, counters.wrong_path), (0, 0));
    assert_eq!(counters.rejected + gateway.plane.drops().unknown_spi, 100_000);
    assert!(gateway.delivered.try_recv().is_err());
}

#[test]
fn an_sa_at_its_end_says_so_and_stops() {
    let (mut client, gateway, sa) = pair(SUITE, false);
    let mut events = client.plane.take_events().unwrap();
    client.plane.set_sequence(sa.id, 0xefff_ffff);
    client.device.push(ask(1));
    assert_eq!(gateway.receive(), ask(1));
    assert_eq!(events.try_recv(), Ok(PlaneEvent::Expire { id: sa.id, hard: false }));
    client.plane.set_sequence(sa.id, 0xffff_fffe);
    client.device.push(ask(2));
    client.device.push(ask(3));
    assert_eq!(gateway.receive(), ask(2));
    wait_for(|| (client.plane.drops().exhausted == 1).then_some(()));
    assert_eq!(events.try_recv(), Ok(PlaneEvent::Expire { id: sa.id, hard: true }));
    assert!(gateway.delivered.try_recv().is_err());
}

#[test]
fn a_full_queue_delays_the_word_that_a_limit_is_reached() {
    const COUNT: u64 = 300;
    let (mut client, gateway) = (End::new(), End::new());
    let mut events = client.plane.take_events().unwrap();
    let device = client.device.clone();
    let host = |id: u64| format!("10.1.{}.{}", id / 256, id % 256);
    let push = |id: u64| device.push(udp_packet("10.9.0.1", &host(id), (1000, 7), b"ask"));
    for id in 1..=COUNT {
        let sa = ChildSa {
            ts_remote: vec![TrafficSelector::from_addr(host(id).parse().unwrap())],
            path: Path::new(client.at(1), gateway.at(10)),
            limits: Limits { packets: Some(1), octets: None },
            ..child(id)
        };
        now(client.plane.install(&sa)).unwrap();
        push(id);
    }
    // The queue is full now. Any packet brings the rest once there is room, even one that nobody
    // carries.
    wait_for(|| (client.counters(COUNT).packets_out == 1).then_some(()));
    let mut told = std::collections::BTreeSet::new();
    while told.len() < COUNT as usize {
        let PlaneEvent::Expire { id, hard: false } = wait_for(|| {
            push(COUNT + 1);
            events.try_recv().ok()
        }) else {
            panic!("nothing else happened")
        };
        assert!(told.insert(id), "{id:?} is told twice");
    }
}

#[test]
fn shutdown_ends_everything_at_once() {
    let (mut client, gateway, sa) = pair(SUITE, false);
    let start = Instant::now();
    now(client.plane.shutdown()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(client.plane.path(sa.id), None);
    let path = Path::new(sa.path.remote, sa.path.local);
    gateway.udp.send_esp(&path, 0, &seal_for(&sa, 1, &answer(1), 4)).unwrap();
    wait_for(|| (client.udp.counters().esp_dropped == 1).then_some(()));
    let device = Arc::downgrade(&client.device);
    drop(client);
    assert!(device.upgrade().is_none(), "nothing holds the device");
}

/// Client and gateway with a CHILD_SA for both families between each of their loopback addresses.
fn pairs_of_both_families() -> (End, End, Vec<ChildSa>) {
    let loopback = Some(Ipv6Addr::LOCALHOST);
    let (mut client, mut gateway) = (End::with_ipv6(loopback), End::with_ipv6(loopback));
    let mut all = Vec::new();
    for (id, (local, remote)) in (1..).zip(client.loopbacks().into_iter().zip(gateway.loopbacks()))
    {
        let sa = child(id);
        let nets = |v4: &TrafficSelector, v6: &str| {
            vec![*v4, TrafficSelector::from_net(v6.parse().unwrap())]
        };
        let sa = ChildSa {
            ts_local: nets(&sa.ts_local[0], "2001:db8:9::/64"),
            ts_remote: nets(&sa.ts_remote[0], "2001:db8:1::/64"),
            path: Path::new(local, remote),
            ..sa
        };
        now(gateway.plane.install(&mirror(&sa))).unwrap();
        all.push(sa);
    }
    now(client.plane.install(&all[0])).unwrap();
    (client, gateway, all)
}

/// An inner packet of each family from the client's side.
fn asks() -> [Vec<u8>; 2] {
    [ask(1), udp_packet("2001:db8:9::1", "2001:db8:1::1", (1000, 7), b"ask")]
}

/// RFC 6040 §4.1.
#[test]
fn k_2_24_ecn_and_dscp_of_the_inner_packet_are_seen_on_the_outer_one() {
    struct Classes(Mutex<mpsc::Sender<u8>>);
    impl EspSink for Classes {
        fn esp(&self, _: Path, class: u8, _: &mut [u8]) {
            self.0.lock().unwrap().send(class).unwrap();
        }
    }
    let (mut client, gateway, all) = pairs_of_both_families();
    let (sender, classes) = mpsc::channel();
    gateway.udp.set_esp_sink(Some(Arc::new(Classes(Mutex::new(sender)))));
    for sa in all {
        let step = ChildMove { id: ChildId(1), path: sa.path, encap: true };
        now(client.plane.move_children(&[step])).unwrap();
        for inner in asks() {
            for class in [0, 1, 2, 3, 0xb8, 0xbb, 0xff, 0] {
                client.device.push(marked(inner.clone(), class));
                assert_eq!(classes.recv_timeout(Duration::from_secs(20)), Ok(class));
            }
        }
    }
}

/// RFC 6040 §4.2: every mark that a router on the way may set, over each outer family.
#[test]
fn k_2_24_a_mark_set_on_the_way_arrives_inside() {
    let (client, mut gateway, all) = pairs_of_both_families();
    let mut dropped = 0;
    for sa in all {
        for (round, inner) in asks().into_iter().enumerate() {
            for mark in 0..16u8 {
                // Another DSCP outside than inside.
                let (inside, outside) = (0x28 | mark >> 2, 0xb8 | mark & 3);
                let packet = marked(inner.clone(), inside);
                let sequence = 1 + round as u64 * 16 + u64::from(mark);
                let sealed = seal_for(&mirror(&sa), sequence, &packet, [4, 41][round]);
                client.udp.send_esp(&sa.path, outside, &sealed).unwrap();
                let expected = match (inside & 3, outside & 3) {
                    (0, 3) => {
                        dropped += 1;
                        continue;
                    }
                    (0, _) => 0,
                    (inner, 0) => inner,
                    (3, _) | (_, 3) => 3,
                    (2, 2) => 2,
                    _ => 1,
                };
                let got = gateway.receive();
                assert_eq!(ecn::traffic_class(&got), 0x28 | expected, "{mark:04b}");
                assert_eq!(got, marked(inner.clone(), 0x28 | expected));
            }
        }
        wait_for(|| (gateway.plane.drops().ecn == dropped).then_some(()));
        wait_for(|| (gateway.counters(sa.id.0).packets_in == 30).then_some(()));
        assert_eq!(gateway.counters(sa.id.0).rejected, 0);
    }
    assert!(gateway.delivered.try_recv().is_err());
}
