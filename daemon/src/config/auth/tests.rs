//! The files of certificates and keys, and the exact words about what is wrong with them.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use bewick_ike::auth::{LocalAuth, RemoteAuth};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, SanType, SerialNumber, date_time_ymd,
};

use crate::config::{Config, Problems, parse, report::Source};

const HEAD: &str = r#"[[connection]]
name = "office"
role = "initiator"
gateway = "192.0.2.1"
local_id = "laptop@example.com"
remote_id = "vpn.example.com"
remote_ts = ["10.1.0.0/16"]
"#;

const CERTIFICATES: &str = r#"certificate_file = "laptop.pem"
key_file = "laptop.key"
ca_file = "ca.pem"
"#;

/// A folder with an authority, a laptop and a list, which goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bewick-auth-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let folder = Folder(path);
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        folder.write("ca.pem", &root.self_signed(&root_key).unwrap().pem(), 0o644);
        let issuer = Issuer::from_params(&root, &root_key);
        let mut laptop = CertificateParams::default();
        let name = "laptop@example.com".try_into().unwrap();
        laptop.subject_alt_names = vec![SanType::Rfc822Name(name)];
        let key = KeyPair::generate().unwrap();
        let certificate = laptop.signed_by(&key, &issuer).unwrap();
        folder.write("laptop.pem", &certificate.pem(), 0o644);
        folder.write("laptop.key", &key.serialize_pem(), 0o600);
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 12, 1),
            next_update: date_time_ymd(2027, 12, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        folder.write("list.pem", &list.signed_by(&issuer).unwrap().pem().unwrap(), 0o644);
        folder
    }

    fn write(&self, name: &str, contents: &str, mode: u32) {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(&self, auth: &str) -> Result<Config, Problems> {
        let text = format!("{HEAD}{auth}");
        parse(Source { file: "b.toml", text: &text }, &self.0, true)
    }

    /// The kinds of proof of a configuration without mistakes.
    fn kinds(&self, auth: &str) -> (&'static str, &'static str) {
        let config = self.read(auth).unwrap();
        let ike = &config.connections[0].ike;
        let local = match ike.local_auth {
            LocalAuth::Psk(_) => "psk",
            LocalAuth::Certificate(_) => "certificate",
        };
        match ike.remote_auth {
            RemoteAuth::Psk(_) => (local, "psk"),
            RemoteAuth::Certificate(_) => (local, "certificate"),
        }
    }

    /// What is wrong, without the folder's name, which is another in each run.
    fn problems(&self, auth: &str) -> Vec<String> {
        let folder = format!("{}/", self.0.display());
        let problems = self.read(auth).expect_err("a problem").0;
        problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_keys_that_are_there_say_how_each_side_proves_itself() {
    let folder = Folder::new("kinds");
    let own = "certificate_file = \"laptop.pem\"\nkey_file = \"laptop.key\"\n";
    let (ca, psk) = ("ca_file = \"ca.pem\"\n", "psk = \"swordfish\"\n");
    assert_eq!(folder.kinds(psk), ("psk", "psk"));
    assert_eq!(folder.kinds(CERTIFICATES), ("certificate", "certificate"));
    assert_eq!(folder.kinds(&format!("{own}{psk}")), ("certificate", "psk"));
    assert_eq!(folder.kinds(&format!("{ca}{psk}")), ("psk", "certificate"));
    let said = format!("{CERTIFICATES}auth = \"certificate\"\nremote_auth = \"certificate\"\n");
    assert_eq!(folder.kinds(&said), ("certificate", "certificate"));
    let lists = format!("{CERTIFICATES}crl_file = [\"list.pem\"]\ncrl_policy = \"strict\"\n");
    assert_eq!(folder.kinds(&lists), ("certificate", "certificate"));
    let list = format!("{CERTIFICATES}crl_file = \"list.pem\"\ncrl_policy = \"if-present\"\n");
    let shown = format!("{:?}", folder.read(&list).unwrap());
    assert!(shown.contains("Trust(1 anchors, 1 revocation lists)"), "{shown}");
    assert!(shown.contains("Credentials(1 certificates)"), "{shown}");
}

#[test]
fn what_is_missing() {
    let folder = Folder::new("missing");
    let without = |line: &str| {
        assert!(CERTIFICATES.contains(line));
        folder.problems(&CERTIFICATES.replace(line, ""))
    };
    assert_eq!(
        without("key_file = \"laptop.key\"\n"),
        ["b.toml:1:1: key_file is missing; expected the private key of the first certificate in \
          certificate_file"]
    );
    assert_eq!(
        without("certificate_file = \"laptop.pem\"\n"),
        ["b.toml:1:1: certificate_file is missing; expected our certificate, and behind it the \
          intermediate ones that lead to its authority"]
    );
    assert_eq!(
        without("ca_file = \"ca.pem\"\n"),
        [
            "b.toml:1:1: nothing to check remote_id with; expected ca_file = \"the certificates of the \
          authorities to trust\", or psk_file = \"a file with the pre-shared key\""
        ]
    );
    assert_eq!(
        folder.problems("ca_file = \"ca.pem\"\n"),
        ["b.toml:1:1: nothing to prove local_id with; expected certificate_file and key_file, or \
          psk_file = \"a file with the pre-shared key\""]
    );
    assert_eq!(
        folder.problems("auth = \"psk\"\nremote_auth = \"certificate\"\npsk = \"a\"\n"),
        ["b.toml:1:1: ca_file is missing; expected the certificates of the authorities that the \
          peer's certificate may come from"]
    );
    assert_eq!(
        folder.problems(&format!("{CERTIFICATES}crl_policy = \"strict\"\n")),
        ["b.toml:11:1: crl_policy = \"strict\" without crl_file refuses every peer; expected \
          crl_file"]
    );
}

#[test]
fn what_does_not_belong() {
    let folder = Folder::new("belong");
    assert_eq!(
        folder.problems(&format!("{CERTIFICATES}psk_file = \"psk\"\n")),
        ["b.toml:11:1: psk_file is for auth or remote_auth = \"psk\"; remove it"]
    );
    assert_eq!(
        folder.problems("psk = \"a\"\ncrl_file = \"list.pem\"\n"),
        ["b.toml:9:1: crl_file is for remote_auth = \"certificate\"; remove it"]
    );
    assert_eq!(
        folder.problems(&format!("{CERTIFICATES}auth = \"psk\"\npsk = \"a\"\n")),
        [
            "b.toml:8:1: certificate_file is for auth = \"certificate\"; remove it",
            "b.toml:9:1: key_file is for auth = \"certificate\"; remove it",
        ]
    );
    assert_eq!(
        folder.problems(&format!("{CERTIFICATES}auth = \"certificat\"\n")),
        ["b.toml:11:8: auth is \"certificat\"; expected \"psk\" or \"certificate\"; did you mean \
          \"certificate\"?"]
    );
    assert_eq!(
        folder.problems(&CERTIFICATES.replace("ca_file", "cafile")),
        [
            "b.toml:1:1: nothing to check remote_id with; expected ca_file = \"the certificates of \
             the authorities to trust\", or psk_file = \"a file with the pre-shared key\"",
            "b.toml:10:1: unknown key cafile in [[connection]]; did you mean ca_file?",
        ]
    );
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let folder = Folder::new("files");
    let with = |from: &str, to: &str| {
        assert!(CERTIFICATES.contains(from));
        folder.problems(&CERTIFICATES.replace(from, to))
    };
    assert_eq!(with("laptop.key", "none"), ["b.toml:9:12: key_file none does not exist"]);
    assert_eq!(
        with("laptop.key", "laptop.pem"),
        ["b.toml:9:12: key_file laptop.pem can be read by others than its owner; do `chmod 0600 \
          laptop.pem`"]
    );
    folder.write("copy.pem", &fs::read_to_string(folder.0.join("laptop.pem")).unwrap(), 0o600);
    assert_eq!(
        with("laptop.key", "copy.pem"),
        [
            "b.toml:9:12: key_file copy.pem: this is a certificate, not the private key that belongs \
          to it"
        ]
    );
    folder.write("other.key", &KeyPair::generate().unwrap().serialize_pem(), 0o600);
    assert_eq!(
        with("laptop.key", "other.key"),
        [
            "b.toml:9:12: the first certificate does not belong to the private key: put the holder's \
          own first"
        ]
    );
    assert_eq!(
        with("laptop.pem", "laptop.key"),
        [
            "b.toml:8:20: certificate_file laptop.key holds no certificate that can be read; expected \
          PEM or DER"
        ]
    );
    assert_eq!(
        with("\"ca.pem\"", "\"list.pem\""),
        [
            "b.toml:10:11: ca_file list.pem holds no certificate that can be read; expected PEM or DER"
        ]
    );
    assert_eq!(
        folder.problems(&format!("{CERTIFICATES}crl_file = [\"list.pem\", \"ca.pem\"]\n")),
        ["b.toml:11:25: crl_file ca.pem: the revocation list is malformed, or is a delta or \
          indirect one"]
    );
}

#[test]
fn a_certificate_for_somebody_else() {
    let folder = Folder::new("other");
    let text = format!("{HEAD}{CERTIFICATES}").replace("laptop@example.com", "me@example.com");
    let problems = parse(Source { file: "b.toml", text: &text }, &folder.0, true);
    assert_eq!(
        problems.unwrap_err().to_string(),
        "b.toml:8:20: the first certificate in certificate_file is not for local_id \
         me@example.com; expected it among its subjectAltNames, which are: laptop@example.com"
    );
}

#[test]
fn no_private_key_is_in_the_debug_output_nor_in_a_message() {
    let folder = Folder::new("secret");
    let pem = fs::read_to_string(folder.0.join("laptop.key")).unwrap();
    let line = pem.lines().nth(1).unwrap();
    let mut shown = format!("{:?}", folder.read(CERTIFICATES).unwrap());
    folder.write("broken.key", &pem.replace(line, &line[1..]), 0o600);
    let broken = CERTIFICATES.replace("laptop.key", "broken.key");
    shown += &folder.problems(&broken).concat();
    assert!(shown.contains("malformed or damaged"), "{shown}");
    assert!(!shown.contains(&line[4..20]));
}
