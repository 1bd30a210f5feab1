use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use super::*;
use crate::udp::{UdpConfig, UdpSockets};

struct End {
    udp: Arc<UdpSockets>,
    ike: mpsc::Receiver<IkeDatagram>,
    gone: mpsc::UnboundedReceiver<Path>,
    esp: Arc<Collect>,
}

#[derive(Default)]
struct Collect(Mutex<Vec<(Path, Vec<u8>)>>);

impl EspSink for Collect {
    fn esp(&self, path: Path, _class: u8, packet: &mut [u8]) {
        self.0.lock().unwrap().push((path, packet.to_vec()));
    }
}

fn end(tcp: TcpConfig) -> End {
    let (udp, _) = UdpSockets::open(&UdpConfig {
        ike_port: 0,
        nat_port: 0,
        bind_v4: Ipv4Addr::LOCALHOST,
        bind_v6: None,
        tcp: Some(tcp),
        ..UdpConfig::default()
    })
    .unwrap();
    let gone = udp.take_disconnected().unwrap();
    let ike = udp.take_streamed().unwrap();
    let esp = Arc::new(Collect::default());
    udp.set_esp_sink(Some(esp.clone()));
    End { udp, ike, gone, esp }
}

fn gateway(tcp: TcpConfig) -> End {
    end(TcpConfig { listen: Some(0), ..tcp })
}

/// A path from a free port to the gateway.
fn path_to(gateway: &End) -> Path {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Path::tcp(free, at(gateway))
}

fn at(gateway: &End) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), gateway.udp.tcp_port().unwrap())
}

fn back(path: Path) -> Path {
    Path::tcp(path.remote, path.local)
}

fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing came");
        thread::sleep(Duration::from_millis(1));
    }
}

fn message(first: u8) -> Vec<u8> {
    (0..40).map(|n| n ^ first).collect()
}

/// RFC 9329 §3, §6.1: the first message opens the connection, and both go over it in both directions.
#[test]
fn rfc_9329_ike_and_esp_go_both_ways_over_one_connection() {
    let mut client = end(TcpConfig::default());
    let mut gateway = gateway(TcpConfig::default());
    let path = path_to(&gateway);
    assert!(client.udp.send_esp(&path, 0, &message(9)).is_err(), "ESP opens nothing");
    client.udp.send_ike(&path, &message(1)).unwrap();
    client.udp.send_ike(&path, &message(2)).unwrap();
    for first in [1, 2] {
        let got = wait_for(|| gateway.ike.try_recv().ok());
        assert_eq!((got.path, got.bytes), (back(path), message(first)));
    }
    gateway.udp.send_ike(&back(path), &message(3)).unwrap();
    let got = wait_for(|| client.ike.try_recv().ok());
    assert_eq!((got.path, got.bytes), (path, message(3)));
    for n in 1..=100 {
        client.udp.send_esp(&path, 0, &message(n)).unwrap();
        gateway.udp.send_esp(&back(path), 0, &message(n)).unwrap();
    }
    for (end, path) in [(&gateway, back(path)), (&client, path)] {
        wait_for(|| (end.esp.0.lock().unwrap().len() == 100).then_some(()));
        let all: Vec<_> = (1..=100).map(|n| (path, message(n))).collect();
        assert_eq!(*end.esp.0.lock().unwrap(), all);
    }
}

/// RFC 9329 §6.1: it is for the originator to open a connection, and both hear of its end.
#[test]
fn rfc_9329_an_end_is_told_once_and_the_responder_opens_nothing() {
    let client = end(TcpConfig::default());
    let mut gateway = gateway(TcpConfig::default());
    let path = path_to(&gateway);
    client.udp.send_ike(&path, &message(1)).unwrap();
    wait_for(|| gateway.ike.try_recv().ok());
    client.udp.shutdown();
    assert_eq!(wait_for(|| gateway.gone.try_recv().ok()), back(path));
    assert!(gateway.udp.send_ike(&back(path), &message(2)).is_err());
    assert!(gateway.udp.send_esp(&back(path), 0, &message(2)).is_err());
    assert!(gateway.gone.try_recv().is_err());
    // Where nobody listens the originator hears of it too.
    let mut other = end(TcpConfig::default());
    gateway.udp.shutdown();
    other.udp.send_ike(&path, &message(1)).unwrap();
    assert_eq!(wait_for(|| other.gone.try_recv().ok()), path);
}

/// RFC 9329 §6.1: what no IKE_SA uses is closed, by either end, and what one uses stays.
#[test]
fn rfc_9329_only_connections_that_are_used_stay() {
    let quick = TcpConfig {
        // Longer than a busy machine takes to say that one is used.
        grace: Duration::from_secs(3),
        own_grace: Duration::from_secs(3),
        ..TcpConfig::default()
    };
    for by_gateway in [false, true] {
        let patient = TcpConfig::default();
        let (ours, theirs) =
            if by_gateway { (patient, quick.clone()) } else { (quick.clone(), patient) };
        let (mut client, mut gateway) = (end(ours), gateway(theirs));
        let (kept, left) = (path_to(&gateway), path_to(&gateway));
        for path in [kept, left] {
            client.udp.send_ike(&path, &message(1)).unwrap();
            wait_for(|| gateway.ike.try_recv().ok());
            client.udp.keep_connections(&[kept].into());
            gateway.udp.keep_connections(&[back(kept)].into());
        }
        assert_eq!(wait_for(|| client.gone.try_recv().ok()), left);
        assert_eq!(wait_for(|| gateway.gone.try_recv().ok()), back(left));
        client.udp.send_ike(&kept, &message(2)).unwrap();
        assert_eq!(wait_for(|| gateway.ike.try_recv().ok()).path, back(kept));
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    match stream.read(&mut [0]) {
        Ok(octets) => octets == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// RFC 9329 §6.1: a stream that is none of IKE is closed, and nothing of it reaches anybody.
#[test]
fn rfc_9329_a_stream_that_is_not_ike_is_closed() {
    let mut gateway = gateway(TcpConfig::default());
    let mut whole = b"IKETCP".to_vec();
    whole.extend([0, 46, 0, 0, 0, 0]);
    whole.extend(message(1));
    let without_prefix = whole[6..].to_vec();
    let junk =
        [b"IKETCP".to_vec(), [0, 5, 1, 2, 3].repeat(2), [0, 9, 1, 2, 3, 4, 5, 6, 7].repeat(16)];
    let no_length = [b"IKETCP".to_vec(), vec![0, 1, 0, 0, 0]];
    for stream in
        [without_prefix, junk.concat(), no_length.concat(), b"GET / HTTP/1.1\r\n".to_vec()]
    {
        let mut connection = TcpStream::connect(at(&gateway)).unwrap();
        // The gateway may close before all is written.
        let _ = connection.write_all(&stream);
        assert!(is_closed(&mut connection), "{stream:?}");
    }
    assert!(gateway.ike.try_recv().is_err());
    assert!(gateway.esp.0.lock().unwrap().is_empty());
    // A keepalive is dropped in silence (RFC 9329 §6.6), and a message in pieces is read as one.
    let mut connection = TcpStream::connect(at(&gateway)).unwrap();
    connection.set_nodelay(true).unwrap();
    let (head, tail) = whole.split_at(6);
    for piece in [head, &[0, 3, 0xff]].into_iter().chain(tail.chunks(1)) {
        connection.write_all(piece).unwrap();
    }
    assert_eq!(wait_for(|| gateway.ike.try_recv().ok()).bytes, message(1));
}

/// Strangers can have only so many connections, and what is used by IKE_SAs is not counted with them.
#[test]
fn connections_without_an_ike_sa_are_limited_for_each_address_and_for_all() {
    let limited = TcpConfig { most_unused: 100, most_unused_of_one: 3, ..TcpConfig::default() };
    let mut gateway = gateway(limited);
    let client = end(TcpConfig::default());
    let path = path_to(&gateway);
    client.udp.send_ike(&path, &message(1)).unwrap();
    wait_for(|| gateway.ike.try_recv().ok());
    gateway.udp.keep_connections(&[back(path)].into());
    let mut strangers: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(at(&gateway)).unwrap()).collect();
    let mut fourth = TcpStream::connect(at(&gateway)).unwrap();
    assert!(is_closed(&mut fourth));
    // The one that ends makes room.
    drop(strangers.pop());
    wait_for(|| gateway.gone.try_recv().ok());
    strangers.push(TcpStream::connect(at(&gateway)).unwrap());
    strangers[2].write_all(b"IKETCP\0\x2e\0\0\0\0").unwrap();
    strangers[2].write_all(&message(7)).unwrap();
    assert_eq!(wait_for(|| gateway.ike.try_recv().ok()).bytes, message(7));
    client.udp.send_ike(&path, &message(2)).unwrap();
    assert_eq!(wait_for(|| gateway.ike.try_recv().ok()).bytes, message(2));
}

/// Strangers from many addresses who hold all places and say nothing don't keep a newcomer out.
#[test]
fn where_strangers_hold_all_places_the_oldest_makes_room() {
    let limited = TcpConfig { most_unused: 3, most_unused_of_one: 2, ..TcpConfig::default() };
    let mut gateway = gateway(limited);
    let there = at(&gateway);
    let from = |number: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        let own = SocketAddr::new(Ipv4Addr::new(127, 0, 1, number).into(), 0);
        socket.bind(&own.into()).unwrap();
        socket.connect(&there.into()).unwrap();
        TcpStream::from(socket)
    };
    let mut strangers: Vec<TcpStream> = (1..=3).map(from).collect();
    let mut newcomer = from(4);
    assert!(is_closed(&mut strangers[0]), "the oldest");
    newcomer.write_all(b"IKETCP\0\x2e\0\0\0\0").unwrap();
    newcomer.write_all(&message(7)).unwrap();
    let told = wait_for(|| gateway.ike.try_recv().ok());
    assert_eq!(told.bytes, message(7));
    // Whoever has an IKE_SA by then stays, whatever the others do.
    gateway.udp.keep_connections(&[told.path].into());
    let mut more: Vec<TcpStream> = (5..=20).map(from).collect();
    assert!(is_closed(&mut strangers[2]) && is_closed(&mut more[0]));
    gateway.udp.send_ike(&told.path, &message(8)).unwrap();
    let mut answer = [0; 46];
    newcomer.read_exact(&mut answer).unwrap();
    assert_eq!(answer[6..], message(8));
}

#[test]
fn of_ipv6_a_64_counts_as_one_place() {
    let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
    assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
    assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
    assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
    assert!(!same("192.0.2.1", "192.0.2.2"));
}

/// RFC 9329 §9.5: a peer that does not read costs ESP packets and a limited amount of memory, and what gets
/// through is whole.
#[test]
fn what_a_connection_does_not_take_is_lost_and_not_kept() {
    let client = end(TcpConfig::default());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = Path::tcp(free, listener.local_addr().unwrap());
    client.udp.send_ike(&path, &message(1)).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let packet = vec![0x55; 60_000];
    let mut sent = 0;
    let refused = wait_for(|| match client.udp.send_esp(&path, 0, &packet) {
        Ok(()) => {
            sent += 1;
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    // IKE still has room, and comes after all that was taken.
    client.udp.send_ike(&path, &message(2)).unwrap();
    let mut start = [0; 52];
    peer.read_exact(&mut start).unwrap();
    assert_eq!(start[..6], *b"IKETCP");
    for _ in 0..sent {
        let mut frame = vec![0; 60_002];
        peer.read_exact(&mut frame).unwrap();
        assert!(frame[..2] == 60_002_u16.to_be_bytes() && frame[2..] == packet);
    }
    let mut last = [0; 46];
    peer.read_exact(&mut last).unwrap();
    assert_eq!(last[6..], message(2));
}

/// A stranger who pushes is slowed down, and one whom an IKE_SA knows is not.
#[tokio::test]
async fn a_connection_without_an_ike_sa_is_not_read_as_fast_as_it_sends() {
    let mut gateway = gateway(TcpConfig::default());
    let client = end(TcpConfig::default());
    let paths = [path_to(&gateway), path_to(&gateway)];
    client.udp.send_ike(&paths[0], &message(0)).unwrap();
    gateway.ike.recv().await.unwrap();
    gateway.udp.keep_connections(&[back(paths[0])].into());
    for _ in 0..40 {
        client.udp.send_ike(&paths[1], &message(1)).unwrap();
    }
    // What the stranger has sent is older, and yet these come before the last of it.
    let mut pushed = 0;
    while pushed < 8 {
        assert_eq!(gateway.ike.recv().await.unwrap().path, back(paths[1]));
        pushed += 1;
    }
    for _ in 0..40 {
        client.udp.send_ike(&paths[0], &message(2)).unwrap();
    }
    let mut known = 0;
    while known < 40 {
        match gateway.ike.recv().await.unwrap().path {
            path if path == back(paths[0]) => known += 1,
            _ => pushed += 1,
        }
    }
    assert!(pushed < 40, "{pushed}");
}
