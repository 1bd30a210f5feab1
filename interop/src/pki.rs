//! Certificates for the ends of a tunnel, made by `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::failure::{Context, Result};
use crate::peer::tunnel::Files;
use crate::peer::{CLIENT_ID, GATEWAY_ID};
use crate::process;
use crate::topology::Node;

/// What kind of key the authority and the end both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// RSA with 2048 bits.
    Rsa,
    /// ECDSA on P-256.
    Ecdsa256,
    /// ECDSA on P-384.
    Ecdsa384,
    /// Ed25519.
    Ed25519,
}

impl Kind {
    /// Its name in scenarios and files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Rsa => "rsa",
            Kind::Ecdsa256 => "ecdsa256",
            Kind::Ecdsa384 => "ecdsa384",
            Kind::Ed25519 => "ed25519",
        }
    }

    /// How `openssl req` is told to make such a key.
    fn new_key(self) -> &'static [&'static str] {
        match self {
            Kind::Rsa => &["-newkey", "rsa:2048"],
            Kind::Ecdsa256 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Kind::Ecdsa384 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Kind::Ed25519 => &["-newkey", "ed25519"],
        }
    }
}

/// What a certificate is for: a section of the configuration below.
const EXTENSIONS: &str = "\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
authorityKeyIdentifier = keyid
subjectAltName = email:@client_id@
[gateway]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
authorityKeyIdentifier = keyid
subjectAltName = DNS:@gateway_id@
";

/// How a revocation list is made: one with a number and the authority's key, as RFC 5280 §5.2 asks.
const LIST: &str = "\
[ca]
default_ca = it
[it]
database = @index@
crlnumber = @number@
crl_extensions = extensions
[extensions]
authorityKeyIdentifier = keyid
";

/// Makes an authority and a certificate from it for the end on this host, with keys of this kind;
/// `chained` puts an intermediate authority between them.
///
/// # Errors
/// What `openssl` or the file system said.
pub fn make(folder: &Path, node: Node, kind: Kind, chained: bool) -> Result<Files> {
    fs::create_dir_all(folder).context(folder.display())?;
    let extensions = folder.join("extensions.cnf");
    let text = EXTENSIONS.replace("@client_id@", CLIENT_ID).replace("@gateway_id@", GATEWAY_ID);
    fs::write(&extensions, text).context(extensions.display())?;
    let path = |what: &str, end: &str| file(folder, node, kind, what, end);
    let issue = |what: &str, section: &str, issuer: Option<&str>| -> Result<PathBuf> {
        let certificate = path(what, "pem");
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-nodes", "-days", "2", "-batch"]).args(kind.new_key());
        command.arg("-config").arg(&extensions).args(["-extensions", section]);
        command.args(["-subj", &format!("/O=Bewick interop/CN={} {what}", node.name())]);
        command.arg("-keyout").arg(path(what, "key")).arg("-out").arg(&certificate);
        if let Some(issuer) = issuer {
            command.arg("-CA").arg(path(issuer, "pem")).arg("-CAkey").arg(path(issuer, "key"));
        }
        process::output(&mut command, Duration::from_secs(20))?;
        Ok(certificate)
    };
    let ca = issue("authority", "authority", None)?;
    let intermediate = match chained {
        true => Some(issue("intermediate", "authority", Some("authority"))?),
        false => None,
    };
    let issuer = if chained { "intermediate" } else { "authority" };
    let certificate = issue("end", node.name(), Some(issuer))?;
    Ok(Files { ca, intermediate, certificate, key: path("end", "key") })
}

/// Makes a list of the authority of [`make`], by which it revokes the certificate from it, or nothing.
///
/// # Errors
/// What `openssl` or the file system said.
pub fn list(folder: &Path, node: Node, kind: Kind, revoked: bool) -> Result<PathBuf> {
    let path = |what: &str, end: &str| file(folder, node, kind, what, end);
    let mut serial = Command::new("openssl");
    serial.args(["x509", "-noout", "-serial", "-in"]).arg(path("end", "pem"));
    let said = process::output(&mut serial, Duration::from_secs(20))?;
    let serial = said.trim().trim_start_matches("serial=");
    // openssl's own record of what it has issued: revoked, until when valid, since when revoked.
    let index = path("authority", "index");
    let record = match revoked {
        true => format!("R\t491231235959Z\t200101000000Z\t{serial}\tunknown\t/CN=end\n"),
        false => String::new(),
    };
    fs::write(&index, record).context(index.display())?;
    let number = path("authority", "number");
    fs::write(&number, "01\n").context(number.display())?;
    let configuration = path("authority", "cnf");
    let text = LIST
        .replace("@index@", &index.display().to_string())
        .replace("@number@", &number.display().to_string());
    fs::write(&configuration, text).context(configuration.display())?;
    let list = path(if revoked { "revokes" } else { "revokes-none" }, "crl");
    let mut command = Command::new("openssl");
    command.args(["ca", "-gencrl", "-batch", "-md", "sha256", "-crldays", "2", "-config"]);
    command.arg(&configuration).arg("-cert").arg(path("authority", "pem"));
    command.arg("-keyfile").arg(path("authority", "key")).arg("-out").arg(&list);
    process::output(&mut command, Duration::from_secs(20))?;
    Ok(list)
}

fn file(folder: &Path, node: Node, kind: Kind, what: &str, end: &str) -> PathBuf {
    folder.join(format!("{}-{}-{what}.{end}", node.name(), kind.name()))
}
