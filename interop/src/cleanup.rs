//! What must not outlive the runner: process trees, network namespaces, scratch folders.
//!
//! Each is entered here before it exists and taken out by its guard's `Drop`. Ctrl-C and SIGTERM
//! clear all that is still entered; what a killed runner left is swept by the next one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The first part of the name of everything that the runner makes; the second is its process id.
const PREFIX: &str = "bwi";

/// Where scratch folders are: a file system in memory, on which sockets work in the guest too.
const SCRATCH: &str = "/run";

enum Entry {
    Tree(u32),
    Namespace(String),
    Folder(PathBuf),
}

impl Entry {
    fn clear(&self) {
        match self {
            Entry::Tree(root) => kill_tree(*root),
            Entry::Namespace(name) => delete_namespace(name),
            Entry::Folder(path) => drop(fs::remove_dir_all(path)),
        }
    }
}

struct Book {
    next: u64,
    entries: BTreeMap<u64, Entry>,
    closed: bool,
}

static BOOK: Mutex<Book> = Mutex::new(Book { next: 0, entries: BTreeMap::new(), closed: false });

fn book() -> MutexGuard<'static, Book> {
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds one thing that is cleared when this is dropped, or when the runner is interrupted.
pub struct Guard(u64);

impl Guard {
    fn enter(entry: Entry) -> Self {
        let mut book = book();
        // The interrupt thread has cleared everything and is about to exit: make nothing new.
        if book.closed {
            drop(book);
            park();
        }
        let id = book.next;
        book.next += 1;
        book.entries.insert(id, entry);
        Self(id)
    }

    /// Kills the process `root` and all that it started.
    pub fn tree(root: u32) -> Self {
        Self::enter(Entry::Tree(root))
    }

    /// Lets go without clearing, because what was held has ended by itself.
    pub fn forget(self) {
        book().entries.remove(&self.0);
    }

    /// Kills what runs in the network namespace `name` and deletes it.
    pub fn namespace(name: &str) -> Self {
        Self::enter(Entry::Namespace(name.to_owned()))
    }

    /// Removes the folder with all that is in it.
    pub fn folder(path: &Path) -> Self {
        Self::enter(Entry::Folder(path.to_owned()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let entry = book().entries.remove(&self.0);
        if let Some(entry) = entry {
            entry.clear();
        }
    }
}

fn park() -> ! {
    loop {
        std::thread::park();
    }
}

/// The name of something that belongs to this run, unique on this machine.
pub fn own_name(part: &str) -> String {
    format!("{PREFIX}-{}-{part}", std::process::id())
}

/// Makes this run's scratch folder: sockets and what a reader of the evidence does not need.
///
/// # Errors
/// The file system's own, when `/run` cannot be written.
pub fn scratch_folder(part: &str) -> io::Result<(PathBuf, Guard)> {
    let path = Path::new(SCRATCH).join(own_name(part));
    let guard = Guard::folder(&path);
    fs::create_dir_all(&path)?;
    Ok((path, guard))
}

static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: write(2) is async-signal-safe and takes a one-byte buffer that lives long enough.
    unsafe { libc::write(WAKE.load(Ordering::Relaxed), [0u8].as_ptr().cast(), 1) };
}

/// From now on SIGINT and SIGTERM clear everything and end the runner with status 130.
///
/// # Errors
/// The kernel's own, when no pipe can be had.
pub fn clear_on_interrupt() -> io::Result<()> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2(2) writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 has just made this descriptor and nothing else owns it.
    let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    WAKE.store(ends[1], Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only calls write(2) on a descriptor that is never closed.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
    std::thread::spawn(move || {
        while rustix::io::read(&reader, &mut [0u8; 1]).is_err() {}
        eprintln!("interrupted: clearing up");
        let entries = {
            let mut book = book();
            book.closed = true;
            std::mem::take(&mut book.entries)
        };
        entries.values().rev().for_each(Entry::clear);
        std::process::exit(130);
    });
    Ok(())
}

/// Clears what runners that no longer live have left.
pub fn sweep() {
    for name in names_in("/run/netns").iter().filter(|name| is_orphan(name)) {
        delete_namespace(name);
    }
    for name in names_in(SCRATCH).iter().filter(|name| is_orphan(name)) {
        let _ = fs::remove_dir_all(Path::new(SCRATCH).join(name));
    }
}

/// Whether the name is one of ours and its runner has gone.
fn is_orphan(name: &str) -> bool {
    let mut parts = name.split('-');
    let ours = parts.next() == Some(PREFIX);
    let pid = parts.next().and_then(|pid| pid.parse::<u32>().ok());
    ours && pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn names_in(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn delete_namespace(name: &str) {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let Ok(out) = Command::new("ip").args(["netns", "pids", name]).output() else { break };
        let pids = String::from_utf8_lossy(&out.stdout);
        let mut any = false;
        for pid in pids.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
            any = true;
            kill(pid, Signal::KILL);
        }
        if !any || Instant::now() > end {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// Sends SIGTERM to one process, which may be gone already.
pub fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        kill(pid, Signal::TERM);
    }
}

fn kill_tree(root: u32) {
    let mut parents = Vec::new();
    for name in names_in("/proc") {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The command's name is in parentheses and may hold anything: count from the last one.
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1))
            .and_then(|parent| parent.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut tree = vec![root];
    let mut at = 0;
    while let Some(&parent) = tree.get(at) {
        tree.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    for pid in tree {
        if let Ok(pid) = i32::try_from(pid) {
            kill(pid, Signal::KILL);
        }
    }
}
