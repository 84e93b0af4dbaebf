//! Certificates for the x509pop attestor: a CA of a made-up company, and nodes of it.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A certificate authority for nodes.
pub struct NodeCa {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate in a PEM file.
    pub file: PathBuf,
}

/// A node's certificate and key in PEM files.
pub struct NodeFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key, mode 0600.
    pub key: PathBuf,
}

impl NodeCa {
    /// Makes a CA, with its certificate in `dir`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let params = ca_params("node CA")?;
        let certificate = params.self_signed(&key)?;
        let file = dir.join("node-ca.pem");
        fs::write(&file, certificate.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), file })
    }

    /// Makes a CA below this one, named `name`, with its certificate in `dir`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn intermediate(&self, dir: &Path, name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let params = ca_params(name)?;
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, params.signed_by(&key, &self.issuer)?.pem())?;
        Ok(Self { issuer: Issuer::new(params, key), file })
    }

    /// Makes a node's certificate, named `name`, with its files in `dir`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn node(&self, dir: &Path, name: &str) -> anyhow::Result<NodeFiles> {
        self.node_with_key(dir, name, &KeyPair::generate()?.serialize_pem())
    }

    /// As [`NodeCa::node`], for a key that exists: PKCS#8 in PEM.
    ///
    /// # Errors
    /// When the key is of no known kind, or a file cannot be written.
    pub fn node_with_key(&self, dir: &Path, name: &str, key: &str) -> anyhow::Result<NodeFiles> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&KeyPair::from_pem(key)?, &self.issuer)?;
        let files =
            NodeFiles { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        fs::write(&files.certificate, certificate.pem())?;
        write_secret(&files.key, key)?;
        Ok(files)
    }
}

fn ca_params(name: &str) -> anyhow::Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it cannot be written.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
