//! Real servers of the DynamoDB API, each started once by whoever asks first: dynoxide, which keeps what it acknowledged on
//! disk, and dynalite, which has no transactions.

use crate::servers;
use anyhow::{Context, Result};
use aws_sdk_dynamodb::config::{BehaviorVersion, Builder, Credentials, Region};
use godwit_relay::store::shared::dynamo::Dynamo;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// How long one may take to be installed and to answer.
const PATIENCE: Duration = Duration::from_mins(1);
pub const REGION: &str = "us-east-1";

static DYNOXIDE: OnceCell<String> = OnceCell::const_new();
static DYNALITE: OnceCell<String> = OnceCell::const_new();
static PREFIXES: AtomicU32 = AtomicU32::new(0);

/// One of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Dynoxide,
    Dynalite,
}

impl Server {
    /// The address of the server's API.
    pub async fn endpoint(self) -> Result<&'static str> {
        let (cell, name) = match self {
            Self::Dynoxide => (&DYNOXIDE, "dynoxide"),
            Self::Dynalite => (&DYNALITE, "dynalite"),
        };
        Ok(cell.get_or_try_init(|| started(name)).await?)
    }

    /// Tables of its own on the server, which are made.
    pub async fn tables(self) -> Result<Dynamo> {
        let engine = reached_at(self.endpoint().await?, &prefix());
        engine.make_tables(|_| {}).await?;
        Ok(engine)
    }
}

/// What no other tables of this process begin with.
pub fn prefix() -> String {
    format!("t{}-", PREFIXES.fetch_add(1, Ordering::Relaxed))
}

fn config(endpoint: &str) -> Builder {
    let credentials = Credentials::new("tests", "tests", None, None, "tests");
    let config = Builder::new().behavior_version(BehaviorVersion::latest()).region(Region::new(REGION));
    config.endpoint_url(endpoint).credentials_provider(credentials)
}

/// Tables at an address, which may be that of somebody between.
pub fn reached_at(endpoint: &str, prefix: &str) -> Dynamo {
    Dynamo::with_config(config(endpoint), prefix.to_owned(), endpoint)
}

/// Removes one table, as an operator might by mistake.
pub async fn remove_table(endpoint: &str, name: &str) -> Result<()> {
    aws_sdk_dynamodb::Client::from_conf(config(endpoint).build()).delete_table().table_name(name).send().await?;
    Ok(())
}

async fn started(name: &str) -> Result<String> {
    let endpoint = servers::start(name).await?;
    let address = endpoint.strip_prefix("http://").context("an address")?;
    let begun = Instant::now();
    loop {
        match tokio::net::TcpStream::connect(address).await {
            Ok(_) => return Ok(endpoint),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error).context(format!("{name} does not answer")),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
