//! Authorities and holders made with rcgen.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
};

use crate::auth::{Certificate, PrivateKey, UnixSeconds};

/// 2027-01-15: when the tests take place.
pub const NOW: UnixSeconds = UnixSeconds(1_800_000_000);

/// Somebody with a key and a certificate for it.
pub struct Holder {
    pub params: CertificateParams,
    pub key: KeyPair,
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

/// What the holder of these names gets.
pub fn holder_params(names: &[SanType]) -> CertificateParams {
    let mut params = named("holder");
    params.serial_number = Some(SerialNumber::from(77));
    params.subject_alt_names = names.to_vec();
    params
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// An authority that nobody stands above.
pub fn root(name: &str) -> Holder {
    let (params, key) = (authority_params(name), KeyPair::generate().expect("a key"));
    let certificate = params.self_signed(&key).expect("a certificate");
    let certificate = Certificate::from_der(certificate.der()).expect("a certificate");
    Holder { params, key, certificate }
}

impl Holder {
    /// Certifies a new P-256 key.
    pub fn certify(&self, params: CertificateParams) -> Holder {
        self.certify_key(params, KeyPair::generate().expect("a key"))
    }

    /// Certifies this key.
    pub fn certify_key(&self, params: CertificateParams, key: KeyPair) -> Holder {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let certificate = Certificate::from_der(certificate.der()).expect("a certificate");
        Holder { params, key, certificate }
    }

    /// A revocation list that names the serial number of [`holder_params`] or nothing, and is to be
    /// replaced on the first of that month.
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

    pub fn private_key(&self) -> PrivateKey {
        PrivateKey::from_file(self.key.serialized_der()).expect("a key")
    }
}
