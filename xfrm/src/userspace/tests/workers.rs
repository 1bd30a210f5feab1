//! Several threads a direction.

use std::{collections::BTreeSet, net::UdpSocket, thread};

use super::*;

const WORKERS: usize = 3;

/// A plane whose device has several queues, and what is written to each.
struct Wide {
    plane: UserspacePlane,
    udp: Arc<UdpSockets>,
    queues: Vec<Arc<Queue>>,
    delivered: Vec<mpsc::Receiver<Vec<u8>>>,
}

fn wide() -> Wide {
    let config = UdpConfig {
        ike_port: 0,
        nat_port: 0,
        bind_v6: None,
        receivers: WORKERS,
        ..UdpConfig::default()
    };
    let (udp, _) = UdpSockets::open(&config).unwrap();
    let (queues, delivered): (Vec<_>, _) = (0..WORKERS).map(|_| queue(Merges::Nothing)).unzip();
    let (device, reason) = ("test0".into(), "test".into());
    let config = UserspaceConfig { device, mtu: 1400, workers: WORKERS, reason };
    let devices = queues.iter().map(|queue| queue.clone() as Arc<dyn Device>).collect();
    let plane = UserspacePlane::with_queues(config, udp.clone(), devices).ok().unwrap();
    Wide { plane, udp, queues, delivered }
}

/// The peer's window may be as small as 32 packets (RFC 4303 §3.4.3), and threads get out of step by more.
#[test]
fn packets_of_one_sa_leave_in_the_order_of_their_numbers_whichever_queue_they_come_from() {
    const ROUNDS: usize = 1000;
    const EACH: usize = 60;
    let Wide { mut plane, udp, queues, delivered: _delivered } = wide();
    let peer = UdpSocket::bind("127.0.0.10:0").unwrap();
    socket2::SockRef::from(&peer).set_recv_buffer_size(212_992).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let local = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 1).into(), udp.nat_port());
    let sa = ChildSa { path: Path::new(local, peer.local_addr().unwrap()), ..child(1) };
    now(plane.install(&sa)).unwrap();
    let mut buffer = [0; 2048];
    let mut last = 0;
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            for queue in &queues {
                scope.spawn(|| (0..EACH).for_each(|number| queue.push(ask(number as u32))));
            }
        });
        for _ in 0..EACH * WORKERS {
            peer.recv(&mut buffer).unwrap();
            let sequence = u32::from_be_bytes(buffer[4..8].try_into().unwrap());
            assert_eq!(sequence, last + 1);
            last = sequence;
        }
    }
    assert_eq!(last as usize, ROUNDS * EACH * WORKERS);
}

/// Each peer's packets come to one thread and so to one queue, in their order; all of them are accepted
/// once.
#[test]
fn peers_are_shared_out_among_the_threads_and_keep_their_order() {
    const PEERS: u64 = 12;
    const EACH: u32 = 50;
    let Wide { mut plane, udp, delivered, queues: _queues } = wide();
    let local = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 1).into(), udp.nat_port());
    let peers: Vec<_> = (1..=PEERS)
        .map(|id| {
            let socket = UdpSocket::bind("127.0.0.10:0").unwrap();
            let path = Path::new(local, socket.local_addr().unwrap());
            let sa = ChildSa { path, ..child(id) };
            now(plane.install(&sa)).unwrap();
            (socket, sa)
        })
        .collect();
    for number in 0..EACH {
        for (socket, sa) in &peers {
            let inner =
                udp_packet("10.1.0.1", "10.9.0.1", (sa.reqid as u16, 7), &number.to_be_bytes());
            let packet = seal_for(sa, u64::from(number) + 1, &inner, NEXT_IPV4);
            socket.send_to(&packet, local).unwrap();
        }
    }
    for (_, sa) in &peers {
        wait_for(|| {
            let counters = now(plane.counters(sa.id)).unwrap();
            (counters.packets_in == u64::from(EACH)).then_some(())
        });
    }
    let mut seen = BTreeSet::new();
    for (lane, delivered) in delivered.iter().enumerate() {
        let mut next = std::collections::BTreeMap::new();
        for packet in delivered.try_iter() {
            let port = u16::from_be_bytes(packet[20..22].try_into().unwrap());
            let number = u32::from_be_bytes(packet[28..32].try_into().unwrap());
            assert_eq!(number, std::mem::replace(next.entry(port).or_insert(0), number + 1));
        }
        for (port, count) in next {
            assert_eq!(count, EACH, "{port} in {lane}");
            assert!(seen.insert(port), "{port} has two threads");
        }
    }
    assert_eq!(seen.len() as u64, PEERS);
}

/// What comes from anywhere else may come to another thread, and be nothing but noise.
#[test]
fn only_the_peers_own_path_keeps_the_replay_window_for_a_batch() {
    let (_client, gateway, sa) = pair(SUITE, false);
    let theirs = mirror(&sa);
    let elsewhere = Path::new(theirs.path.local, "192.0.2.9:4500".parse().unwrap());
    for (path, free) in [(theirs.path, false), (elsewhere, true)] {
        let base = if free { 10 } else { 0 };
        let mut packets: Vec<Vec<u8>> = (1..=3)
            .map(|number| seal_for(&theirs, base + number, &ask(number as u32), NEXT_IPV4))
            .collect();
        packets[1][20] ^= 1;
        let mut looked = 0;
        let batch = packets.iter_mut().enumerate().map(|(at, octets)| {
            // Between two packets of the batch.
            if at > 0 {
                assert_eq!(gateway.plane.is_replay_free(sa.id), free, "{path} {at}");
                looked += 1;
            }
            crate::udp::EspPacket { path, class: 0, octets }
        });
        gateway.plane.sink().esp_batch(0, &mut { batch });
        assert_eq!(looked, 2);
        assert!(gateway.plane.is_replay_free(sa.id));
        assert_eq!((gateway.receive(), gateway.receive()), (ask(1), ask(3)));
    }
}
