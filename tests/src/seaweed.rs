//! A real S3 server: SeaweedFS, started once by whoever asks first and ended with this process.

use crate::servers;
use anyhow::{Context, Result};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::{Client, Config};
use godwit_relay::blobs::s3::Bucket;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// How long it may take to be installed and to take what is put.
const PATIENCE: Duration = Duration::from_mins(3);

/// Its identity.
pub const ACCESS_KEY: &str = "tests";
pub const SECRET_KEY: &str = "tests-secret";
const REGION: &str = "us-east-1";
const BUCKET: &str = "tests";

static SERVER: OnceCell<String> = OnceCell::const_new();

/// The address of the server's S3 API.
pub async fn endpoint() -> Result<&'static str> {
    Ok(SERVER.get_or_try_init(start).await?)
}

async fn start() -> Result<String> {
    let endpoint = servers::start("seaweed").await?;
    let client = client(&endpoint, SECRET_KEY);
    let begun = Instant::now();
    loop {
        // Listening is not yet storing.
        let tried = async {
            // The second time it is there already.
            let _ = client.create_bucket().bucket(BUCKET).send().await;
            client.put_object().bucket(BUCKET).key("ready").body(vec![1].into()).send().await
        };
        match tried.await {
            Ok(_) => return Ok(endpoint),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).context("the S3 server does not store"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// A client of the server, with a key that is right or not.
pub fn client(endpoint: &str, secret: &str) -> Client {
    let credentials = Credentials::new(ACCESS_KEY, secret, None, None, "tests");
    let config = Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new(REGION));
    let config = config.endpoint_url(endpoint).force_path_style(true).credentials_provider(credentials);
    Client::from_conf(config.build())
}

/// How a relay process is told of a bucket there, under which `endpoint`.
pub fn environment(bucket: &Bucket, endpoint: &str) -> Vec<(&'static str, String)> {
    [
        ("GODWIT_ATTACHMENTS__STORE", "s3"),
        ("GODWIT_S3__BUCKET", &bucket.name),
        ("GODWIT_S3__PREFIX", &bucket.prefix),
        ("GODWIT_S3__REGION", REGION),
        ("GODWIT_S3__ENDPOINT", endpoint),
        ("GODWIT_S3__ADDRESSING_STYLE", "path"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

/// A part of the server's bucket that nobody else uses. A bucket for each test would take volumes of its own, of which the
/// server has few.
pub async fn bucket(prefix: &str) -> Result<Bucket> {
    Ok(Bucket {
        name: BUCKET.to_owned(),
        prefix: format!("{prefix}/"),
        region: Some(REGION.to_owned()),
        endpoint: Some(endpoint().await?.to_owned()),
        path_style: true,
    })
}
