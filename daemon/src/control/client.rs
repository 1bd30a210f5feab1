//! The client's end of the control socket. It blocks, for it has nothing else to do.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::control::{Reply, Request};

/// Why a daemon could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// nothing listens there
    #[error("no daemon answers at {0}")]
    NoDaemon(PathBuf),
    /// the socket is another user's
    #[error("no permission to open {0}")]
    Denied(PathBuf),
    /// the connection broke
    #[error("talking to the daemon: {0}")]
    Io(#[from] io::Error),
    /// the daemon ended before it had answered
    #[error("the daemon ended before it had answered")]
    Ended,
    /// the daemon said what this program does not understand
    #[error("the daemon's answer is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl ClientError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            ClientError::NoDaemon(_) => Some(
                "is `bewick run` running? If its socket is elsewhere, say --control PATH or set \
                 BEWICK_CONTROL",
            ),
            ClientError::Denied(_) => Some("run this as the user of the daemon, usually root"),
            ClientError::Malformed(_) => Some("are the daemon and this program of one version?"),
            ClientError::Io(_) | ClientError::Ended => None,
        }
    }
}

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path` and sends `request`.
    pub fn ask(path: &Path, request: &Request) -> Result<Self, ClientError> {
        let mut stream = UnixStream::connect(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(path.into())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(path.into()),
            _ => ClientError::Io(e),
        })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Waits for the next line; [`ClientError::Ended`] if the daemon has gone.
    pub fn reply(&mut self) -> Result<Reply, ClientError> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ClientError::Ended);
        }
        Ok(serde_json::from_str(&line)?)
    }
}
