//! Tells when somebody has written a file (inotify(7)).

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

/// Watches one file by its folder, as it may be replaced.
pub(super) struct Watch {
    fd: AsyncFd<OwnedFd>,
    name: Vec<u8>,
}

impl Watch {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::CREATE
            | WatchFlags::DELETE;
        inotify::add_watch(&fd, folder, events)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes().to_vec();
        // SAFETY: an OwnedFd is the same descriptor, and open, until it is dropped, which AsyncFd does last.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Watch { fd: fd.map_err(io::Error::from)?, name })
    }

    /// Waits until something has been done to the file.
    async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ready = self.fd.readable().await?;
            let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
            let mut ours = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        // what was lost may have been about it
                        let name = event.file_name().map(|name| name.to_bytes());
                        ours |= name.is_none_or(|name| name == self.name);
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(e) => return Err(e.into()),
                }
            }
            ready.clear_ready();
            if ours {
                return Ok(());
            }
        }
    }
}

/// The next change; none, at once, where nothing is watched any more.
pub(super) async fn next(watch: &mut Option<Watch>) -> Option<()> {
    let result = watch.as_mut()?.changed().await;
    if result.is_err() {
        *watch = None;
    }
    result.ok()
}
