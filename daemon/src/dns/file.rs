//! `/etc/resolv.conf` where nothing else looks after it (resolv.conf(5)).
//!
//! What was there is kept in a file of ours before it is replaced, so that the next start can put it
//! back after a crash. What another program has written meanwhile is newer than that and stays.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::Asked;

/// What our file starts with.
const HEADER: &str = "# bewick: the tunnel's name servers, in the place of what is kept in ";

/// Servers that resolvers take at most (MAXNS in resolv.h).
const MOST: usize = 3;

/// More than any such file has.
const LONGEST: u64 = 1 << 20;

/// The file, and where its contents are kept.
pub(super) struct ResolvConf {
    path: PathBuf,
    kept: PathBuf,
}

/// What there was before.
#[derive(Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Link(PathBuf),
    Text(Vec<u8>),
}

impl ResolvConf {
    /// The file at `path`, whose contents are kept in `folder`.
    pub(super) fn new(path: &Path, folder: &Path) -> Self {
        ResolvConf { path: path.into(), kept: folder.join("resolv.conf.before") }
    }

    /// Whether the file is as we have written it.
    pub(super) fn is_ours(&self) -> bool {
        read(&self.path).is_ok_and(|text| text.starts_with(HEADER.as_bytes()))
    }

    /// Whether the end came while the file was written: where it is mounted it can't be replaced whole, and what
    /// is there is how ours begins, or what was there before.
    fn is_half_made(&self, before: &Before) -> bool {
        let Ok(half) = read(&self.path) else { return false };
        let is_begin_of = |whole: &[u8]| half.len() < whole.len() && whole.starts_with(&half);
        let ours = [HEADER, &self.kept.display().to_string()].concat();
        is_begin_of(ours.as_bytes()) || matches!(before, Before::Text(text) if is_begin_of(text))
    }

    /// Whether there is anything to put back.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.exists()
    }

    /// Has the file name these servers.
    pub(super) fn replace(&self, asked: &Asked) -> io::Result<()> {
        let before = match self.is_ours() {
            true => None,
            false => {
                let before = Before::of(&self.path)?;
                // there first, and on the disk: without it nothing can be put back
                self.keep(&before)?;
                Some(before)
            }
        };
        let before = match before {
            Some(before) => before,
            None => self.kept()?.unwrap_or(Before::Nothing),
        };
        put(&self.path, self.text(asked, &before).as_bytes())
    }

    /// Puts back what there was, if anything of ours is there; says whether it was.
    pub(super) fn restore(&self) -> io::Result<bool> {
        let Some(before) = self.kept()? else { return Ok(false) };
        let ours = self.is_ours() || self.is_half_made(&before);
        // what was to take the place of the file, and of what is kept
        for path in [&self.path, &self.kept] {
            gone_is_fine(fs::remove_file(beside(path)))?;
        }
        if ours {
            match &before {
                Before::Nothing => match fs::remove_file(&self.path) {
                    // mounted there: empty is the nearest to nothing
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => fs::write(&self.path, "")?,
                    result => gone_is_fine(result)?,
                },
                Before::Text(text) => put(&self.path, text)?,
                Before::Link(to) => {
                    let new = beside(&self.path);
                    gone_is_fine(fs::remove_file(&new))?;
                    symlink(to, &new)?;
                    fs::rename(&new, &self.path)?;
                }
            }
        }
        gone_is_fine(fs::remove_file(&self.kept))?;
        Ok(ours)
    }

    fn text(&self, asked: &Asked, before: &Before) -> String {
        let mut text = format!("{HEADER}{}\n", self.kept.display());
        for server in asked.servers.iter().take(MOST) {
            text += &format!("nameserver {server}\n");
        }
        if !asked.domains.is_empty() {
            text += &format!("search {}\n", asked.domains.join(" "));
        }
        // how this machine wants its questions asked holds for any server
        let before = match before {
            Before::Nothing => Vec::new(),
            Before::Text(text) => text.clone(),
            Before::Link(to) => {
                let folder = self.path.parent().unwrap_or(Path::new("/"));
                read(&folder.join(to)).unwrap_or_default()
            }
        };
        for line in String::from_utf8_lossy(&before).lines() {
            let searches = asked.domains.is_empty()
                && (line.starts_with("search ") || line.starts_with("domain "));
            if searches || line.starts_with("options ") {
                text += &format!("{line}\n");
            }
        }
        text
    }

    fn keep(&self, before: &Before) -> io::Result<()> {
        let folder = self.kept.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let octets = match before {
            Before::Nothing => b"nothing\n".to_vec(),
            Before::Link(to) => {
                let to = to.as_os_str().as_encoded_bytes();
                [b"link\n", to].concat()
            }
            Before::Text(text) => [b"text\n", text.as_slice()].concat(),
        };
        put(&self.kept, &octets)
    }

    fn kept(&self) -> io::Result<Option<Before>> {
        let octets = match read(&self.kept) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            octets => octets?,
        };
        let wrong = || {
            let text = format!("{} is not as it was written", self.kept.display());
            io::Error::new(ErrorKind::InvalidData, text)
        };
        let end = octets.iter().position(|octet| *octet == b'\n').ok_or_else(wrong)?;
        let rest = octets.get(end + 1..).unwrap_or_default();
        match octets.get(..end) {
            Some(b"nothing") => Ok(Some(Before::Nothing)),
            Some(b"text") => Ok(Some(Before::Text(rest.to_vec()))),
            Some(b"link") => {
                let to: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(rest);
                Ok(Some(Before::Link(to.into())))
            }
            _ => Err(wrong()),
        }
    }
}

impl Before {
    fn of(path: &Path) -> io::Result<Before> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Before::Nothing),
            Err(e) => Err(e),
            Ok(meta) if meta.is_symlink() => Ok(Before::Link(fs::read_link(path)?)),
            Ok(_) => Ok(Before::Text(read(path)?)),
        }
    }
}

/// Replaces a file whole, which is there all the time.
fn put(path: &Path, octets: &[u8]) -> io::Result<()> {
    let new = beside(path);
    gone_is_fine(fs::remove_file(&new))?;
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o644).open(&new)?;
    // Every program reads it, and the daemon's umask would keep them from it.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(octets)?;
    file.sync_all()?;
    match fs::rename(&new, path) {
        // in a container it is a mount, which can't be replaced
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            gone_is_fine(fs::remove_file(&new))?;
            fs::write(path, octets)
        }
        Err(e) => Err(e),
        Ok(()) => File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all(),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".bewick");
    path.with_file_name(name)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, LONGEST), &mut octets)?;
    Ok(octets)
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The servers that a file names.
pub(super) fn servers(path: &Path) -> Vec<IpAddr> {
    let text = read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_can_read_it_whatever_the_umask() {
        let folder = std::env::temp_dir().join(format!("bewick-umask-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("resolv.conf");
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let written = put(&path, b"nameserver 10.1.0.53\n");
        rustix::process::umask(before);
        written.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::remove_dir_all(&folder).unwrap();
    }
}
