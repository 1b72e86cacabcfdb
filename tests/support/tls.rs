//! Certificates for tests, made anew each time: no key lies in the repository. Included by
//! `#[path = "support/tls.rs"] mod tls;`.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

/// Who signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, both as PEM.
pub struct Certificate {
    pub pem: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "llm-layers tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate, by which what it has signed is believed.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate of a server of these names.
    pub fn sign(&self, names: &[&str]) -> Certificate {
        self.sign_until(names, 4096)
    }

    /// A certificate that was good until some years ago.
    pub fn sign_expired(&self, names: &[&str]) -> Certificate {
        self.sign_until(names, 2001)
    }

    fn sign_until(&self, names: &[&str], year: i32) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certificate { pem: certificate.pem(), key: key.serialize_pem() }
    }
}
