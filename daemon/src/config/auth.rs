//! How each side of a connection proves who it is: a pre-shared key or certificates, in the table or in
//! the files that it names.

use std::{ops::Range, path::Path, sync::Arc};

use bewick_ike::{
    Secret,
    auth::{
        Certificate, Credentials, CredentialsError, LocalAuth, PrivateKey, RemoteAuth,
        RevocationPolicy, Trust,
    },
    wire::identity::Identity,
};
use zeroize::Zeroizing;

use crate::config::{reader::TableReader, secret};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Psk,
    Certificate,
}

const KINDS: [(&str, Kind); 2] = [("psk", Kind::Psk), ("certificate", Kind::Certificate)];

const NO_SECRET: &str = "no secret; expected psk_file = \"a file with the pre-shared key\" or psk = \
                         \"…\", or certificates: certificate_file, key_file and ca_file";
const NO_LOCAL: &str = "nothing to prove local_id with; expected certificate_file and key_file, or \
                        psk_file = \"a file with the pre-shared key\"";
const NO_REMOTE: &str = "nothing to check remote_id with; expected ca_file = \"the certificates of the \
                         authorities to trust\", or psk_file = \"a file with the pre-shared key\"";

/// Reads both sides' proofs; `None` if one is missing. What is wrong is in the reader's report.
pub(super) fn read(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    private: bool,
    local_id: Option<&Identity>,
) -> Option<(LocalAuth, RemoteAuth)> {
    let guess = |certificate: bool| if certificate { Kind::Certificate } else { Kind::Psk };
    let has = |reader: &TableReader<'_, '_, '_>, key| reader.key_span(key).is_some();
    let own = guess(has(reader, "certificate_file") || has(reader, "key_file"));
    let theirs = guess(has(reader, "ca_file"));
    let local = reader.word("auth", &KINDS).unwrap_or(own);
    let remote = reader.word("remote_auth", &KINDS).unwrap_or(theirs);
    let secret = match (local, remote) {
        (Kind::Certificate, Kind::Certificate) => {
            for key in ["psk", "psk_file"] {
                reader.refuse(key, "is for auth or remote_auth = \"psk\"; remove it");
            }
            None
        }
        (Kind::Psk, Kind::Psk) => psk(reader, folder, private, NO_SECRET),
        (Kind::Psk, Kind::Certificate) => psk(reader, folder, private, NO_LOCAL),
        (Kind::Certificate, Kind::Psk) => psk(reader, folder, private, NO_REMOTE),
    };
    let anchors = match remote {
        Kind::Certificate => {
            let missing = "ca_file is missing; expected the certificates of the authorities that \
                           the peer's certificate may come from";
            certificates(reader, folder, "ca_file", missing)
        }
        Kind::Psk => {
            reader.refuse("ca_file", "is for remote_auth = \"certificate\"; remove it");
            None
        }
    };
    let local = match local {
        Kind::Psk => {
            for key in ["certificate_file", "key_file"] {
                reader.refuse(key, "is for auth = \"certificate\"; remove it");
            }
            secret.clone().map(LocalAuth::Psk)
        }
        Kind::Certificate => {
            let roots = anchors.as_ref().map_or(&[][..], |(anchors, _)| anchors);
            credentials(reader, folder, local_id, roots)
        }
    };
    let remote = match remote {
        Kind::Psk => {
            for key in ["crl_file", "crl_policy"] {
                reader.refuse(key, "is for remote_auth = \"certificate\"; remove it");
            }
            secret.map(RemoteAuth::Psk)
        }
        Kind::Certificate => trust(reader, folder, anchors),
    };
    Some((local?, remote?))
}

/// The pre-shared key, from the table itself or from a file that it names.
fn psk(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    private: bool,
    missing: &str,
) -> Option<Secret> {
    let inline = reader.string("psk", "the pre-shared key");
    let file = reader.string("psk_file", "the path of a file with the pre-shared key");
    if let (Some(_), Some(file)) = (&inline, &file) {
        reader.report.add(&file.span, "both psk and psk_file are there; expected one of them");
        return None;
    }
    if let Some(inline) = inline {
        if !private {
            let text = format!(
                "psk is in a file that others than its owner can read; do `chmod 0600 {}`, or use \
                 psk_file",
                reader.report.file()
            );
            reader.report.add(&inline.span, text);
        }
        if inline.value.is_empty() {
            reader.report.add(&inline.span, "psk is empty; expected the pre-shared key");
        }
        return Some(Secret::new(inline.value.as_bytes().to_vec()));
    }
    if let Some(file) = file {
        let secret = secret::psk_file(&folder.join(file.value));
        return secret.map_err(|text| reader.report.add(&file.span, text)).ok();
    }
    if reader.key_span("psk").is_none() && reader.key_span("psk_file").is_none() {
        reader.missing(missing);
    }
    None
}

/// The contents of the file that `key` names, what to call it in a message, and where it is named.
type Named = (Zeroizing<Vec<u8>>, String, Range<usize>);

fn named_file(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    (key, private): (&'static str, bool),
    missing: &str,
) -> Option<Named> {
    let Some(field) = reader.string(key, "the path of a file") else {
        if reader.key_span(key).is_none() {
            reader.missing(missing);
        }
        return None;
    };
    let path = folder.join(field.value);
    match secret::file(key, &path, private) {
        Ok(octets) => Some((octets, format!("{key} {}", path.display()), field.span)),
        Err(text) => {
            reader.report.add(&field.span, text);
            None
        }
    }
}

/// The certificates of the file that `key` names, and where it is named.
fn certificates(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    key: &'static str,
    missing: &str,
) -> Option<(Vec<Certificate>, Range<usize>)> {
    let (octets, shown, span) = named_file(reader, folder, (key, false), missing)?;
    match Certificate::from_file(&octets) {
        Ok(certificates) => Some((certificates, span)),
        Err(_) => {
            let text =
                format!("{shown} holds no certificate that can be read; expected PEM or DER");
            reader.report.add(&span, text);
            None
        }
    }
}

/// What we show and sign with.
fn credentials(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    local_id: Option<&Identity>,
    roots: &[Certificate],
) -> Option<LocalAuth> {
    let missing = "certificate_file is missing; expected our certificate, and behind it the \
                   intermediate ones that lead to its authority";
    let chain = certificates(reader, folder, "certificate_file", missing);
    let missing = "key_file is missing; expected the private key of the first certificate in \
                   certificate_file";
    let key = named_file(reader, folder, ("key_file", true), missing);
    let key = key.and_then(|(octets, shown, span)| match PrivateKey::from_file(&octets) {
        // A replay is for the simulator; the daemon wants speed.
        Ok(key) => Some((key.with_system_randomness(), span)),
        Err(error) => {
            reader.report.add(&span, format!("{shown}: {error}"));
            None
        }
    });
    let ((chain, chain_span), (key, key_span)) = (chain?, key?);
    match Credentials::new(chain, Arc::new(key)) {
        Ok(credentials) => {
            if let Some(id) = local_id.filter(|id| !credentials.are_for(id)) {
                let names = credentials.chain().first().map(Certificate::names).unwrap_or_default();
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                let names = if names.is_empty() { "none".into() } else { names.join(", ") };
                let text = format!(
                    "the first certificate in certificate_file is not for local_id {id}; expected \
                     it among its subjectAltNames, which are: {names}"
                );
                reader.report.add(&chain_span, text);
            }
            Some(LocalAuth::Certificate(Arc::new(credentials.with_roots(roots))))
        }
        Err(error) => {
            let at = if error == CredentialsError::OtherKey { &key_span } else { &chain_span };
            reader.report.add(at, error.to_string());
            None
        }
    }
}

/// Whom we trust, and how strictly.
fn trust(
    reader: &mut TableReader<'_, '_, '_>,
    folder: &Path,
    anchors: Option<(Vec<Certificate>, Range<usize>)>,
) -> Option<RemoteAuth> {
    let policies =
        [("strict", RevocationPolicy::Required), ("if-present", RevocationPolicy::Relaxed)];
    let policy = reader.word("crl_policy", &policies).unwrap_or(RevocationPolicy::Relaxed);
    let lists = reader.one_or_more("crl_file", "the path of a revocation list");
    if lists.is_none()
        && reader.key_span("crl_file").is_none()
        && policy == RevocationPolicy::Required
    {
        let span = reader.key_span("crl_policy").unwrap_or(reader.span.clone());
        let text = "crl_policy = \"strict\" without crl_file refuses every peer; expected crl_file";
        reader.report.add(&span, text);
    }
    let (anchors, span) = anchors?;
    let mut trust = match Trust::new(&anchors) {
        Ok(trust) => trust.with_revocation_policy(policy),
        Err(error) => {
            reader.report.add(&span, format!("ca_file: {error}"));
            return None;
        }
    };
    for list in lists.unwrap_or_default() {
        let path = folder.join(list.value);
        let added = secret::file("crl_file", &path, false).and_then(|octets| {
            let shown = path.display();
            trust
                .add_revocation_lists(&octets)
                .map_err(|error| format!("crl_file {shown}: {error}"))
        });
        if let Err(text) = added {
            reader.report.add(&list.span, text);
        }
    }
    Some(RemoteAuth::Certificate(Arc::new(trust)))
}

#[cfg(test)]
mod tests;
