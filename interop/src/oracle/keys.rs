//! The keys that bewick has written down beside a capture; where it takes part, there are some.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Judged;
use crate::fail;
use crate::failure::{Context, Result};

/// How the name of a file ends that tells a bewick what to do.
const CONFIGURATION: &str = "-bewick.toml";
/// How the name of a folder begins in which a bewick writes down its keys.
const FOLDER: &str = "keys-";
/// The file in it that has those of IKE_SAs.
const TABLE: &str = "ikev2_decryption_table";

/// What opens a capture.
#[derive(Debug)]
pub struct Keys {
    /// Where they are.
    pub folder: PathBuf,
    /// The initiators' SPIs of the IKE_SAs that they belong to.
    pub known: BTreeSet<String>,
}

/// The keys of the first of the bewicks that have written some beside a capture; `None` where none takes part.
///
/// # Errors
/// One takes part and none has written any; or they can't be read.
pub fn beside(place: &Path) -> Result<Option<Keys>> {
    let names = names(place)?;
    let Some(folder) = names.iter().find(|name| name.starts_with(FOLDER)) else {
        return match names.iter().find(|name| name.ends_with(CONFIGURATION)) {
            Some(bewick) => Err(fail!("{} has {bewick} and no keys", place.display())),
            None => Ok(None),
        };
    };
    let folder = place.join(folder);
    let table = folder.join(TABLE);
    let text = fs::read_to_string(&table).context(table.display())?;
    let known = text.lines().filter_map(|line| Some(line.split(',').next()?.to_owned())).collect();
    Ok(Some(Keys { folder, known }))
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
        assert!(beside(&place).expect("two of strongSwan's").is_none());
        fs::write(place.join("gateway-bewick.toml"), "").expect("a file");
        assert!(beside(&place).is_err(), "a bewick without keys");
        fs::create_dir_all(place.join("keys-gateway")).expect("a folder");
        assert!(beside(&place).is_err(), "an empty folder");
        let table = place.join("keys-gateway").join(TABLE);
        fs::write(table, "0102030405060708,1112131415161718,aa,bb,\"NULL\"\n").expect("a file");
        let keys = beside(&place).expect("read").expect("some");
        assert_eq!(keys.known, BTreeSet::from(["0102030405060708".to_owned()]));
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
