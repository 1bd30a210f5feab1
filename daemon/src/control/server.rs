//! The daemon's end of the control socket. Whoever connects is the operator, for the socket is
//! nobody else's; yet nothing that a client does can hold up the daemon or make it grow.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, broadcast, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tracing::debug;

use crate::control::{EventRecord, Reply, Request};

/// A request is shorter than this.
const MAX_REQUEST: u64 = 4096;
/// A client must send its request, and take each reply, within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client that has closed its sending side is looked after.
const HALF_CLOSED: Duration = Duration::from_millis(100);
/// Further clients wait until one of these has gone.
const MAX_CLIENTS: usize = 64;
/// Replies that wait for a client at most.
const QUEUE: usize = 256;

/// A request of a client's, for the runtime to answer.
#[derive(Debug)]
pub struct Call {
    /// what is asked; never [`Request::Events`], which the server answers itself
    pub request: Request,
    /// where the answers go: events, then one last reply; full means that the client is too slow
    pub replies: mpsc::Sender<Reply>,
}

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// another daemon has it
    #[error(
        "a daemon answers at {0} already: stop it first; a network namespace has room for one, \
         which has UDP ports 500 and 4500"
    )]
    InUse(PathBuf),
    /// what is there is no socket
    #[error("{0} is there and is not a socket: name another with --control")]
    NotASocket(PathBuf),
    /// a system call failed
    #[error("{operation} {path}: {source}")]
    Io {
        /// what was being done
        operation: &'static str,
        /// with what
        path: PathBuf,
        /// the system's error
        source: io::Error,
    },
}

/// The open control socket; dropping it ends it and removes it from the file system.
pub struct Server {
    path: PathBuf,
    /// the socket's place on its file system, so that another's is never removed
    inode: Option<u64>,
    task: JoinHandle<()>,
}

impl Server {
    /// Opens the socket at `path`, mode 0600, and makes its directory, mode 0700, if there is none.
    ///
    /// A socket that is there already is replaced if nobody answers on it.
    pub fn open(
        path: &Path,
        calls: mpsc::Sender<Call>,
        events: broadcast::Sender<Arc<EventRecord>>,
    ) -> Result<Self, ServerError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |source| ServerError::Io { operation, path, source }
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(failed("make the directory of"))?;
        }
        match fs::symlink_metadata(path) {
            Err(_) => {}
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ServerError::NotASocket(path.into()));
            }
            Ok(_) => match StdStream::connect(path) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed("replace the stale socket"))?;
                }
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(failed("reach the socket of another user at")(e));
                }
                _ => return Err(ServerError::InUse(path.into())),
            },
        }
        let listener = UnixListener::bind(path).map_err(failed("open the control socket"))?;
        let private = fs::set_permissions(path, Permissions::from_mode(0o600));
        private.map_err(failed("set the mode of"))?;
        let inode = fs::symlink_metadata(path).ok().map(|found| found.ino());
        let task = tokio::spawn(accept(listener, calls, events));
        Ok(Server { path: path.into(), inode, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        let ours = fs::symlink_metadata(&self.path).ok().map(|found| found.ino()) == self.inode;
        if ours {
            // nothing more can be done about it, and the next daemon replaces it
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn accept(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Arc<EventRecord>>,
) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (calls, events) = (calls.clone(), events.clone());
                tokio::spawn(async move {
                    if let Err(e) = serve(stream, calls, events).await {
                        debug!("a control client has gone: {e}");
                    }
                    drop(place);
                });
            }
            // out of file descriptors: others will end
            Err(e) => {
                debug!("accept a control client: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    stream: UnixStream,
    calls: mpsc::Sender<Call>,
    events: broadcast::Sender<Arc<EventRecord>>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = Vec::new();
    timeout(PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let request = match serde_json::from_slice(&line) {
        Ok(request) if line.ends_with(b"\n") => request,
        Ok(_) => return refuse(&mut writer, "the request does not end with a line end").await,
        Err(e) => return refuse(&mut writer, &format!("the request is not understood: {e}")).await,
    };
    // from here on the client says nothing; an end of file is that it has gone, or only that it
    // has closed its sending side and still listens
    let gone = async {
        reader.get_mut().set_limit(u64::MAX);
        let mut nothing = [0; 64];
        while matches!(reader.read(&mut nothing).await, Ok(n) if n > 0) {}
        let stream = reader.get_ref().get_ref();
        while matches!(stream.ready(Interest::WRITABLE).await, Ok(r) if !r.is_write_closed()) {
            tokio::time::sleep(HALF_CLOSED).await;
        }
    };
    let answer = async {
        match request {
            Request::Events {} => follow(&mut writer, events.subscribe()).await,
            request => {
                let (replies, mut receiver) = mpsc::channel(QUEUE);
                // the runtime ends before the server only when the whole daemon ends
                let _ = calls.send(Call { request, replies }).await;
                while let Some(reply) = receiver.recv().await {
                    write(&mut writer, &reply).await?;
                    if reply.is_last() {
                        break;
                    }
                }
                Ok(())
            }
        }
    };
    tokio::select! {
        result = answer => result,
        () = gone => Ok(()),
    }
}

/// Sends every event from now on; a client that can't keep up is told so and dropped.
async fn follow(
    writer: &mut OwnedWriteHalf,
    mut events: broadcast::Receiver<Arc<EventRecord>>,
) -> io::Result<()> {
    loop {
        match events.recv().await {
            Ok(record) => write(writer, &Reply::Event((*record).clone())).await?,
            Err(broadcast::error::RecvError::Lagged(n)) => {
                return refuse(writer, &format!("too slow: {n} events were missed")).await;
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn refuse(writer: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    write(writer, &Reply::Error { text: text.into(), remedy: None }).await
}

async fn write(writer: &mut OwnedWriteHalf, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::control::{Client, ClientError};

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("bewick-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    type Channels = (mpsc::Receiver<Call>, broadcast::Sender<Arc<EventRecord>>);

    fn open(path: &Path) -> Result<(Server, Channels), ServerError> {
        let (calls, receiver) = mpsc::channel(8);
        let events = broadcast::Sender::new(4);
        Ok((Server::open(path, calls, events.clone())?, (receiver, events)))
    }

    fn record(n: u64) -> Arc<EventRecord> {
        Arc::new(EventRecord {
            at_ms: n,
            event: "moved".into(),
            connection: None,
            fields: Default::default(),
            text: "moved".into(),
        })
    }

    /// Talks to the server as a client that does not keep to the protocol.
    fn raw(path: &Path, bytes: &[u8]) -> String {
        let mut stream = StdStream::connect(path).unwrap();
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut out = String::new();
        let _ = stream.read_to_string(&mut out);
        out
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_socket_and_its_directory_are_for_the_owner_alone_and_go_with_the_daemon() {
        let folder = folder("modes");
        let path = folder.join("control.sock");
        let (server, _channels) = open(&path).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(server);
        assert!(!path.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stale_socket_is_replaced_a_living_one_and_a_file_are_not() {
        let folder = folder("stale");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_server, _channels) = open(&path).unwrap();
        assert!(matches!(open(&path), Err(ServerError::InUse(_))));
        let file = folder.join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(open(&file), Err(ServerError::NotASocket(_))));
        assert!(file.exists());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_goes_to_the_runtime_and_its_answers_come_back() {
        let folder = folder("answers");
        let path = folder.join("control.sock");
        let (_server, (mut calls, _events)) = open(&path).unwrap();
        let client = tokio::task::spawn_blocking(move || {
            let mut client = Client::ask(&path, &Request::Up { name: "office".into() }).unwrap();
            (client.reply().unwrap(), client.reply().unwrap(), client.reply().unwrap_err())
        });
        let call = calls.recv().await.unwrap();
        assert_eq!(call.request, Request::Up { name: "office".into() });
        call.replies.send(Reply::Event((*record(1)).clone())).await.unwrap();
        call.replies.send(Reply::Done { text: "up".into() }).await.unwrap();
        let (first, second, end) = client.await.unwrap();
        assert!(matches!(first, Reply::Event(_)));
        assert_eq!(second, Reply::Done { text: "up".into() });
        assert!(matches!(end, ClientError::Ended));
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_has_closed_its_sending_side_gets_its_answer() {
        let folder = folder("half");
        let path = folder.join("control.sock");
        let (_server, (mut calls, _events)) = open(&path).unwrap();
        let client = tokio::task::spawn_blocking(move || raw(&path, b"{\"command\":\"status\"}\n"));
        let call = calls.recv().await.unwrap();
        tokio::time::sleep(HALF_CLOSED * 3).await;
        call.replies.send(Reply::Done { text: "up".into() }).await.unwrap();
        assert!(client.await.unwrap().contains("up"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_has_gone_is_not_waited_for() {
        let folder = folder("gone");
        let path = folder.join("control.sock");
        let (_server, (mut calls, _events)) = open(&path).unwrap();
        let client = Client::ask(&path, &Request::Up { name: "office".into() }).unwrap();
        let call = calls.recv().await.unwrap();
        drop(client);
        timeout(PATIENCE, call.replies.closed()).await.unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nonsense_and_endless_requests_are_refused() {
        let folder = folder("nonsense");
        let path = folder.join("control.sock");
        let (_server, (mut calls, _events)) = open(&path).unwrap();
        let said = tokio::task::spawn_blocking(move || {
            [
                raw(&path, b"hello\n"),
                raw(&path, b"{\"command\":\"status\"}"),
                raw(&path, &vec![b'x'; 100_000]),
            ]
        });
        for said in said.await.unwrap() {
            assert!(said.is_empty() || said.starts_with("{\"reply\":\"error\""), "{said}");
        }
        assert!(calls.try_recv().is_err());
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_follower_that_is_too_slow_is_told_so_and_dropped() {
        let folder = folder("slow");
        let path = folder.join("control.sock");
        let (_server, (_calls, events)) = open(&path).unwrap();
        let mut client = Client::ask(&path, &Request::Events {}).unwrap();
        while events.receiver_count() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // more than the sockets' buffers and the queue hold
        for n in 0..100_000 {
            let _ = events.send(record(n));
        }
        let end = tokio::task::spawn_blocking(move || {
            loop {
                match client.reply() {
                    Ok(Reply::Event(_)) => {}
                    other => return other,
                }
            }
        });
        assert!(matches!(end.await.unwrap(), Ok(Reply::Error { .. })));
        fs::remove_dir_all(folder).unwrap();
    }
}
