//! Frames that are more than one packet, and packets that go out and come in together.

use std::collections::BTreeSet;

use super::{
    super::offload::tests::{Segment, datagram},
    *,
};
use crate::userspace::offload::Layout;

/// A client whose peer is a bare socket, where a test sees every datagram.
fn towards_a_socket() -> (End, std::net::UdpSocket, ChildSa) {
    let mut client = End::new();
    let peer = std::net::UdpSocket::bind("127.0.0.10:0").unwrap();
    // As much as any system allows: a whole round waits here.
    socket2::SockRef::from(&peer).set_recv_buffer_size(212_992).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let path = Path::new(client.at(1), peer.local_addr().unwrap());
    let sa = ChildSa { path, ..child(1) };
    now(client.plane.install(&sa)).unwrap();
    (client, peer, sa)
}

/// Client and gateway whose devices take frames of several packets.
fn merging_pair() -> (End, End, ChildSa) {
    let (mut client, mut gateway) =
        (End::with(None, Merges::TcpAndUdp), End::with(None, Merges::TcpAndUdp));
    let sa = ChildSa { path: Path::new(client.at(1), gateway.at(10)), ..child(1) };
    now(client.plane.install(&sa)).unwrap();
    now(gateway.plane.install(&mirror(&sa))).unwrap();
    (client, gateway, sa)
}

fn tso(number: u32, len: usize) -> (Vnet, Vec<u8>) {
    let data: Vec<u8> = (0..len).map(|place| (place as u32 + number) as u8).collect();
    let packet = Segment::new(true, number, &data).packet();
    let layout = Layout::of(&packet).unwrap();
    (Vnet::merged(&layout, 1000), packet)
}

#[test]
fn a_large_frame_crosses_as_packets_and_is_one_frame_again() {
    for merges in [Merges::Nothing, Merges::TcpAndUdp] {
        let (mut client, mut gateway) = (End::with(None, merges), End::with(None, merges));
        let sa = ChildSa { path: Path::new(client.at(1), gateway.at(10)), ..child(1) };
        now(client.plane.install(&sa)).unwrap();
        now(gateway.plane.install(&mirror(&sa))).unwrap();
        let mut total = 0;
        for round in 0..50 {
            let (vnet, frame) = tso(round * 60_500, 60_500);
            let expected = cut_all(&frame, &vnet);
            client.device.push_frame(vnet, frame);
            for packet in &expected {
                assert_eq!(gateway.receive(), *packet);
            }
            total += expected.len() as u64;
        }
        assert_eq!(total, 50 * 61);
        wait_for(|| (gateway.counters(1).packets_in == total).then_some(()));
        assert_eq!(client.counters(1).packets_out, total);
        assert_eq!(client.counters(1).octets_out, gateway.counters(1).octets_in);
        let merged = gateway.device.merged.load(Relaxed);
        assert_eq!(merged > 0, merges != Merges::Nothing, "{merged} merged");
    }
}

/// Datagrams of one send have one length but the last, and none is put together with another: each
/// arrives as it was sealed, with a sequence number of its own.
#[test]
fn packets_of_mixed_sizes_keep_their_bounds_and_numbers() {
    let (mut client, peer, sa) = towards_a_socket();
    let mut random = Random::from_seed([3; 32]);
    let mut numbers = BTreeSet::new();
    let transform = Transform::new(sa.spi_out, sa.suite, sa.esn, &sa.keys_out).ok().unwrap();
    let mut buffer = vec![0; 4096];
    for round in 0..60u32 {
        let mut expected = Vec::new();
        // The longest runs are longer than what one call may send.
        for number in 0..1 + random.u32() % 3 {
            let len = [1, 36, 36, 200, 500][random.u32() as usize % 5];
            for id in 0..1 + random.u32() % 70 {
                expected.push(datagram(true, id as u16, &vec![(round + number) as u8; len]));
            }
        }
        let mut queue = client.device.state.lock().unwrap();
        queue.outbound.extend(expected.iter().map(|it| (Vnet::default(), it.clone())));
        drop(queue);
        client.device.filled.notify_one();
        for packet in expected {
            let len = peer.recv(&mut buffer).unwrap();
            let sequence = u64::from(u32::from_be_bytes(buffer[4..8].try_into().unwrap()));
            assert!(numbers.insert(sequence), "{sequence} is used twice");
            assert_eq!(numbers.last(), Some(&sequence), "in order");
            let opened = transform.open(sequence, &mut buffer[..len]).unwrap();
            assert_eq!(buffer[opened.payload], packet, "{sequence} {}", numbers.len());
        }
    }
    assert_eq!((numbers.first(), numbers.last()), (Some(&1), Some(&(numbers.len() as u64))));
    let sent = numbers.len() as u64;
    wait_for(|| (client.counters(1).packets_out == sent).then_some(()));
}

#[test]
fn each_traffic_class_goes_out_with_its_own_packets() {
    let (client, gateway, sa) = pair(SUITE, false);
    struct Classes(Mutex<mpsc::Sender<(u8, usize)>>);
    impl EspSink for Classes {
        fn esp(&self, _: Path, class: u8, packet: &mut [u8]) {
            self.0.lock().unwrap().send((class, packet.len())).unwrap();
        }
    }
    let (sender, classes) = mpsc::channel();
    gateway.udp.set_esp_sink(Some(Arc::new(Classes(Mutex::new(sender)))));
    let packet = |class| marked(datagram(true, 1, &[1; 36]), class);
    let all: Vec<u8> = [0, 0, 0xb8, 0xb8, 0xb8, 0, 3, 3, 2].repeat(10);
    let mut queue = client.device.state.lock().unwrap();
    queue.outbound.extend(all.iter().map(|class| (Vnet::default(), packet(*class))));
    drop(queue);
    client.device.filled.notify_one();
    for class in all {
        assert_eq!(classes.recv_timeout(Duration::from_secs(20)).unwrap().0, class);
    }
    drop(sa);
}

#[test]
fn malformed_frames_from_the_device_are_dropped_and_the_next_ones_cross() {
    let (client, gateway, _sa) = pair(SUITE, false);
    let (vnet, frame) = tso(0, 5000);
    let mut dropped = 0;
    for (number, value) in (0..10).flat_map(|place| [0, 1, 5, 0x7f, 0xff].map(|v| (place, v))) {
        let mut octets = vnet.octets();
        octets[number] = value;
        let bad = Vnet::parse(octets);
        if bad.is_big() && Cut::of(&frame, &bad).is_none() {
            dropped += 1;
            client.device.push_frame(bad, frame.clone());
            wait_for(|| (client.plane.drops().not_ip == dropped).then_some(()));
        }
        client.device.push(ask(u32::from(value)));
        assert_eq!(gateway.receive(), ask(u32::from(value)));
    }
    assert!(dropped > 0);
    client.device.push_frame(vnet, frame[..3000].to_vec());
    client.device.push_frame(vnet, Vec::new());
    client.device.push_frame(Vnet::default(), Vec::new());
    client.device.push(ask(1));
    assert_eq!(gateway.receive(), ask(1));
    assert_eq!(client.plane.drops().not_ip, dropped + 3);
}

/// RFC 4303 §3.4.3: each copy is dropped, also where it comes with what it is a copy of.
#[test]
fn copies_within_one_batch_are_dropped() {
    let (client, mut gateway, sa) = merging_pair();
    let view = mirror(&sa);
    let mut expected = Vec::new();
    let mut arena = Vec::new();
    let mut places = Vec::new();
    for sequence in [1, 2, 2, 3, 1, 4, 4, 4, 6, 5] {
        let packet = datagram(true, sequence as u16, &[sequence as u8; 36]);
        let sealed = seal_for(&view, sequence, &packet, NEXT_IPV4);
        places.push(arena.len()..arena.len() + sealed.len());
        arena.extend(&sealed);
        if !expected.contains(&packet) {
            expected.push(packet);
        }
    }
    let len = places[0].len();
    client.udp.send_esp_batch(&sa.path, 0, &arena, &places, len, |_, sent| sent.unwrap());
    for packet in expected {
        assert_eq!(gateway.receive(), packet);
    }
    wait_for(|| (gateway.counters(1).packets_in == 6).then_some(()));
    assert_eq!(gateway.counters(1).rejected, 4);
    assert!(gateway.delivered.try_recv().is_err());
}

#[test]
fn a_move_between_large_frames_loses_nothing() {
    let (mut client, mut gateway, sa) = merging_pair();
    const ROUNDS: u32 = 400;
    let device = client.device.clone();
    let delivered = std::mem::replace(&mut gateway.delivered, mpsc::channel().1);
    let traffic = std::thread::spawn(move || {
        for round in 0..ROUNDS {
            let (vnet, frame) = tso(round * 20_000, 20_000);
            let expected = cut_all(&frame, &vnet);
            device.push_frame(vnet, frame);
            for packet in expected {
                assert_eq!(delivered.recv_timeout(Duration::from_secs(20)), Ok(packet));
            }
        }
    });
    let mut moves = 0u8;
    while !traffic.is_finished() {
        let path = Path::new(client.at(2 + moves % 3), gateway.at(10 + moves % 2));
        let step = |path| ChildMove { id: sa.id, path, encap: true };
        now(client.plane.move_children(&[step(path)])).unwrap();
        std::thread::sleep(Duration::from_micros(300));
        now(gateway.plane.move_children(&[step(Path::new(path.remote, path.local))])).unwrap();
        std::thread::sleep(Duration::from_micros(300));
        moves = moves.wrapping_add(1);
    }
    traffic.join().unwrap();
    assert!(moves > 1, "it moved while packets flowed");
    let total = u64::from(ROUNDS * 20);
    wait_for(|| (gateway.counters(1).packets_in == total).then_some(()));
    assert_eq!(gateway.counters(1).rejected, 0);
    assert!(gateway.counters(1).wrong_path > 0);
}

/// A device that says it takes frames of several packets and then does not.
#[test]
fn a_frame_that_the_device_refuses_is_delivered_packet_by_packet() {
    let (client, mut gateway, _sa) = merging_pair();
    gateway.device.refuses.store(true, Relaxed);
    let (vnet, frame) = tso(9, 30_000);
    let expected = cut_all(&frame, &vnet);
    client.device.push_frame(vnet, frame);
    for packet in &expected {
        assert_eq!(gateway.receive(), *packet);
    }
    wait_for(|| (gateway.counters(1).packets_in == expected.len() as u64).then_some(()));
    assert_eq!(gateway.device.merged.load(Relaxed), 0);
    assert_eq!(gateway.plane.drops().device_failed, 0);
}
