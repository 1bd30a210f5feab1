//! Authorities, holders and revocation lists for tests, made with rcgen. Their keys are drawn anew in
//! each run: what a test shows may not rest on their octets.

use std::sync::Arc;

use bewick_ike::auth::{
    Certificate, Credentials, LocalAuth, PrivateKey, RemoteAuth, Signer, Trust,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};

/// Somebody with a key and a certificate for it.
pub struct Holder {
    /// what the certificate says
    pub params: CertificateParams,
    /// the key
    pub key: KeyPair,
    /// the certificate
    pub certificate: Certificate,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2028, 1, 1);
    params
}

/// What an authority of this name says in its own certificate.
pub fn authority_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What the holder of this domain or mail address gets: from 2026 to 2028, with a serial number that
/// [`Holder::revocation_list`] can name.
///
/// # Panics
/// If the name is not ASCII.
pub fn holder_params(name: &str) -> CertificateParams {
    let mut params = named("holder");
    params.serial_number = Some(SerialNumber::from(77));
    let text = name.try_into().expect("ASCII");
    let kind = if name.contains('@') { SanType::Rfc822Name } else { SanType::DnsName };
    params.subject_alt_names = vec![kind(text)];
    params
}

fn certificate(der: &[u8]) -> Certificate {
    Certificate::from_der(der).expect("rcgen makes certificates")
}

/// An authority that nobody stands above, with a P-256 key.
///
/// # Panics
/// Never.
pub fn root(name: &str) -> Holder {
    let (params, key) = (authority_params(name), KeyPair::generate().expect("a key"));
    let made = params.self_signed(&key).expect("a certificate");
    Holder { certificate: certificate(made.der()), params, key }
}

impl Holder {
    /// Certifies a new P-256 key.
    ///
    /// # Panics
    /// Never.
    pub fn certify(&self, params: CertificateParams) -> Holder {
        self.certify_key(params, KeyPair::generate().expect("a key"))
    }

    /// Certifies this key.
    ///
    /// # Panics
    /// Never.
    pub fn certify_key(&self, params: CertificateParams, key: KeyPair) -> Holder {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let made = params.signed_by(&key, &issuer).expect("a certificate");
        Holder { certificate: certificate(made.der()), params, key }
    }

    /// A revocation list of December 2026 that names the serial number of [`holder_params`] or
    /// nothing, and is to be replaced on the first of that month.
    ///
    /// # Panics
    /// Never.
    pub fn revocation_list(&self, revokes: bool, (year, month): (i32, u8)) -> Vec<u8> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(77),
            revocation_time: date_time_ymd(2026, 6, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 12, 1),
            next_update: date_time_ymd(year, month, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revokes.then_some(revoked).into_iter().collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(&issuer).expect("a list").der().to_vec()
    }

    /// The key, to sign with.
    ///
    /// # Panics
    /// Never.
    pub fn signer(&self) -> PrivateKey {
        PrivateKey::from_file(self.key.serialized_der()).expect("a key")
    }

    /// Trust in this authority.
    ///
    /// # Panics
    /// Never.
    pub fn trust(&self) -> Trust {
        Trust::new(std::slice::from_ref(&self.certificate)).expect("an anchor")
    }

    /// Peers must have certificates that lead to this authority.
    pub fn as_remote(&self) -> RemoteAuth {
        RemoteAuth::Certificate(Arc::new(self.trust()))
    }

    /// Proof with this holder's certificate alone.
    pub fn as_local(&self) -> LocalAuth {
        chain(&[self])
    }
}

/// What shows these certificates and signs with the key of the first.
///
/// # Panics
/// If there are none, or too many.
pub fn chain(holders: &[&Holder]) -> LocalAuth {
    let first = holders.first().expect("a holder");
    chain_with(holders, Arc::new(first.signer()))
}

/// What shows these certificates and signs with that.
///
/// # Panics
/// If there are none or too many, or the first has another key than the signer says.
pub fn chain_with(holders: &[&Holder], signer: Arc<dyn Signer>) -> LocalAuth {
    let certificates = holders.iter().map(|holder| holder.certificate.clone()).collect();
    let credentials = Credentials::new(certificates, signer).expect("credentials");
    LocalAuth::Certificate(Arc::new(credentials))
}
