//! Algorithms in the operator's words: `aes256gcm16-prfsha384-x25519`, `aes128-sha256-esn`.
//!
//! What RFC 8247 and RFC 8221 forbid has no word: no DES, 3DES, MD5, SHA-1, no NULL encryption, no
//! MODP group of less than 2048 bits.

use bewick_ike::{
    EspSuite, HmacSha2,
    config::EspProposal,
    crypto::suite::{IkeEncryption, IkeSuite, KeyExchangeMethod, Prf},
};

/// What an IKE_SA may use if the configuration does not say: each of these, best first, with each of
/// [`KEY_EXCHANGE_DEFAULTS`].
const CIPHER_DEFAULTS: [&str; 6] = [
    "aes256gcm16-prfsha384",
    "aes256gcm16-prfsha256",
    "aes128gcm16-prfsha256",
    "chacha20poly1305-prfsha256",
    "aes256-sha256",
    "aes128-sha256",
];

/// The first is the one that an initiator sends a value for.
const KEY_EXCHANGE_DEFAULTS: [&str; 5] = ["x25519", "ecp256", "ecp384", "modp3072", "modp2048"];

/// What a CHILD_SA may use if the configuration does not say, best first.
pub const ESP_DEFAULTS: [&str; 5] =
    ["aes256gcm16", "aes128gcm16", "chacha20poly1305", "aes256-sha256", "aes128-sha256"];

/// What an IKE_SA may use if the configuration does not say, best first.
pub fn ike_defaults() -> Vec<String> {
    KEY_EXCHANGE_DEFAULTS
        .iter()
        .flat_map(|exchange| CIPHER_DEFAULTS.iter().map(move |c| format!("{c}-{exchange}")))
        .collect()
}

const ENCRYPTION: [(&str, Cipher); 7] = [
    ("aes256gcm16", Cipher::Gcm(256)),
    ("aes192gcm16", Cipher::Gcm(192)),
    ("aes128gcm16", Cipher::Gcm(128)),
    ("chacha20poly1305", Cipher::ChaCha20Poly1305),
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
    ChaCha20Poly1305,
    Cbc(u16),
}

/// The IKE suite of `text`.
///
/// For CBC the prf may be left out, it is then the integrity's hash; for an AEAD, which has no
/// integrity algorithm, `sha384` says the prf as `prfsha384` does. The error says which word is wrong
/// and which are known.
pub fn ike(text: &str) -> Result<IkeSuite, String> {
    let mut words = Words::new(text);
    let encryption = match words.take(&ENCRYPTION, "an encryption")? {
        Cipher::Gcm(key_bits) => IkeEncryption::AesGcm16 { key_bits },
        Cipher::ChaCha20Poly1305 => IkeEncryption::ChaCha20Poly1305,
        Cipher::Cbc(key_bits) => {
            let integrity = words.take(&INTEGRITY, "an integrity algorithm")?;
            IkeEncryption::AesCbc { key_bits, integrity }
        }
    };
    let prf = match encryption.integrity() {
        Some(integrity) if !words.next_starts_with("prf") => prf_of(integrity),
        None if words.next_starts_with("sha") => prf_of(words.take(&INTEGRITY, "a hash")?),
        _ => words.take(&PRF, "a prf")?,
    };
    let key_exchange = words.take(&KEY_EXCHANGE, "a key exchange")?;
    words.end()?;
    Ok(IkeSuite { encryption, prf, key_exchange })
}

fn prf_of(hash: HmacSha2) -> Prf {
    match hash {
        HmacSha2::Sha256 => Prf::HmacSha256,
        HmacSha2::Sha384 => Prf::HmacSha384,
        HmacSha2::Sha512 => Prf::HmacSha512,
    }
}

/// The ESP suite of `text`; a key exchange after the algorithms asks for perfect forward secrecy in each
/// rekey (RFC 7296 §1.3.1), `esn` at the end for extended sequence numbers (RFC 4303 §2.2.1).
pub fn esp(text: &str) -> Result<EspProposal, String> {
    let mut words = Words::new(text);
    let suite = match words.take(&ENCRYPTION, "an encryption")? {
        Cipher::Gcm(key_bits) => EspSuite::AesGcm16 { key_bits },
        Cipher::ChaCha20Poly1305 => EspSuite::ChaCha20Poly1305,
        Cipher::Cbc(key_bits) => {
            let integrity = words.take(&INTEGRITY, "an integrity algorithm")?;
            EspSuite::AesCbc { key_bits, integrity }
        }
    };
    let key_exchange = match words.is_done() || words.next_starts_with("esn") {
        true => None,
        false => Some(words.take(&KEY_EXCHANGE, "a key exchange, or esn")?),
    };
    let esn = words.next_starts_with("esn");
    if esn {
        words.take(&[("esn", ())], "a word for extended sequence numbers")?;
    }
    words.end()?;
    Ok(EspProposal { suite, esn, key_exchange })
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

    fn is_done(&self) -> bool {
        self.rest.is_empty()
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
        assert!(ike_defaults().iter().all(|text| ike(text).is_ok()));
        assert_eq!(ike_defaults()[0], "aes256gcm16-prfsha384-x25519");
        for text in ESP_DEFAULTS {
            let esp = esp(text).unwrap();
            assert_eq!(esp_name(esp.suite), text);
            assert!(!esp.esn);
        }
    }

    #[test]
    fn k_rfc_8247_no_word_names_what_is_forbidden() {
        // RFC 8247 §2.1 to §2.4: what is MUST, SHOULD or MAY, without that which is MUST NOT or
        // SHOULD NOT.
        for (_, cipher) in ENCRYPTION {
            match cipher {
                Cipher::Gcm(bits) | Cipher::Cbc(bits) => assert!([128, 192, 256].contains(&bits)),
                Cipher::ChaCha20Poly1305 => {}
            }
        }
        assert!(PRF.iter().all(|(_, prf)| [5, 6, 7].contains(&prf.id())));
        let groups = KEY_EXCHANGE.map(|(_, exchange)| exchange.id());
        assert!(groups.iter().all(|id| [14, 15, 16, 19, 20, 21, 31].contains(id)));
        for text in ["des", "3des", "null", "aes128ctr", "aes128gcm8", "blowfish128", "md5", "sha1"]
        {
            assert!(ENCRYPTION.iter().all(|(word, _)| *word != text));
            assert!(esp(&format!("{text}-sha256")).is_err(), "{text}");
            assert!(esp(&format!("aes128-{text}")).is_err(), "{text}");
            assert!(ike(&format!("aes128-{text}-x25519")).is_err(), "{text}");
            assert!(ike(&format!("aes128gcm16-{text}-x25519")).is_err(), "{text}");
            assert!(ike(&format!("aes128gcm16-prf{text}-x25519")).is_err(), "{text}");
        }
        for group in ["modp768", "modp1024", "modp1536", "modp2048s224", "ecp192", "ecp224"] {
            assert!(ike(&format!("aes128gcm16-prfsha256-{group}")).is_err(), "{group}");
        }
    }

    #[test]
    fn k_rfc_8247_what_must_be_supported_is_among_the_defaults() {
        // RFC 8247: AES-CBC, AES-GCM, HMAC-SHA2-256 as prf and integrity, groups 14 and 19.
        let defaults = ike_defaults();
        for text in [
            "aes256-sha256-modp2048",
            "aes128-sha256-modp2048",
            "aes128gcm16-prfsha256-ecp256",
            "chacha20poly1305-prfsha256-x25519",
        ] {
            assert!(defaults.iter().any(|default| default == text), "{text}");
        }
        // RFC 8221 §5, §6: AES-CBC with HMAC-SHA2-256-128, AES-GCM, ChaCha20-Poly1305.
        for text in ["aes128-sha256", "aes128gcm16", "chacha20poly1305"] {
            assert!(ESP_DEFAULTS.contains(&text), "{text}");
        }
    }

    #[test]
    fn each_algorithm_has_its_word() {
        for text in ["aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305"] {
            assert_eq!(esp_name(esp(text).unwrap().suite), text);
            assert!(esp(&format!("{text}-esn")).unwrap().esn);
            // An AEAD has no integrity algorithm of its own.
            assert!(esp(&format!("{text}-sha256")).is_err());
            for (hash, prf) in [
                ("sha256", Prf::HmacSha256),
                ("sha384", Prf::HmacSha384),
                ("sha512", Prf::HmacSha512),
            ] {
                for word in [hash.to_owned(), format!("prf{hash}")] {
                    let suite = ike(&format!("{text}-{word}-x25519")).unwrap();
                    assert_eq!(suite.prf, prf);
                    assert_eq!(suite.encryption.integrity(), None);
                }
            }
        }
        for text in ["aes128-sha256", "aes192-sha384", "aes256-sha512"] {
            assert_eq!(esp_name(esp(text).unwrap().suite), text);
            let with_esn = esp(&format!("{text}-esn")).unwrap();
            assert!(with_esn.esn);
            assert_eq!(esp_name(with_esn.suite), text);
        }
        for (word, id) in [
            ("modp2048", 14),
            ("modp3072", 15),
            ("modp4096", 16),
            ("ecp256", 19),
            ("ecp384", 20),
            ("ecp521", 21),
            ("x25519", 31),
        ] {
            let suite = ike(&format!("aes256-sha512-{word}")).unwrap();
            assert_eq!(suite.key_exchange.id(), id);
            assert_eq!(suite.prf, Prf::HmacSha512);
        }
    }

    #[test]
    fn a_key_exchange_in_an_esp_proposal_asks_for_secrecy_in_each_rekey() {
        let with = esp("aes128-sha256-ecp256-esn").unwrap();
        assert_eq!((with.key_exchange, with.esn), (Some(KeyExchangeMethod::Ecp256), true));
        assert_eq!(esp("aes256gcm16").unwrap().key_exchange, None);
        assert!(esp("aes256gcm16-x25519").unwrap().key_exchange.is_some());
    }

    #[test]
    fn the_prf_of_cbc_follows_the_integrity_unless_it_is_said() {
        let short = ike("aes128-sha256-ecp256").unwrap();
        assert_eq!(short, ike("aes128-sha256-prfsha256-ecp256").unwrap());
        assert_eq!(ike("aes128-sha256-prfsha384-ecp256").unwrap().prf, Prf::HmacSha384);
    }

    #[test]
    fn a_wrong_word_is_named_with_those_that_are_known() {
        let error = |text| ike(text).unwrap_err();
        assert_eq!(
            error("3des-sha256-x25519"),
            concat!(
                r#""3des" is not an encryption; known: aes256gcm16, aes192gcm16, aes128gcm16, "#,
                "chacha20poly1305, aes256, aes192, aes128"
            )
        );
        assert_eq!(
            error("aes256gcm16-x25519"),
            r#""x25519" is not a prf; known: prfsha256, prfsha384, prfsha512"#
        );
        assert_eq!(
            error("aes256gcm16-prfsha384"),
            concat!(
                r#""aes256gcm16-prfsha384" lacks a key exchange; known: x25519, ecp256, ecp384, "#,
                "ecp521, modp2048, modp3072, modp4096"
            )
        );
        assert_eq!(
            error("aes256gcm16-prfsha384-x25519-mlkem768"),
            r#""mlkem768" is one word too many in "aes256gcm16-prfsha384-x25519-mlkem768""#
        );
        assert_eq!(
            esp("aes256gcm16-esp").unwrap_err(),
            concat!(
                r#""esp" is not a key exchange, or esn; known: x25519, ecp256, ecp384, ecp521, "#,
                "modp2048, modp3072, modp4096"
            )
        );
        assert_eq!(
            esp("aes256gcm16-esnn").unwrap_err(),
            r#""esnn" is not a word for extended sequence numbers; known: esn"#
        );
        assert!(esp("aes128-md5").unwrap_err().starts_with(r#""md5" is not an integrity"#));
    }
}
