//! Where the relays that this command starts keep what they must not lose.

use crate::fault::Fault;
use godwit_relay::config::{Layers, StoreEngine};
use godwit_wire::RegionId;

/// Any: servers for development have no regions.
const REGION: &str = "us-east-1";

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StoreArgs {
    /// Where chats are kept. `dynamodb`: in tables of the server at --dynamodb-endpoint, which are made; attachments are
    /// off then, unless they are in S3.
    #[arg(long, value_enum, default_value = "redb")]
    store: StoreEngine,
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    dynamodb_endpoint: String,
}

impl StoreArgs {
    /// Whether all relays of a region share its store.
    pub(crate) fn is_shared(&self) -> bool {
        self.store == StoreEngine::Dynamodb
    }

    /// What every relay is told of its store, as its environment; of tables that begin with `prefix`.
    pub(crate) fn environment(&self, prefix: &str) -> Vec<(String, String)> {
        if !self.is_shared() {
            return Vec::new();
        }
        let all = [
            ("STORE__ENGINE", "dynamodb"),
            ("DYNAMODB__PREFIX", prefix),
            ("DYNAMODB__REGION", REGION),
            ("DYNAMODB__ENDPOINT", self.dynamodb_endpoint.as_str()),
            // Files lie at one relay, and these share everything.
            ("ATTACHMENTS__STORE", "off"),
        ];
        all.into_iter().map(|(key, value)| (format!("{}{key}", Layers::PREFIX), value.to_owned())).collect()
    }

    /// The tables of a region.
    #[cfg(feature = "dynamodb")]
    async fn tables(
        &self,
        prefix: &str,
        region: &RegionId,
    ) -> Result<godwit_relay::store::shared::dynamo::Dynamo, Fault> {
        let mut layers = Layers::default();
        layers.environment(self.environment(prefix).into_iter())?;
        let tables = layers.config()?.dynamodb.tables(region);
        let tables = Box::pin(godwit_relay::store::shared::dynamo::Dynamo::new(tables)).await;
        Ok(tables.map_err(godwit_relay::store::StoreError::from)?)
    }

    /// Makes the tables of each region, if its store is to be shared.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses; says how one is started.
    #[cfg(feature = "dynamodb")]
    pub(crate) async fn prepare(&self, prefix: &str, regions: &[RegionId]) -> Result<(), Fault> {
        use crate::fault::UNREACHABLE;
        use godwit_relay::host::Threads;
        use godwit_relay::store::shared::init;
        use std::sync::Arc;

        for region in regions.iter().filter(|_| self.is_shared()) {
            let tables = self.tables(prefix, region).await?;
            tables.make_tables(|_| {}).await.map_err(|error| {
                let how = "a server to try with: cargo install dynoxide-rs --version 3.2.0 --locked \
                           --no-default-features --features native-sqlite,http-server,cli && \
                           dynoxide serve --port 8000 --db-path items.sqlite, \
                           and AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any here";
                let endpoint = &self.dynamodb_endpoint;
                Fault::new(UNREACHABLE, anyhow::anyhow!("--dynamodb-endpoint {endpoint}: {error}; {how}"))
            })?;
            init(Arc::new(tables), region, &Threads::System).await?;
        }
        Ok(())
    }

    /// Removes the tables of a region, with all that is in them.
    #[cfg(feature = "dynamodb")]
    pub(crate) async fn remove(&self, prefix: &str, region: &RegionId) -> Result<(), Fault> {
        let removed = self.tables(prefix, region).await?.remove_tables().await;
        Ok(removed.map_err(godwit_relay::store::StoreError::from)?)
    }

    #[cfg(not(feature = "dynamodb"))]
    #[expect(clippy::unused_self, reason = "as where there is something to do")]
    pub(crate) fn prepare(&self, _: &str, _: &[RegionId]) -> std::future::Ready<Result<(), Fault>> {
        std::future::ready(Ok(()))
    }

    #[cfg(not(feature = "dynamodb"))]
    #[expect(clippy::unused_self, reason = "as where there is something to do")]
    pub(crate) fn remove(&self, _: &str, _: &RegionId) -> std::future::Ready<Result<(), Fault>> {
        std::future::ready(Ok(()))
    }
}
