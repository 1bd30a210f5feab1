//! The keys of IKE_SAs and CHILD_SAs, written down in the words of Wireshark for whoever has to look into a
//! capture. Only if the operator asks for it: whoever has these files can read the traffic.

use std::{
    fmt::Write as _,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use bewick_ike::{ChildSa, EspKeys, EspSuite, HmacSha2, IkeKeys, crypto::IkeEncryption};
use zeroize::Zeroizing;

/// Two files in a folder, by the names under which Wireshark looks for them in its own: it reads them
/// with `WIRESHARK_CONFIG_DIR` set to the folder.
pub(super) struct KeyLog {
    ike: File,
    esp: File,
}

impl KeyLog {
    /// Opens the files, and adds to what is in them.
    ///
    /// # Errors
    /// They can't be made, or others than their owner can read them.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let open = |name: &str| {
            let file =
                OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join(name))?;
            match file.metadata()?.mode() & 0o077 {
                0 => Ok(file),
                _ => Err(io::Error::other(format!(
                    "{name} can be read by others than its owner: chmod 0600 {}",
                    folder.join(name).display()
                ))),
            }
        };
        Ok(KeyLog { ike: open("ikev2_decryption_table")?, esp: open("esp_sa")? })
    }

    /// Adds the keys of an IKE_SA, unless Wireshark does not know its cipher.
    pub(super) fn ike(&mut self, keys: &IkeKeys) -> io::Result<()> {
        match ike_line(keys) {
            Some(line) => self.ike.write_all(line.as_bytes()),
            None => Ok(()),
        }
    }

    /// Adds the keys of both directions of a CHILD_SA, unless Wireshark does not know its cipher. They hold
    /// for any addresses, for it may move.
    pub(super) fn esp(&mut self, sa: &ChildSa) -> io::Result<()> {
        for (spi, keys) in [(sa.spi_in, &sa.keys_in), (sa.spi_out, &sa.keys_out)] {
            for family in ["IPv4", "IPv6"] {
                if let Some(line) = esp_line(family, &spi.to_string(), sa.suite, keys) {
                    self.esp.write_all(line.as_bytes())?;
                }
            }
        }
        Ok(())
    }
}

fn hex(octets: &[u8]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(octets.len() * 2));
    for octet in octets {
        // Writing to a String can't fail.
        let _ = write!(*out, "{octet:02x}");
    }
    out
}

fn ike_line(keys: &IkeKeys) -> Option<Zeroizing<String>> {
    let (cipher, mac) = match keys.encryption {
        IkeEncryption::AesGcm16 { key_bits } => {
            (format!("AES-GCM-{key_bits} with 16 octet ICV [RFC5282]"), "NONE [RFC4306]")
        }
        IkeEncryption::AesCbc { key_bits, integrity } => {
            let mac = match integrity {
                HmacSha2::Sha256 => "HMAC_SHA2_256_128 [RFC4868]",
                HmacSha2::Sha384 => "HMAC_SHA2_384_192 [RFC4868]",
                HmacSha2::Sha512 => "HMAC_SHA2_512_256 [RFC4868]",
            };
            (format!("AES-CBC-{key_bits} [RFC3602]"), mac)
        }
        IkeEncryption::ChaCha20Poly1305 => return None,
    };
    let (ei, er) = (hex(keys.encryption_keys.0.expose()), hex(keys.encryption_keys.1.expose()));
    let (ai, ar) = (hex(keys.integrity_keys.0.expose()), hex(keys.integrity_keys.1.expose()));
    let (spi_i, spi_r) = keys.spis;
    Some(Zeroizing::new(format!(
        "{spi_i:016x},{spi_r:016x},{},{},\"{cipher}\",{},{},\"{mac}\"\n",
        *ei, *er, *ai, *ar
    )))
}

fn esp_line(family: &str, spi: &str, suite: EspSuite, keys: &EspKeys) -> Option<Zeroizing<String>> {
    let (cipher, mac) = match suite {
        EspSuite::AesGcm16 { .. } => ("AES-GCM with 16 octet ICV [RFC4106]", "NULL"),
        EspSuite::AesCbc { integrity, .. } => {
            let mac = match integrity {
                HmacSha2::Sha256 => "HMAC-SHA-256-128 [RFC4868]",
                HmacSha2::Sha384 => "HMAC-SHA-384-192 [RFC4868]",
                HmacSha2::Sha512 => "HMAC-SHA-512-256 [RFC4868]",
            };
            ("AES-CBC [RFC3602]", mac)
        }
        EspSuite::ChaCha20Poly1305 => return None,
    };
    let key = |octets: &[u8]| match octets.is_empty() {
        true => Zeroizing::new(String::new()),
        false => Zeroizing::new(format!("0x{}", *hex(octets))),
    };
    let (encryption, integrity) = (key(keys.encryption.expose()), key(keys.integrity.expose()));
    Some(Zeroizing::new(format!(
        "\"{family}\",\"*\",\"*\",\"{spi}\",\"{cipher}\",\"{}\",\"{mac}\",\"{}\"\n",
        *encryption, *integrity
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bewick_ike::{EspSpi, Secret};

    use super::*;

    fn secret(octet: u8, len: usize) -> Secret {
        Secret::new(vec![octet; len])
    }

    #[test]
    fn the_lines_are_wiresharks() {
        let keys = IkeKeys {
            spis: (0x0102, 0xfffe),
            encryption: IkeEncryption::AesCbc { key_bits: 128, integrity: HmacSha2::Sha256 },
            encryption_keys: (secret(1, 2), secret(2, 2)),
            integrity_keys: (secret(3, 2), secret(4, 2)),
        };
        assert_eq!(
            ike_line(&keys).unwrap().as_str(),
            "0000000000000102,000000000000fffe,0101,0202,\"AES-CBC-128 [RFC3602]\",0303,0404,\
             \"HMAC_SHA2_256_128 [RFC4868]\"\n"
        );
        let keys = EspKeys { encryption: secret(7, 3), integrity: secret(0, 0) };
        let suite = EspSuite::AesGcm16 { key_bits: 256 };
        assert_eq!(
            esp_line("IPv6", &EspSpi(0xabc).to_string(), suite, &keys).unwrap().as_str(),
            "\"IPv6\",\"*\",\"*\",\"0x00000abc\",\"AES-GCM with 16 octet ICV [RFC4106]\",\
             \"0x070707\",\"NULL\",\"\"\n"
        );
        assert!(esp_line("IPv4", "0x1", EspSuite::ChaCha20Poly1305, &keys).is_none());
    }

    #[test]
    fn the_files_are_for_their_owner_alone() {
        let folder = std::env::temp_dir().join(format!("bewick-{}-keys", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        drop(KeyLog::open(&folder).unwrap());
        for name in ["ikev2_decryption_table", "esp_sa"] {
            assert_eq!(fs::metadata(folder.join(name)).unwrap().mode() & 0o777, 0o600);
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(folder.join("esp_sa"), open).unwrap();
        assert!(KeyLog::open(&folder).err().unwrap().to_string().contains("chmod 0600"));
        fs::remove_dir_all(folder).unwrap();
    }
}
