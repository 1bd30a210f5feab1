use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use super::*;

fn local_config() -> UdpConfig {
    UdpConfig {
        ike_port: 0,
        nat_port: 0,
        bind_v4: Ipv4Addr::LOCALHOST,
        bind_v6: None,
        ..UdpConfig::default()
    }
}

fn on(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "nothing came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Collect(Mutex<Vec<(Path, u8, Vec<u8>)>>);

impl EspSink for Collect {
    fn esp(&self, path: Path, class: u8, packet: &mut [u8]) {
        self.0.lock().unwrap().push((path, class, packet.to_vec()));
    }
}

#[test]
fn u_2_2_ike_on_the_nat_port_has_the_marker_on_the_wire_only() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, mut ike) = UdpSockets::open(&local_config()).unwrap();
    let message: Vec<u8> = (1..=40).collect();

    for (from, to) in [(a.ike_port(), b.ike_port()), (a.nat_port(), b.nat_port())] {
        let path = Path::new(on(from), on(to));
        a.send_ike(&path, &message).unwrap();
        let got = wait_for(|| ike.try_recv().ok());
        assert_eq!(got.bytes, message);
        assert_eq!(got.path, Path::new(on(to), on(from)));
        assert_ne!(got.ifindex, 0);
    }

    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = Path::new(on(a.nat_port()), plain.local_addr().unwrap());
    a.send_ike(&path, &message).unwrap();
    let mut buffer = [1; 100];
    let (len, _) = plain.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..len], [&[0; 4], &message[..]].concat());
}

#[test]
fn u_2_esp_keepalives_and_rubbish_are_told_apart() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, mut ike) = UdpSockets::open(&local_config()).unwrap();
    let path = Path::new(on(a.nat_port()), on(b.nat_port()));

    a.send_esp(&path, 0, &[7; 60]).unwrap();
    wait_for(|| (b.counters().esp_dropped == 1).then_some(()));

    let sink = Arc::new(Collect(Mutex::default()));
    b.set_esp_sink(Some(sink.clone()));
    a.send_esp(&path, 0, &[8; 60]).unwrap();
    let got = wait_for(|| sink.0.lock().unwrap().pop());
    assert_eq!(got, (Path::new(path.remote, path.local), 0, vec![8; 60]));

    a.send_keepalive(&path).unwrap();
    a.send_esp(&path, 0, &[]).unwrap();
    a.send_esp(&path, 0, &[9; 19]).unwrap();
    a.send_ike(&path, &[1; 27]).unwrap();
    wait_for(|| (b.counters().malformed == 3).then_some(()));
    assert_eq!(b.counters().keepalives_in, 1);
    assert!(ike.try_recv().is_err());
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, mut ike) = UdpSockets::open(&UdpConfig { queue: 2, ..local_config() }).unwrap();
    for _ in 0..5 {
        a.send_ike(&Path::new(on(a.ike_port()), on(b.ike_port())), &[1; 28]).unwrap();
    }
    wait_for(|| (b.counters().ike_dropped == 3).then_some(()));
    assert!(ike.try_recv().is_ok() && ike.try_recv().is_ok() && ike.try_recv().is_err());
}

#[test]
fn the_threads_end_at_once() {
    for bind_v6 in [None, Some(Ipv6Addr::UNSPECIFIED)] {
        let config = UdpConfig { bind_v6, ..local_config() };
        let (udp, mut ike) = UdpSockets::open(&config).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        drop(udp);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(ike.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}

#[test]
fn a_port_in_use_is_named() {
    let (a, _ike) = UdpSockets::open(&local_config()).unwrap();
    let config = UdpConfig { ike_port: a.ike_port(), ..local_config() };
    let error = UdpSockets::open(&config).err().unwrap();
    assert!(matches!(error, UdpError::InUse { port, .. } if port == a.ike_port()));
    assert!(error.to_string().contains(&a.ike_port().to_string()));
}

/// Receivers share a port among themselves, and with nobody else.
#[test]
fn a_port_with_several_receivers_is_still_taken_once() {
    let config = UdpConfig { receivers: 3, ..local_config() };
    let (a, _ike) = UdpSockets::open(&config).unwrap();
    let config = UdpConfig { nat_port: a.nat_port(), ..config };
    for receivers in [1, 3] {
        let error = UdpSockets::open(&UdpConfig { receivers, ..config.clone() }).err().unwrap();
        assert!(matches!(error, UdpError::InUse { port, .. } if port == a.nat_port()));
    }
    // When it is dropped the port is free at once, for any number.
    drop(a);
    for receivers in [1, 3, 1] {
        UdpSockets::open(&UdpConfig { receivers, ..config.clone() }).unwrap();
    }
}

#[test]
fn bad_paths_are_errors() {
    let (a, _ike) = UdpSockets::open(&local_config()).unwrap();
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), a.ike_port());
    let not_ours: SocketAddr = "192.0.2.77:0".parse().unwrap();
    let gone = SocketAddr::new(not_ours.ip(), a.ike_port());
    for path in [
        Path::new(on(1), on(2)),
        Path::new(v6, v6),
        Path::new(on(a.ike_port()), v6),
        Path::new(gone, on(a.ike_port())),
    ] {
        assert!(a.send_ike(&path, &[1; 28]).is_err(), "{path}");
    }
    assert_eq!(a.counters().send_errors, 4);
}

#[test]
fn an_interface_index_is_used() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, mut ike) = UdpSockets::open(&local_config()).unwrap();
    let path = Path::new(on(a.ike_port()), on(b.ike_port()));
    a.send_ike(&path, &[1; 28]).unwrap();
    let lo = wait_for(|| ike.try_recv().ok()).ifindex;
    a.set_interfaces(BTreeMap::from([(path.local.ip(), lo)]));
    a.send_ike(&path, &[1; 28]).unwrap();
    wait_for(|| ike.try_recv().ok());
    a.set_interfaces(BTreeMap::from([(path.local.ip(), 0x7fff_ffff)]));
    assert!(a.send_ike(&path, &[1; 28]).is_err());
}

#[test]
fn ipv6_uses_the_same_port() {
    let config = UdpConfig { bind_v6: Some(Ipv6Addr::LOCALHOST), ..local_config() };
    let (a, mut ike) = UdpSockets::open(&config).unwrap();
    if !a.has_ipv6() {
        assert!(a.notes().iter().any(|note| note.contains("IPv6")));
        return;
    }
    let end = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), a.nat_port());
    a.send_ike(&Path::new(end, end), &[5; 28]).unwrap();
    let got = wait_for(|| ike.try_recv().ok());
    assert_eq!((got.path, got.bytes), (Path::new(end, end), vec![5; 28]));
}

#[test]
fn a_traffic_class_goes_with_esp_and_no_further() {
    let config = UdpConfig { bind_v6: Some(Ipv6Addr::LOCALHOST), ..local_config() };
    let (a, mut ike) = UdpSockets::open(&config).unwrap();
    let sink = Arc::new(Collect(Mutex::default()));
    a.set_esp_sink(Some(sink.clone()));
    let mut ends = vec![on(a.nat_port())];
    if a.has_ipv6() {
        ends.push(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), a.nat_port()));
    }
    for end in ends {
        let path = Path::new(end, end);
        // The system chooses the source address of the second.
        let unspecified = match end.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        for path in [path, Path::new(SocketAddr::new(unspecified, end.port()), end)] {
            for class in [0, 1, 2, 3, 0xb8, 0xff, 0] {
                a.send_esp(&path, class, &[8; 60]).unwrap();
                let got = wait_for(|| sink.0.lock().unwrap().pop());
                assert_eq!(got, (Path::new(end, end), class, vec![8; 60]));
            }
        }
        a.send_ike(&path, &[5; 28]).unwrap();
        assert_eq!(wait_for(|| ike.try_recv().ok()).path, path);
    }
}

/// A port of `ip` that nobody listens to, and that no other test is given.
fn closed(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 1)
}

fn loopbacks() -> (Arc<UdpSockets>, mpsc::Receiver<IkeDatagram>, Vec<IpAddr>) {
    let config = UdpConfig { bind_v6: Some(Ipv6Addr::LOCALHOST), ..local_config() };
    let (udp, ike) = UdpSockets::open(&config).unwrap();
    let mut ips = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    ips.extend(udp.has_ipv6().then_some(IpAddr::from(Ipv6Addr::LOCALHOST)));
    (udp, ike, ips)
}

#[test]
fn an_icmp_error_is_a_hint_with_the_path_of_what_was_sent() {
    let (a, _ike, ips) = loopbacks();
    let mut hints = a.take_unreachable().unwrap();
    assert!(a.take_unreachable().is_none());
    for ip in ips {
        for port in [a.ike_port(), a.nat_port()] {
            let path = Path::new(SocketAddr::new(ip, port), closed(ip));
            a.send_ike(&path, &[1; 28]).unwrap();
            assert_eq!(wait_for(|| hints.try_recv().ok()), path);
            // Once is enough for a while.
            let before = a.counters().icmp_errors;
            a.send_ike(&path, &[1; 28]).unwrap();
            wait_for(|| (a.counters().icmp_errors > before).then_some(()));
            assert!(hints.try_recv().is_err());
        }
    }
}

#[test]
fn icmp_errors_keep_nothing_from_being_sent_or_received() {
    let (a, mut ike, ips) = loopbacks();
    for ip in ips {
        let end = SocketAddr::new(ip, a.nat_port());
        let (good, bad) = (Path::new(end, end), Path::new(end, closed(ip)));
        for n in 0..=255 {
            // Each of the two meets the error about the one before.
            a.send_ike(&bad, &[1; 28]).unwrap();
            a.send_esp(&bad, 0, &[8; 60]).unwrap();
            a.send_ike(&good, &[n; 28]).unwrap();
            assert_eq!(wait_for(|| ike.try_recv().ok()).bytes, [n; 28]);
        }
    }
    let counters = a.counters();
    assert!(counters.icmp_errors >= 100, "{counters:?}");
    assert_eq!((counters.send_errors, counters.receive_errors), (0, 0), "{counters:?}");
}

/// Packets one behind the other, as [`UdpSockets::send_esp_batch`] takes them.
fn batch(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Range<usize>>) {
    let arena = packets.concat();
    let mut end = 0;
    let place = |packet: &Vec<u8>| {
        end += packet.len();
        end - packet.len()..end
    };
    let places = packets.iter().map(place).collect();
    (arena, places)
}

/// Sends all packets; whether each has left.
fn send_batch(
    udp: &UdpSockets,
    path: &Path,
    class: u8,
    arena: &[u8],
    places: &[Range<usize>],
) -> bool {
    let (mut told, mut all) = (0, true);
    udp.send_esp_batch(path, class, arena, places, 60, |which, result| {
        assert_eq!(which.start, told, "each is told of once, in order");
        told = which.end;
        all &= result.is_ok();
    });
    assert_eq!(told, places.len());
    all
}

/// Packets of 60 octets, the last one of 40.
fn packets(count: u8) -> Vec<Vec<u8>> {
    (1..=count).map(|n| vec![n; if n == count { 40 } else { 60 }]).collect()
}

impl Collect {
    fn packets(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().iter().map(|(_, _, packet)| packet.clone()).collect()
    }
}

#[test]
fn a_batch_arrives_as_it_was_whatever_the_kernel_can_do() {
    for (cuts, joins) in [(true, true), (true, false), (false, true), (false, false)] {
        let (a, _) = UdpSockets::open(&local_config()).unwrap();
        let (b, _) = UdpSockets::open(&local_config()).unwrap();
        let sink = Arc::new(Collect(Mutex::default()));
        b.set_esp_sink(Some(sink.clone()));
        b.sockets.iter().for_each(|socket| socket.set_gro(joins));
        if !cuts {
            a.sockets.iter().for_each(|socket| socket.never_cut());
        }
        let path = Path::new(on(a.nat_port()), on(b.nat_port()));
        // More than one call may cut is sent all the same.
        for count in [1, 2, 63, 64, 65, 200] {
            let packets = packets(count);
            let (arena, places) = batch(&packets);
            assert!(send_batch(&a, &path, 0xb9, &arena, &places));
            let done = || sink.0.lock().unwrap().len() == packets.len();
            wait_for(|| done().then_some(()));
            assert_eq!(sink.packets(), packets, "cuts {cuts}, joins {joins}");
            let mut got = sink.0.lock().unwrap();
            let back = Path::new(path.remote, path.local);
            assert!(got.iter().all(|(path, class, _)| (*path, *class) == (back, 0xb9)));
            got.clear();
        }
        assert_eq!(a.counters().send_errors, 0);
        assert_eq!(b.counters().malformed, 0);
    }
}

/// Without UDP checksums the kernel refuses to cut: EINVAL, as for packets longer than the link takes.
#[test]
fn what_the_kernel_refuses_to_cut_goes_one_by_one_and_it_is_asked_again_later() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, _) = UdpSockets::open(&local_config()).unwrap();
    let sink = Arc::new(Collect(Mutex::default()));
    b.set_esp_sink(Some(sink.clone()));
    let path = Path::new(on(a.nat_port()), on(b.nat_port()));
    let packets = packets(10);
    let (arena, places) = batch(&packets);
    let send = || {
        assert!(send_batch(&a, &path, 0, &arena, &places));
        wait_for(|| (sink.0.lock().unwrap().len() == packets.len()).then_some(()));
        assert_eq!(sink.packets(), packets);
        sink.0.lock().unwrap().clear();
    };
    let socket = a.socket(&path).unwrap();
    socket.set_checksums(false);
    send();
    assert!(!socket.may_cut(), "it was refused just now");
    socket.set_checksums(true);
    let mut waited = 0;
    while !socket.may_cut() {
        send();
        waited += 1;
        assert!(waited < 1000);
    }
    send();
    assert!(socket.may_cut() && socket.may_cut(), "it works again");
    assert_eq!(a.counters().send_errors, 0);
}

#[test]
fn errors_that_come_of_several_datagrams_in_one_call_are_known() {
    let is = |errno| needs_one_by_one(&io::Error::from_raw_os_error(errno));
    assert!([libc::EINVAL, libc::EIO, libc::EMSGSIZE, libc::EOPNOTSUPP].into_iter().all(is));
    assert!(![libc::EAGAIN, libc::ENETUNREACH, libc::EPERM, libc::ENOBUFS].into_iter().any(is));
}

#[test]
fn a_batch_that_cannot_leave_at_all_is_an_error() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (arena, places) = batch(&packets(10));
    // Not an address of ours: EINVAL for one and for many.
    let gone = Path::new(SocketAddr::new([192, 0, 2, 77].into(), a.nat_port()), on(a.nat_port()));
    assert!(!send_batch(&a, &gone, 0, &arena, &places));
    let socket = a.socket(&Path::new(on(a.nat_port()), on(1))).unwrap();
    assert!(socket.may_cut(), "it says nothing about cutting");
}

/// RFC 3948 §2: what the kernel has put together may hold IKE between ESP, and a keepalive.
#[test]
fn u_2_what_is_received_in_one_piece_is_told_apart_datagram_by_datagram() {
    let (a, _) = UdpSockets::open(&local_config()).unwrap();
    let (b, mut ike) = UdpSockets::open(&local_config()).unwrap();
    let sink = Arc::new(Collect(Mutex::default()));
    b.set_esp_sink(Some(sink.clone()));
    let path = Path::new(on(a.nat_port()), on(b.nat_port()));
    let message: Vec<u8> = (1..=56).collect();
    let marked = [&NON_ESP_MARKER, &message[..]].concat();
    let datagrams = [vec![1; 60], marked, vec![2; 60], vec![0; 60], vec![0xff]];
    let (arena, places) = batch(&datagrams);
    for round in 1..=20 {
        assert!(send_batch(&a, &path, 0, &arena, &places));
        let got = wait_for(|| ike.try_recv().ok());
        assert_eq!((got.bytes, got.path), (message.clone(), Path::new(path.remote, path.local)));
        assert_eq!(wait_for(|| ike.try_recv().ok()).bytes, [0; 56]);
        wait_for(|| (b.counters().keepalives_in == round).then_some(()));
        wait_for(|| (sink.0.lock().unwrap().len() == 2).then_some(()));
        assert_eq!(sink.packets(), [vec![1; 60], vec![2; 60]]);
        sink.0.lock().unwrap().clear();
    }
    assert_eq!(b.counters().malformed, 0);
}
