//! Secrets: out of files that nobody else can read, and at once into [`Secret`].

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use bewick_ike::Secret;
use zeroize::Zeroizing;

/// More than any key or configuration has.
const MAX_FILE: u64 = 1 << 20;

/// Reads a whole file of at most 1 MiB.
pub fn read(path: &Path) -> io::Result<(Zeroizing<Vec<u8>>, bool)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    // room for all of it, so that no half-filled buffer is left behind unzeroed
    let room = usize::try_from(metadata.len().min(MAX_FILE) + 1).unwrap_or(0);
    let mut octets = Zeroizing::new(Vec::with_capacity(room));
    file.take(MAX_FILE + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok((octets, metadata.mode() & 0o077 == 0))
}

/// The contents of the file at `path`, which `key` names. With `secret` nobody but its owner may be
/// able to read it.
///
/// The error is what follows the file's place in the message to the operator.
pub fn file(key: &str, path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let (octets, private) = read(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("{key} {shown} does not exist"),
        _ => format!("{key} {shown} can't be read: {e}"),
    })?;
    if secret && !private {
        return Err(format!(
            "{key} {shown} can be read by others than its owner; do `chmod 0600 {shown}`"
        ));
    }
    Ok(octets)
}

/// The pre-shared key in the file at `path`, without a trailing line end.
///
/// The error is what follows the file's place in the message to the operator.
pub fn psk_file(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let mut octets = file("psk_file", path, true)?;
    let trimmed = octets.strip_suffix(b"\n").unwrap_or(&octets);
    let trimmed = trimmed.strip_suffix(b"\r").unwrap_or(trimmed).len();
    octets.truncate(trimmed);
    if octets.is_empty() {
        return Err(format!("psk_file {shown} is empty; expected the pre-shared key"));
    }
    Ok(Secret::new(std::mem::take(&mut *octets)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn write(name: &str, contents: &[u8], mode: u32) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bewick-{}-{name}", std::process::id()));
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn one_line_end_is_not_part_of_the_key() {
        for (name, contents) in [("a", &b"key"[..]), ("b", b"key\n"), ("c", b"key\r\n")] {
            let path = write(name, contents, 0o600);
            assert_eq!(psk_file(&path).unwrap().expose(), b"key");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let path = write("open", b"key\n", 0o640);
        let shown = path.display();
        assert_eq!(
            psk_file(&path).unwrap_err(),
            format!(
                "psk_file {shown} can be read by others than its owner; do `chmod 0600 {shown}`"
            )
        );
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_empty_or_missing_key_is_refused() {
        let path = write("empty", b"\n", 0o600);
        assert!(psk_file(&path).unwrap_err().contains("is empty"));
        fs::remove_file(&path).unwrap();
        assert!(psk_file(&path).unwrap_err().ends_with("does not exist"));
    }
}
