//! The keys that bewick has written down beside a capture; where it takes part, there are some.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Judged;
use crate::cleanup::{self, Guard};
use crate::fail;
use crate::failure::{Context, Result};

/// How the name of a file ends that tells a bewick what to do.
const CONFIGURATION: &str = "-bewick.toml";
/// How the name of a folder begins in which a bewick writes down its keys.
const FOLDER: &str = "keys-";
/// The file in it that has those of IKE_SAs.
const TABLE: &str = "ikev2_decryption_table";

/// What opens a capture.
pub struct Keys {
    /// Where they are, all in one file, as long as this lives.
    pub folder: PathBuf,
    /// The initiators' SPIs of the IKE_SAs that they belong to.
    pub known: BTreeSet<String>,
    _guard: Guard,
}

/// The keys that all bewicks have written down beside a capture, those too that were started again and have a folder of
/// their own below it; `None` where none takes part.
///
/// # Errors
/// One takes part and has written none; or they can't be read.
pub fn beside(place: &Path) -> Result<Option<Keys>> {
    let lines = lines(place)?;
    if lines.is_empty() && !takes_part(place)? {
        return Ok(None);
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // Captures are judged side by side.
    let part = format!("keys-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let (folder, guard) = cleanup::scratch_folder(&part).context("scratch folder")?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).context(folder.display())?;
    let table = folder.join(TABLE);
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&table, text).context(table.display())?;
    let known = lines.iter().filter_map(|line| Some(line.split(',').next()?.to_owned())).collect();
    Ok(Some(Keys { folder, known, _guard: guard }))
}

fn takes_part(place: &Path) -> Result<bool> {
    Ok(names(place)?.iter().any(|name| name.ends_with(CONFIGURATION)))
}

/// The lines of all tables here and in folders below, none of them twice.
fn lines(place: &Path) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    let mut tables = 0;
    for name in names(place)? {
        let path = place.join(&name);
        if name.starts_with(FOLDER) {
            let table = path.join(TABLE);
            let text = fs::read_to_string(&table).context(table.display())?;
            lines.extend(text.lines().map(str::to_owned));
            tables += 1;
        } else if path.is_dir() {
            lines.extend(self::lines(&path)?);
        }
    }
    if tables == 0 && takes_part(place)? {
        return Err(fail!("{} has a bewick's configuration and no keys", place.display()));
    }
    Ok(lines)
}

/// Fails if nothing was opened in all of a scenario, where there was something to open: tshark does not know all
/// ciphers, but no scenario has those alone.
///
/// # Errors
/// Nothing was.
pub fn have_opened(judged: &Judged) -> Result<()> {
    match judged {
        Judged { opened: 0, sealed: 1.., .. } => Err(fail!("no message of any IKE_SA was opened")),
        _ => Ok(()),
    }
}

fn names(place: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(place).context(place.display())? {
        let entry = entry.context(place.display())?;
        names.insert(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_bewick_takes_part_there_are_keys() {
        let place = std::env::temp_dir().join(format!("bewick-keys-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a folder");
        fs::write(place.join("client-strongswan.conf"), "").expect("a file");
        assert!(matches!(beside(&place), Ok(None)), "two of strongSwan's");
        fs::write(place.join("gateway-bewick.toml"), "").expect("a file");
        assert!(beside(&place).is_err(), "a bewick without keys");
        fs::create_dir_all(place.join("keys-gateway")).expect("a folder");
        assert!(beside(&place).is_err(), "an empty folder");
        let line = |spi: &str| format!("{spi},1112131415161718,aa,bb,\"NULL\"\n");
        let table = place.join("keys-gateway").join(TABLE);
        fs::write(table, line("0102030405060708")).expect("a file");
        let again = place.join("started-again").join("keys-client");
        fs::create_dir_all(&again).expect("a folder");
        fs::write(again.join(TABLE), line("2122232425262728")).expect("a file");
        let known = lines(&place).expect("read");
        let both = [line("0102030405060708"), line("2122232425262728")];
        assert!(known.iter().map(|line| format!("{line}\n")).eq(both));
        fs::remove_dir_all(&place).expect("removed");
    }

    #[test]
    fn a_scenario_of_which_nothing_can_be_opened_is_found() {
        let judged = |opened, sealed| Judged { opened, sealed, esp: 0 };
        assert!(have_opened(&judged(0, 8)).is_err());
        assert!(have_opened(&judged(4, 8)).is_ok());
        assert!(have_opened(&judged(0, 0)).is_ok(), "all were refused in IKE_SA_INIT");
    }
}
