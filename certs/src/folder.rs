//! The authority's files.
//!
//! ```text
//! D/root.crt  root.key            the root; keep the key offline
//! D/tokens.key  tokens.pub        the app backend's key for enrolment tokens
//! D/eu/issuer.crt  issuer.key     the issuer of region eu
//! D/eu/eu-1/                      all that relay eu/eu-1 needs: copy this folder to its machine
//!     root.crt  tokens.pub  issuer.crt  issuer.key  relay.crt  relay.key
//! ```
//!
//! Private keys are written with mode 0600. Nothing that exists is overwritten.

use crate::authority::{AuthorityError, Credential, Issuer, Root, Signer};
use crate::chain::ChainVerifier;
use crate::identity::{self, Identity};
use crate::tls::Crypto;
use crate::token::{self, TokenError, TokenSigner, TokenVerifier};
use godwit_wire::{DeviceId, RegionId, RelayId, UnixMillis};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: exists already; nothing was changed", .0.display())]
    Exists(PathBuf),
    #[error("{}: {what}", path.display())]
    Unreadable { path: PathBuf, what: String },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    move |source| FolderError::Io { path: path.to_owned(), source }
}

fn unreadable(path: &Path, what: impl ToString) -> FolderError {
    FolderError::Unreadable { path: path.to_owned(), what: what.to_string() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrecy {
    Secret,
    Public,
}

fn create(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), FolderError> {
    let mode = if secrecy == Secrecy::Secret { 0o600 } else { 0o644 };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(FolderError::Exists(path.to_owned())),
        other => other.map_err(io_error(path))?,
    };
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error(path))
}

fn read(path: &Path) -> Result<String, FolderError> {
    fs::read_to_string(path).map_err(io_error(path))
}

fn make_dir(path: &Path) -> Result<(), FolderError> {
    fs::create_dir_all(path).map_err(io_error(path))
}

/// Certificates as PEM (RFC 7468).
pub fn to_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| pem::encode(&pem::Pem::new("CERTIFICATE", certificate.as_ref()))).collect()
}

/// Reads a chain of certificates, leaf first.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, FolderError> {
    let text = read(path)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(|e| unreadable(path, e))?;
    if chain.is_empty() { Err(unreadable(path, "holds no certificate")) } else { Ok(chain) }
}

/// Reads the one certificate in a file, such as `root.crt`.
pub fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, FolderError> {
    let mut chain = read_chain(path)?;
    if chain.len() == 1 { Ok(chain.remove(0)) } else { Err(unreadable(path, "must hold exactly one certificate")) }
}

fn write_signer(dir: &Path, name: &str, signer: &Signer) -> Result<(), FolderError> {
    make_dir(dir)?;
    create(&dir.join(format!("{name}.key")), &signer.key.serialize_pem(), Secrecy::Secret)?;
    let chain = std::slice::from_ref(&signer.certificate);
    create(&dir.join(format!("{name}.crt")), &to_pem(chain), Secrecy::Public)
}

fn read_signer(dir: &Path, name: &str) -> Result<Signer, FolderError> {
    let key_path = dir.join(format!("{name}.key"));
    let key = KeyPair::from_pem(&read(&key_path)?).map_err(|e| unreadable(&key_path, e))?;
    Ok(Signer { certificate: read_certificate(&dir.join(format!("{name}.crt")))?, key })
}

/// An authority's folder: `godwit certs` works on it.
#[derive(Clone, Debug)]
pub struct AuthorityDir(PathBuf);

impl AuthorityDir {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn root_certificate_path(&self) -> PathBuf {
        self.0.join("root.crt")
    }

    pub fn has_root(&self) -> bool {
        self.root_certificate_path().exists()
    }

    /// Makes an issuer for `region`; the root and the token keys too if there are none yet.
    pub fn init(&self, region: &RegionId, now: UnixMillis) -> Result<(), FolderError> {
        let dir = self.0.join(region.as_str());
        if dir.join("issuer.crt").exists() {
            return Err(FolderError::Exists(dir.join("issuer.crt")));
        }
        let root = if self.has_root() {
            Root(read_signer(&self.0, "root")?)
        } else {
            let root = Root::create(now)?;
            write_signer(&self.0, "root", &root.0)?;
            root
        };
        if !self.0.join("tokens.pub").exists() {
            let (private, public) = token::new_keys()?;
            create(&self.0.join("tokens.key"), &private, Secrecy::Secret)?;
            create(&self.0.join("tokens.pub"), &public, Secrecy::Public)?;
        }
        write_signer(&dir, "issuer", &root.issuer(region, now)?.signer)
    }

    /// Makes an issuer for `region`, unless there is one.
    pub fn ensure(&self, region: &RegionId, now: UnixMillis) -> Result<(), FolderError> {
        if self.0.join(region.as_str()).exists() { Ok(()) } else { self.init(region, now) }
    }

    /// Makes a relay's folder. Its path is returned.
    pub fn relay(&self, relay: &RelayId, now: UnixMillis) -> Result<RelayDir, FolderError> {
        let region_dir = self.0.join(relay.region().as_str());
        let issuer = Issuer { region: relay.region(), signer: read_signer(&region_dir, "issuer")? };
        let dir = region_dir.join(relay.name());
        if dir.join("relay.crt").exists() {
            return Err(FolderError::Exists(dir.join("relay.crt")));
        }
        make_dir(&dir)?;
        for name in ["root.crt", "tokens.pub"] {
            create(&dir.join(name), &read(&self.0.join(name))?, Secrecy::Public)?;
        }
        write_signer(&dir, "issuer", &issuer.signer)?;
        let folder = RelayDir(dir);
        folder.write_credential(&issuer.relay(relay, now)?)?;
        Ok(folder)
    }

    /// A relay's folder, whether it exists or not.
    pub fn relay_dir(&self, relay: &RelayId) -> RelayDir {
        RelayDir(self.0.join(relay.region().as_str()).join(relay.name()))
    }

    /// A token that enrols `device` once.
    pub fn token(&self, device: &DeviceId, life: Duration, now: UnixMillis) -> Result<String, FolderError> {
        let issuer = self.0.join(device.home().as_str()).join("issuer.crt");
        if !issuer.exists() {
            return Err(unreadable(&issuer, format!("is not there: no relay of this authority enrols {device}")));
        }
        let signer = TokenSigner::from_pem(&read(&self.0.join("tokens.key"))?)?;
        Ok(signer.sign(device, &uuid::Uuid::now_v7().to_string(), life, now)?)
    }
}

impl RelayFiles {
    /// Whether relay and issuer are of the folder's own root, and valid at `now`.
    pub fn check(&self, crypto: &Crypto) -> Result<(), FolderError> {
        let now = crypto.clock.now();
        let bad = |name: &str, error: &dyn ToString| unreadable(Path::new(name), error.to_string());
        let verifier = ChainVerifier::new(crypto, &self.root).map_err(|error| bad("root.crt", &error))?;
        verifier.peer(&self.credential.chain, now).map_err(|error| bad("relay.crt", &error))?;
        // An issuer is proved by what it signs.
        let signed = self.issuer.relay(&self.relay, now)?;
        verifier.peer(&signed.chain, now).map_err(|error| bad("issuer.crt", &error))?;
        Ok(())
    }
}

/// A relay's folder: all it needs to prove itself and to enrol devices.
#[derive(Clone, Debug)]
pub struct RelayDir(PathBuf);

/// What a relay's folder holds.
#[derive(Debug)]
pub struct RelayFiles {
    pub relay: RelayId,
    pub root: CertificateDer<'static>,
    pub credential: Credential,
    pub issuer: Issuer,
    pub tokens: TokenVerifier,
}

impl RelayDir {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn root_certificate_path(&self) -> PathBuf {
        self.0.join("root.crt")
    }

    fn write_credential(&self, credential: &Credential) -> Result<(), FolderError> {
        let key = pem::encode(&pem::Pem::new("PRIVATE KEY", credential.key.secret_der()));
        create(&self.0.join("relay.key"), &key, Secrecy::Secret)?;
        create(&self.0.join("relay.crt"), &to_pem(&credential.chain), Secrecy::Public)
    }

    /// Makes the relay's own certificate anew, with the issuer that lies in this folder.
    pub fn renew(&self, now: UnixMillis) -> Result<(), FolderError> {
        let files = self.read()?;
        let credential = files.issuer.relay(&files.relay, now)?;
        for name in ["relay.key", "relay.crt"] {
            let path = self.0.join(name);
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        self.write_credential(&credential)
    }

    pub fn read(&self) -> Result<RelayFiles, FolderError> {
        let chain_path = self.0.join("relay.crt");
        let chain = read_chain(&chain_path)?;
        let relay = match identity::identity(&chain) {
            Ok(Identity::Relay(relay)) => relay,
            Ok(_) => return Err(unreadable(&chain_path, "is not a relay's certificate")),
            Err(e) => return Err(unreadable(&chain_path, e)),
        };
        let key_path = self.0.join("relay.key");
        let key = PrivateKeyDer::from_pem_slice(read(&key_path)?.as_bytes()).map_err(|e| unreadable(&key_path, e))?;
        let tokens = TokenVerifier::from_pem(&read(&self.0.join("tokens.pub"))?)?;
        let issuer = Issuer { region: relay.region(), signer: read_signer(&self.0, "issuer")? };
        let root = read_certificate(&self.root_certificate_path())?;
        Ok(RelayFiles { relay, root, credential: Credential { chain, key }, issuer, tokens })
    }
}
