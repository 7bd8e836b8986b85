//! Where the relays of `godwit dev` keep what they must not lose.

use super::Args;
use crate::fault::Fault;
use godwit_relay::config::{BlobStoreKind, Layers, StoreEngine};
use godwit_wire::RegionId;

/// Any: servers for development have no regions.
const REGION: &str = "us-east-1";

/// What every relay is told of its store, as its environment.
pub(super) fn environment(args: &Args) -> Vec<(String, String)> {
    if args.store != StoreEngine::Dynamodb {
        return Vec::new();
    }
    let mut all = vec![
        ("STORE__ENGINE", "dynamodb"),
        ("DYNAMODB__REGION", REGION),
        ("DYNAMODB__ENDPOINT", args.dynamodb_endpoint.as_str()),
    ];
    if args.blobs == BlobStoreKind::Files {
        // Files lie at one relay, and these share everything.
        all.push(("ATTACHMENTS__STORE", "off"));
    }
    all.into_iter().map(|(key, value)| (format!("{}{key}", Layers::PREFIX), value.to_owned())).collect()
}

/// Makes the tables of each region, if its store is to be shared.
///
/// # Errors
/// The server cannot be reached, or refuses; says how one is started.
#[cfg(feature = "dynamodb")]
pub(super) async fn prepare(args: &Args, regions: &[RegionId]) -> Result<(), Fault> {
    use crate::fault::UNREACHABLE;
    use godwit_relay::host::Threads;
    use godwit_relay::store::shared::dynamo::Dynamo;
    use godwit_relay::store::shared::init;
    use std::sync::Arc;

    if args.store != StoreEngine::Dynamodb {
        return Ok(());
    }
    let mut layers = Layers::default();
    layers.environment(environment(args).into_iter())?;
    let config = layers.config()?;
    for region in regions {
        let tables = Box::pin(Dynamo::new(config.dynamodb.tables(region))).await;
        tables.make_tables(|_| {}).await.map_err(|error| {
            let how = "a server to try with: cargo install dynoxide-rs --version 3.2.0 --locked --no-default-features \
                       --features native-sqlite,http-server,cli && dynoxide serve --port 8000 --db-path items.sqlite, \
                       and AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any here";
            Fault::new(UNREACHABLE, anyhow::anyhow!("--dynamodb-endpoint {}: {error}; {how}", args.dynamodb_endpoint))
        })?;
        init(Arc::new(tables), region, &Threads::System).await?;
    }
    Ok(())
}

#[cfg(not(feature = "dynamodb"))]
pub(super) fn prepare(_: &Args, _: &[RegionId]) -> std::future::Ready<Result<(), Fault>> {
    std::future::ready(Ok(()))
}
