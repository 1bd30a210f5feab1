//! The secret that crash tokens are made with (RFC 6290 §5.1, §5.2): drawn once, and kept in a file, so that
//! the daemon which comes after a crash can say what the one before has said.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use bewick_ike::{CrashSecrets, Secret, crash::GENERATIONS};
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::whole;
use crate::config::secret;

/// The octets of one secret.
const LEN: usize = 32;

/// The secrets, and the lock that keeps another daemon from telling tokens of our IKE_SAs
/// (RFC 6290 §9.2).
pub(super) struct Kept {
    pub(super) secrets: CrashSecrets,
    _lock: File,
}

/// Reads the secrets in this folder, or draws the first one.
///
/// # Errors
/// With the remedy, for the operator: without a secret there are no tokens, and nothing else is missing.
pub(super) fn open(folder: &Path) -> Result<Kept, String> {
    let told = |what: &str, path: &Path, e: io::Error| format!("{what} {}: {e}", path.display());
    let mut builder = DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| told("can't make", folder, e))?;
    let path = folder.join("crash-secret");
    let lock_path = folder.join("crash-secret.lock");
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|e| told("can't open", &lock_path, e))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        format!("another daemon uses {}: give each a state_dir of its own", folder.display())
    })?;
    if !path.try_exists().map_err(|e| told("can't look for", &path, e))? {
        draw(&path).map_err(|e| told("can't write", &path, e))?;
    }
    let octets = secret::file("the secret of crash tokens", &path, true)?;
    if octets.is_empty() || octets.len() % LEN != 0 || octets.len() > LEN * GENERATIONS {
        return Err(format!(
            "{} has {} octets; expected 1 to {GENERATIONS} secrets of {LEN}, the newest first: \
             delete it, and a new one is drawn",
            path.display(),
            octets.len()
        ));
    }
    let secrets = octets.chunks(LEN).map(|chunk| Secret::new(chunk.to_vec())).collect();
    Ok(Kept { secrets: CrashSecrets(secrets), _lock: lock })
}

/// Draws a secret.
fn draw(path: &Path) -> io::Result<()> {
    let mut octets = Zeroizing::new([0; LEN]);
    getrandom::fill(&mut *octets).map_err(io::Error::other)?;
    whole::put(path, &*octets)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
        path::PathBuf,
    };

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bewick-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn secrets(kept: &Kept) -> Vec<Vec<u8>> {
        kept.secrets.0.iter().map(|secret| secret.expose().to_vec()).collect()
    }

    #[test]
    fn the_secret_is_drawn_once_and_is_for_its_owner_alone() {
        let folder = folder("drawn");
        let first = secrets(&open(&folder).unwrap());
        assert_eq!((first.len(), first[0].len()), (1, LEN));
        assert_eq!(secrets(&open(&folder).unwrap()), first, "after a restart it is the same");
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("crash-secret"), mode("")), (0o600, 0o700));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn two_daemons_do_not_share_one() {
        let folder = folder("shared");
        let first = open(&folder).unwrap();
        assert!(open(&folder).err().unwrap().contains("another daemon"));
        drop(first);
        open(&folder).unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_none_is_refused_and_kept() {
        let folder = folder("refused");
        drop(open(&folder).unwrap());
        let path = folder.join("crash-secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open(&folder).err().unwrap().contains("chmod 0600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for octets in [0, 1, 31, 33, 5 * LEN] {
            fs::write(&path, vec![1; octets]).unwrap();
            assert!(open(&folder).err().unwrap().contains("delete it"), "{octets} octets");
        }
        fs::write(&path, [[1; LEN], [2; LEN]].concat()).unwrap();
        assert_eq!(secrets(&open(&folder).unwrap()), [[1; LEN], [2; LEN]]);
        fs::remove_dir_all(folder).unwrap();
    }
}
