//! Items behind the DynamoDB API (<https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/>), of AWS or of a server
//! that speaks it: a table for each table of the store, with the partition as `pk`, the place in it as `sk`, the value as
//! `v` and its order as `o`.
//!
//! Only GetItem, Query, Scan, UpdateItem, DeleteItem and BatchWriteItem are used, and no transactions. All reads are
//! strongly consistent, but for queries to which what was so a moment ago will do. Credentials come from the standard chain
//! of AWS: the environment, a profile, the machine's role.

use super::engine::{Answer, Change, Engine, EngineError, If, Item, Page, Part, Place, Query};
use super::journal::JOURNAL;
use crate::aws;
use crate::store::tables::TableId;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::ProvideCredentials;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification,
    PutRequest, ScalarAttributeType, TableDescription, TableStatus, WriteRequest,
};
use bytes::Bytes;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::runtime::Handle;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one try may take.
const TRY: Duration = Duration::from_secs(3);
/// How long a read may take, with all that is tried again in it.
const READ: Duration = Duration::from_secs(10);
/// Tries of a read.
const READ_TRIES: u32 = 4;
/// Items of one BatchWriteItem.
const BATCH_ITEMS: usize = 25;
/// Bytes of one BatchWriteItem, of 16 MB that the API allows.
const BATCH_BYTES: usize = 4 << 20;
/// How often what a BatchWriteItem left undone is tried again that made no headway.
const BATCH_TRIES: u32 = 10;
/// Items of one page.
const PAGE_ITEMS: usize = 1000;
/// How long a table may take to be made.
const MAKING: Duration = Duration::from_mins(2);

/// Where a region's tables are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Before each table's name, so that several regions can share an account.
    pub prefix: String,
    /// `us-east-1` and so on; as AWS's own configuration says if it is not given.
    pub region: Option<String>,
    /// Of a server other than AWS's, such as `http://127.0.0.1:8000`.
    pub endpoint: Option<String>,
}

/// Items behind the DynamoDB API. Cloning shares the connections.
#[derive(Clone)]
pub struct Dynamo {
    /// Tries again by itself.
    reading: Client,
    /// Does not: what becomes of a change is asked after by whoever makes it.
    changing: Client,
    names: Arc<Names>,
    runtime: Handle,
}

impl fmt::Debug for Dynamo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dynamo").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The codes by which it is asked to wait.
const THROTTLED: [&str; 4] =
    ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded", "LimitExceededException"];
/// AWS's standard chain has nothing.
const NO_CREDENTIALS: &str =
    "no AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role)";
/// The codes by which it is told that these credentials will not do.
const DENIED: [&str; 6] = [
    "AccessDeniedException",
    "ExpiredTokenException",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "UnrecognizedClientException",
];

/// What its tables and the server are called.
#[derive(Debug)]
struct Names {
    /// Before each table's.
    prefix: String,
    server: String,
}

impl Names {
    /// What went wrong, without what was sent.
    fn fault<E, R>(&self, error: &SdkError<E, R>) -> EngineError
    where
        E: Error + ProvideErrorMetadata + 'static,
        R: fmt::Debug + 'static,
    {
        let server = &self.server;
        let Some(code) = error.code() else {
            let text = format!("{server}: {}", aws::root(error));
            return match error {
                SdkError::ConstructionFailure(_) => EngineError::Fault(text),
                _ => EngineError::NoAnswer(text),
            };
        };
        let text = format!("{server}: {}", aws::text(Some(code), error.message(), error));
        match code {
            "ConditionalCheckFailedException" => EngineError::Refused,
            code if THROTTLED.contains(&code) => EngineError::Throttled,
            "InternalServerError" | "ServiceUnavailable" => EngineError::NoAnswer(text),
            code if DENIED.contains(&code) => EngineError::Setup(text),
            "ResourceNotFoundException" => self.missing(&format!("{}…", self.prefix)),
            _ => EngineError::Fault(text),
        }
    }

    fn missing(&self, tables: &str) -> EngineError {
        EngineError::Setup(format!(
            "{} has no tables {tables}: `godwit store init` makes them, unless dynamodb.prefix, dynamodb.region or \
             dynamodb.endpoint is wrong",
            self.server
        ))
    }
}

fn binary(bytes: &[u8]) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

type Attributes = HashMap<String, AttributeValue>;

fn key(place: &Place) -> Attributes {
    HashMap::from([("pk".to_owned(), binary(&place.partition)), ("sk".to_owned(), binary(&place.sort))])
}

fn bytes(attributes: &mut Attributes, name: &str) -> Result<Vec<u8>, EngineError> {
    match attributes.remove(name) {
        Some(AttributeValue::B(blob)) => Ok(blob.into_inner()),
        _ => Err(EngineError::Fault(format!("an item without {name}"))),
    }
}

fn item(attributes: &mut Attributes) -> Result<Item, EngineError> {
    let value = Bytes::from(bytes(attributes, "v")?);
    let order = match attributes.remove("o") {
        Some(AttributeValue::N(order)) => {
            order.parse().map_err(|_| EngineError::Fault("an item's order".to_owned()))?
        }
        _ => 0,
    };
    Ok(Item { value, order })
}

/// A condition as an expression, and the values in it.
fn condition(when: &If) -> (Option<&'static str>, Option<(&'static str, AttributeValue)>) {
    let number = |order: &u64| AttributeValue::N(order.to_string());
    match when {
        If::Always => (None, None),
        If::Absent => (Some("attribute_not_exists(pk)"), None),
        If::Older(order) => (Some("attribute_not_exists(o) OR o < :than"), Some((":than", number(order)))),
        If::Order(order) => (Some("o = :is"), Some((":is", number(order)))),
        If::Value(value) => (Some("v = :was"), Some((":was", binary(value)))),
    }
}

/// The bound from which keys are asked for, inclusive.
fn inclusive(bound: &Bound<Vec<u8>>) -> Option<Vec<u8>> {
    match bound {
        Bound::Included(key) => Some(key.clone()),
        Bound::Excluded(key) => Some([key.as_slice(), &[0]].concat()),
        Bound::Unbounded => None,
    }
}

impl Dynamo {
    /// Reads AWS's own configuration; asks nothing of the server. Must be called within a tokio runtime, whose threads
    /// carry its requests.
    ///
    /// # Errors
    /// [`EngineError::Setup`]: there is no region, or there are no credentials.
    pub async fn new(tables: Tables) -> Result<Self, EngineError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = tables.region {
            loader = loader.region(Region::new(region));
        }
        if let Some(endpoint) = tables.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let config = loader.load().await;
        let Some(region) = config.region() else {
            return Err(EngineError::Setup(
                "dynamodb.region: not given, and AWS's own configuration has none".to_owned(),
            ));
        };
        let credentials = config.credentials_provider().ok_or_else(|| EngineError::Setup(NO_CREDENTIALS.to_owned()))?;
        if let Err(error) = credentials.provide_credentials().await {
            return Err(EngineError::Setup(format!("{NO_CREDENTIALS}: {error}")));
        }
        let server = config.endpoint_url().map_or_else(|| format!("DynamoDB in {region}"), str::to_owned);
        let config = aws_sdk_dynamodb::config::Builder::from(&config);
        Ok(Self::with_config(config, tables.prefix, &server))
    }

    /// By a configuration of `server` that is set up already, but for its time-outs.
    pub fn with_config(config: aws_sdk_dynamodb::config::Builder, prefix: String, server: &str) -> Self {
        let once = TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(TRY);
        let reading = config
            .clone()
            .timeout_config(once.clone().operation_timeout(READ).build())
            .retry_config(RetryConfig::standard().with_max_attempts(READ_TRIES));
        let changing = config.timeout_config(once.build()).retry_config(RetryConfig::disabled());
        Self {
            reading: Client::from_conf(reading.build()),
            changing: Client::from_conf(changing.build()),
            names: Arc::new(Names { prefix, server: server.to_owned() }),
            runtime: Handle::current(),
        }
    }

    fn table(&self, name: &str) -> String {
        format!("{}{name}", self.names.prefix)
    }

    /// The names of all tables.
    pub fn tables(&self) -> Vec<String> {
        TableId::ALL.map(TableId::name).into_iter().chain([JOURNAL]).map(|name| self.table(name)).collect()
    }

    /// Waits on this thread for what runs on the runtime's.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (tell, told) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // Whoever waits may have given up.
            let _ = tell.send(work.await);
        });
        // Longer than the work may take.
        told.recv_timeout(READ * 2).unwrap_or_else(|_| Err(EngineError::NoAnswer("timed out".to_owned())))
    }

    /// Makes the tables that are not there, with on-demand capacity and point-in-time recovery, and tells of each.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn make_tables(&self, made: impl Fn(&str)) -> Result<(), EngineError> {
        for table in self.tables() {
            let attribute = |name| {
                AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::B).build()
            };
            let element = |name, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
            let built = |error: aws_sdk_dynamodb::error::BuildError| EngineError::Fault(error.to_string());
            let create = self
                .changing
                .create_table()
                .table_name(&table)
                .billing_mode(BillingMode::PayPerRequest)
                .attribute_definitions(attribute("pk").map_err(built)?)
                .attribute_definitions(attribute("sk").map_err(built)?)
                .key_schema(element("pk", KeyType::Hash).map_err(built)?)
                .key_schema(element("sk", KeyType::Range).map_err(built)?);
            match create.send().await {
                Ok(_) => {}
                Err(error) if error.code() == Some("ResourceInUseException") => {}
                Err(error) => return Err(self.names.fault(&error)),
            }
            self.until_active(&table).await?;
            self.recoverable(&table).await?;
            made(&table);
        }
        Ok(())
    }

    /// Removes all tables, with all that is in them.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn remove_tables(&self) -> Result<(), EngineError> {
        for table in self.tables() {
            match self.changing.delete_table().table_name(table).send().await {
                Err(error) if error.code() != Some("ResourceNotFoundException") => {
                    return Err(self.names.fault(&error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The table as the server describes it; none if it is not there.
    async fn describe(&self, table: &str) -> Result<Option<TableDescription>, EngineError> {
        match self.reading.describe_table().table_name(table).send().await {
            Err(error) if error.code() == Some("ResourceNotFoundException") => Ok(None),
            Err(error) => Err(self.names.fault(&error)),
            Ok(described) => Ok(described.table),
        }
    }

    /// The names of the tables that are not there.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn missing(&self) -> Result<Vec<String>, EngineError> {
        let mut missing = Vec::new();
        for table in self.tables() {
            if self.describe(&table).await?.is_none() {
                missing.push(table);
            }
        }
        Ok(missing)
    }

    async fn until_active(&self, table: &str) -> Result<(), EngineError> {
        let active = async {
            loop {
                let described = self.describe(table).await?;
                if described.is_some_and(|table| table.table_status == Some(TableStatus::Active)) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let late = |_| Err(EngineError::NoAnswer(format!("table {table} is still being made")));
        tokio::time::timeout(MAKING, active).await.unwrap_or_else(late)
    }

    async fn recoverable(&self, table: &str) -> Result<(), EngineError> {
        let on = PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build();
        let on = on.map_err(|error| EngineError::Fault(error.to_string()))?;
        let update = self.changing.update_continuous_backups().table_name(table);
        match update.point_in_time_recovery_specification(on).send().await {
            Err(error) if error.code().is_none_or(|code| code == "UnknownOperationException") => {
                tracing::warn!(table, "this server has no point-in-time recovery");
                Ok(())
            }
            Err(error) => Err(self.names.fault(&error)),
            Ok(_) => Ok(()),
        }
    }

    async fn change_one(&self, change: Change) -> Result<(), EngineError> {
        let Change { place, item, when } = change;
        let (expression, value) = condition(&when);
        let expression = expression.map(str::to_owned);
        let Some(item) = item else {
            let delete = self.changing.delete_item().table_name(self.table(place.table)).set_key(Some(key(&place)));
            let mut delete = delete.set_condition_expression(expression);
            if let Some((name, value)) = value {
                delete = delete.expression_attribute_values(name, value);
            }
            return delete.send().await.map(drop).map_err(|error| self.names.fault(&error));
        };
        let set = if item.order == 0 { "SET v = :v" } else { "SET v = :v, o = :o" };
        let update = self.changing.update_item().table_name(self.table(place.table)).set_key(Some(key(&place)));
        let update = update.update_expression(set).set_condition_expression(expression);
        let mut update = update.expression_attribute_values(":v", binary(&item.value));
        if item.order != 0 {
            update = update.expression_attribute_values(":o", AttributeValue::N(item.order.to_string()));
        }
        if let Some((name, value)) = value {
            update = update.expression_attribute_values(name, value);
        }
        update.send().await.map(drop).map_err(|error| self.names.fault(&error))
    }

    async fn put_batch(&self, mut left: HashMap<String, Vec<WriteRequest>>) -> Result<(), EngineError> {
        let mut pause = Duration::from_millis(50);
        let (mut tries, mut failed) = (0, EngineError::Throttled);
        while tries < BATCH_TRIES {
            tries += 1;
            let before = left.values().map(Vec::len).sum::<usize>();
            match self.changing.batch_write_item().set_request_items(Some(left.clone())).send().await {
                Ok(written) => left = written.unprocessed_items.unwrap_or_default(),
                Err(error) => match self.names.fault(&error) {
                    error @ (EngineError::Throttled | EngineError::NoAnswer(_)) => failed = error,
                    error => return Err(error),
                },
            }
            if left.is_empty() {
                return Ok(());
            }
            if left.values().map(Vec::len).sum::<usize>() < before {
                tries = 0;
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        Err(failed)
    }

    async fn put_each(&self, items: Vec<(Place, Item)>) -> Result<(), EngineError> {
        let mut batch: HashMap<String, Vec<WriteRequest>> = HashMap::new();
        let (mut count, mut size) = (0, 0);
        for (place, item) in items {
            let len = place.partition.len() + place.sort.len() + item.value.len() + 64;
            if count == BATCH_ITEMS || size + len > BATCH_BYTES && count > 0 {
                self.put_batch(std::mem::take(&mut batch)).await?;
                (count, size) = (0, 0);
            }
            (count, size) = (count + 1, size + len);
            let mut attributes = key(&place);
            attributes.insert("v".to_owned(), binary(&item.value));
            if item.order != 0 {
                attributes.insert("o".to_owned(), AttributeValue::N(item.order.to_string()));
            }
            let put = PutRequest::builder().set_item(Some(attributes)).build();
            let put = put.map_err(|error| EngineError::Fault(error.to_string()))?;
            batch.entry(self.table(place.table)).or_default().push(WriteRequest::builder().put_request(put).build());
        }
        if count > 0 { self.put_batch(batch).await } else { Ok(()) }
    }
}

impl Engine for Dynamo {
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError> {
        let get = self.reading.get_item().table_name(self.table(place.table)).set_key(Some(key(place)));
        let got = get.consistent_read(true).send();
        let names = self.names.clone();
        self.wait(async move {
            let got = got.await.map_err(|error| names.fault(&error))?;
            got.item.map(|mut attributes| item(&mut attributes)).transpose()
        })
    }

    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError> {
        let from = inclusive(&query.from);
        let (to, excluded) = match &query.to {
            Bound::Included(to) => (Some(to.clone()), None),
            Bound::Excluded(to) => (Some(to.clone()), Some(to.clone())),
            Bound::Unbounded => (None, None),
        };
        if let (Some(from), Some(to)) = (&from, &to)
            && from > to
        {
            return Ok(Page::default());
        }
        let expression = match (&from, &to) {
            (Some(_), Some(_)) => "pk = :pk AND sk BETWEEN :from AND :to",
            (Some(_), None) => "pk = :pk AND sk >= :from",
            (None, Some(_)) => "pk = :pk AND sk <= :to",
            (None, None) => "pk = :pk",
        };
        let mut asked = self
            .reading
            .query()
            .table_name(self.table(query.table))
            .consistent_read(!query.lately)
            .scan_index_forward(!query.descending)
            .key_condition_expression(expression)
            .expression_attribute_values(":pk", binary(query.partition));
        if let Some(from) = from {
            asked = asked.expression_attribute_values(":from", binary(&from));
        }
        if let Some(to) = to {
            asked = asked.expression_attribute_values(":to", binary(&to));
        }
        // One more where the last may be one that is not asked for.
        let most = query.most.saturating_add(usize::from(excluded.is_some())).min(PAGE_ITEMS);
        let asked = asked.limit(i32::try_from(most).unwrap_or(i32::MAX)).send();
        let names = self.names.clone();
        self.wait(async move {
            let found = asked.await.map_err(|error| names.fault(&error))?;
            let more = found.last_evaluated_key.is_some_and(|key| !key.is_empty());
            let mut items = Vec::new();
            for mut attributes in found.items.unwrap_or_default() {
                let sort = bytes(&mut attributes, "sk")?;
                if excluded.as_ref() != Some(&sort) {
                    items.push((sort, item(&mut attributes)?));
                }
            }
            Ok(Page { items, more })
        })
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        let scan = self.reading.scan().table_name(self.table(table)).consistent_read(true);
        let scan = scan.limit(i32::try_from(PAGE_ITEMS).unwrap_or(i32::MAX)).set_exclusive_start_key(after.map(key));
        let found = scan.send();
        let names = self.names.clone();
        self.wait(async move {
            let found = found.await.map_err(|error| names.fault(&error))?;
            let place = |attributes: &mut Attributes| {
                Ok(Place { table, partition: bytes(attributes, "pk")?, sort: bytes(attributes, "sk")? })
            };
            let mut items = Vec::new();
            for mut attributes in found.items.unwrap_or_default() {
                items.push((place(&mut attributes)?, item(&mut attributes)?));
            }
            let next = found.last_evaluated_key.filter(|key| !key.is_empty());
            Ok(Part { items, next: next.map(|mut key| place(&mut key)).transpose()? })
        })
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        Box::pin(self.change_one(change))
    }

    fn identity(&self) -> Answer<'_, Option<String>> {
        Box::pin(async {
            let missing = self.missing().await?;
            if !missing.is_empty() {
                return Err(self.names.missing(&missing.join(", ")));
            }
            // Servers other than AWS's have no ids.
            let made = |table: TableDescription| {
                let at = table.creation_date_time.map(|at| at.secs().to_string());
                table.table_id.or(at)
            };
            Ok(self.describe(&self.table(TableId::Log.name())).await?.and_then(made))
        })
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        Box::pin(self.put_each(items))
    }
}
