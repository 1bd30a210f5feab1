//! Algorithms in the operator's words: `aes256gcm16-prfsha384-x25519`, `aes128-sha256`.

use bewick_ike::{
    EspSuite, HmacSha2,
    crypto::suite::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf},
};

/// What an IKE_SA may use if the configuration does not say, best first.
pub const IKE_DEFAULTS: [&str; 10] = [
    "aes256gcm16-prfsha384-x25519",
    "aes256gcm16-prfsha256-x25519",
    "aes128gcm16-prfsha256-x25519",
    "aes256-sha256-x25519",
    "aes128-sha256-x25519",
    "aes256gcm16-prfsha384-ecp256",
    "aes256gcm16-prfsha256-ecp256",
    "aes128gcm16-prfsha256-ecp256",
    "aes256-sha256-ecp256",
    "aes128-sha256-ecp256",
];

/// What a CHILD_SA may use if the configuration does not say, best first.
pub const ESP_DEFAULTS: [&str; 4] =
    ["aes256gcm16", "aes128gcm16", "aes256-sha256", "aes128-sha256"];

const ENCRYPTION: [(&str, Cipher); 7] = [
    ("aes256gcm16", Cipher::Gcm(256)),
    ("aes192gcm16", Cipher::Gcm(192)),
    ("aes128gcm16", Cipher::Gcm(128)),
    ("chacha20poly1305", Cipher::ChaCha),
    ("aes256", Cipher::Cbc(256)),
    ("aes192", Cipher::Cbc(192)),
    ("aes128", Cipher::Cbc(128)),
];
const INTEGRITY: [(&str, HmacSha2); 3] =
    [("sha256", HmacSha2::Sha256), ("sha384", HmacSha2::Sha384), ("sha512", HmacSha2::Sha512)];
const PRF: [(&str, Prf); 3] = [
    ("prfsha256", Prf::HmacSha256),
    ("prfsha384", Prf::HmacSha384),
    ("prfsha512", Prf::HmacSha512),
];
const KEY_EXCHANGE: [(&str, KeyExchangeMethod); 7] = [
    ("x25519", KeyExchangeMethod::X25519),
    ("ecp256", KeyExchangeMethod::Ecp256),
    ("ecp384", KeyExchangeMethod::Ecp384),
    ("ecp521", KeyExchangeMethod::Ecp521),
    ("modp2048", KeyExchangeMethod::Modp2048),
    ("modp3072", KeyExchangeMethod::Modp3072),
    ("modp4096", KeyExchangeMethod::Modp4096),
];

#[derive(Clone, Copy)]
enum Cipher {
    Gcm(u16),
    ChaCha,
    Cbc(u16),
}

/// The IKE suite of `text`; for CBC the prf may be left out, it is then the integrity's hash.
///
/// The error says which word is wrong and which are known.
pub fn ike(text: &str) -> Result<IkeSuite, String> {
    let mut words = Words::new(text);
    let encryption = match words.take(&ENCRYPTION, "an encryption")? {
        Cipher::Gcm(key_bits) => IkeEncryption::AesGcm16 { key_bits },
        Cipher::ChaCha => IkeEncryption::ChaCha20Poly1305,
        Cipher::Cbc(key_bits) => {
            let integrity = words.take(&INTEGRITY, "an integrity algorithm")?;
            IkeEncryption::AesCbc { key_bits, integrity }
        }
    };
    let prf = match encryption.integrity().filter(|_| !words.next_starts_with("prf")) {
        Some(HmacSha2::Sha256) => Prf::HmacSha256,
        Some(HmacSha2::Sha384) => Prf::HmacSha384,
        Some(HmacSha2::Sha512) => Prf::HmacSha512,
        None => words.take(&PRF, "a prf")?,
    };
    let key_exchange = words.take(&KEY_EXCHANGE, "a key exchange")?;
    words.end()?;
    Ok(IkeSuite { encryption, prf, key_exchange })
}

/// The ESP suite of `text`.
pub fn esp(text: &str) -> Result<EspSuite, String> {
    let mut words = Words::new(text);
    let suite = match words.take(&ENCRYPTION, "an encryption")? {
        Cipher::Gcm(key_bits) => EspSuite::AesGcm16 { key_bits },
        Cipher::ChaCha => EspSuite::ChaCha20Poly1305,
        Cipher::Cbc(key_bits) => {
            let integrity = words.take(&INTEGRITY, "an integrity algorithm")?;
            EspSuite::AesCbc { key_bits, integrity }
        }
    };
    words.end()?;
    Ok(suite)
}

/// The name of an ESP suite, as [`esp`] reads it.
pub fn esp_name(suite: EspSuite) -> String {
    let hash = |integrity| match integrity {
        HmacSha2::Sha256 => "sha256",
        HmacSha2::Sha384 => "sha384",
        HmacSha2::Sha512 => "sha512",
    };
    match suite {
        EspSuite::AesGcm16 { key_bits } => format!("aes{key_bits}gcm16"),
        EspSuite::ChaCha20Poly1305 => "chacha20poly1305".into(),
        EspSuite::AesCbc { key_bits, integrity } => format!("aes{key_bits}-{}", hash(integrity)),
    }
}

struct Words<'a> {
    text: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        let mut rest: Vec<&str> = text.split('-').collect();
        rest.reverse();
        Words { text, rest }
    }

    fn next_starts_with(&self, prefix: &str) -> bool {
        self.rest.last().is_some_and(|word| word.starts_with(prefix))
    }

    fn take<T: Copy>(&mut self, table: &[(&str, T)], what: &str) -> Result<T, String> {
        let known = || table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let Some(word) = self.rest.pop() else {
            return Err(format!("{:?} lacks {what}; known: {}", self.text, known()));
        };
        match table.iter().find(|(name, _)| *name == word) {
            Some((_, value)) => Ok(*value),
            None => Err(format!("{word:?} is not {what}; known: {}", known())),
        }
    }

    fn end(self) -> Result<(), String> {
        match self.rest.last() {
            None => Ok(()),
            Some(word) => Err(format!("{word:?} is one word too many in {:?}", self.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_proposals() {
        assert!(IKE_DEFAULTS.iter().all(|text| ike(text).is_ok()));
        for text in ESP_DEFAULTS.into_iter().chain(["chacha20poly1305", "aes192-sha384"]) {
            assert_eq!(esp_name(esp(text).unwrap()), text);
        }
    }

    #[test]
    fn the_prf_of_cbc_follows_the_integrity_unless_it_is_said() {
        let short = ike("aes128-sha256-ecp256").unwrap();
        assert_eq!(short, ike("aes128-sha256-prfsha256-ecp256").unwrap());
        assert_eq!(ike("aes128-sha256-prfsha384-ecp256").unwrap().prf, Prf::HmacSha384);
        assert_eq!(ike("aes256-sha512-modp3072").unwrap().prf, Prf::HmacSha512);
    }

    #[test]
    fn a_wrong_word_is_named_with_those_that_are_known() {
        let error = |text| ike(text).unwrap_err();
        assert_eq!(
            error("3des-sha256-x25519"),
            "\"3des\" is not an encryption; known: aes256gcm16, aes192gcm16, aes128gcm16, \
             chacha20poly1305, aes256, aes192, aes128"
        );
        assert_eq!(
            error("aes256gcm16-x25519"),
            r#""x25519" is not a prf; known: prfsha256, prfsha384, prfsha512"#
        );
        assert_eq!(
            error("aes256gcm16-prfsha384"),
            "\"aes256gcm16-prfsha384\" lacks a key exchange; known: x25519, ecp256, ecp384, ecp521, \
             modp2048, modp3072, modp4096"
        );
        assert_eq!(
            error("aes256gcm16-prfsha384-x25519-mlkem768"),
            r#""mlkem768" is one word too many in "aes256gcm16-prfsha384-x25519-mlkem768""#
        );
        assert!(esp("aes128-md5").unwrap_err().starts_with(r#""md5" is not an integrity"#));
    }
}
