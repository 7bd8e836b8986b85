//! Somebody between relays and a server of the DynamoDB API, who throttles, loses requests and answers, and leaves batches
//! half done, by a seed.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Of a request or a response, at most.
const MOST_BYTES: usize = 32 << 20;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Throttled,
    /// It never arrives.
    Lost,
    /// It is done, and no answer comes.
    Unanswered,
    /// It is done, and the answer is that something went wrong.
    Failed,
}

/// An HTTP message with a body of known length.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// None at the end of the connection.
    async fn read(from: &mut TcpStream) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(bytes.len() < MOST_BYTES, "a head without end");
            if from.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
        };
        let mut body = bytes.split_off(end);
        let head = String::from_utf8(bytes).context("a head")?;
        let length = header(&head, "content-length").map_or(Ok(0), str::parse::<usize>)?;
        ensure!(length <= MOST_BYTES, "a body of {length} bytes");
        while body.len() < length {
            ensure!(from.read_buf(&mut body).await? > 0, "the body ends early");
        }
        Ok(Some(Self { head, body }))
    }

    /// With another body, whose length the head says.
    fn with_body(&self, body: Vec<u8>) -> Self {
        let lines = self.head.trim_end().split("\r\n");
        let kept = lines.filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !["content-length", "x-amz-crc32"].contains(&name.as_str())
        });
        let head = kept.collect::<Vec<_>>().join("\r\n");
        Self { head: format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()), body }
    }

    async fn write(&self, to: &mut TcpStream) -> Result<()> {
        to.write_all(self.head.as_bytes()).await?;
        Ok(to.write_all(&self.body).await?)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

fn error(status: &str, code: &str) -> Message {
    let body = json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "by the proxy"});
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.0\r\n\r\n");
    Message { head, body: Vec::new() }.with_body(body.to_string().into_bytes())
}

/// Starts one in front of the server at `endpoint`, for as long as this process runs. Gives its address.
pub async fn start(endpoint: &str, seed: u64) -> Result<String> {
    let upstream = endpoint.strip_prefix("http://").context("an address")?.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(seed)));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (upstream, random) = (upstream.clone(), random.clone());
            // A connection that ends badly is what it is for.
            tokio::spawn(async move { serve(client, &upstream, &random).await });
        }
    });
    Ok(address)
}

async fn serve(mut client: TcpStream, upstream: &str, random: &Mutex<fastrand::Rng>) -> Result<()> {
    while let Some(request) = Message::read(&mut client).await? {
        let target = header(&request.head, "x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let (dice, half) = {
            let mut random = random.lock().expect("nobody panics with it");
            (random.u32(0..100), random.bool())
        };
        let is_read = matches!(operation.as_str(), "GetItem" | "Query" | "Scan" | "DescribeTable");
        let fate = match dice {
            0..3 => Fate::Throttled,
            3..5 => Fate::Lost,
            5..9 if !is_read => Fate::Unanswered,
            9..11 if !is_read => Fate::Failed,
            _ => Fate::Passed,
        };
        match fate {
            Fate::Throttled => error("400 Bad Request", "ThrottlingException").write(&mut client).await?,
            Fate::Lost => return Ok(()),
            Fate::Passed if operation == "BatchWriteItem" && half => {
                half_done(upstream, &request).await?.write(&mut client).await?;
            }
            Fate::Passed => forward(upstream, &request).await?.write(&mut client).await?,
            Fate::Unanswered => return forward(upstream, &request).await.map(drop),
            Fate::Failed => {
                forward(upstream, &request).await?;
                error("500 Internal Server Error", "InternalServerError").write(&mut client).await?;
            }
        }
    }
    Ok(())
}

async fn forward(upstream: &str, request: &Message) -> Result<Message> {
    let mut server = TcpStream::connect(upstream).await?;
    request.write(&mut server).await?;
    Message::read(&mut server).await?.context("the server hung up")
}

/// Every second item of a batch is done, and the rest is given back.
async fn half_done(upstream: &str, request: &Message) -> Result<Message> {
    let mut asked: Value = serde_json::from_slice(&request.body)?;
    let mut left = serde_json::Map::new();
    for (table, items) in asked["RequestItems"].as_object_mut().context("a batch")? {
        let items = items.as_array_mut().context("items")?;
        if items.len() > 1 {
            left.insert(table.clone(), Value::Array(items.split_off(items.len() / 2)));
        }
    }
    let answer = forward(upstream, &request.with_body(asked.to_string().into_bytes())).await?;
    let mut said: Value = serde_json::from_slice(&answer.body)?;
    if said.get("UnprocessedItems").is_some_and(|items| items.as_object().is_some_and(serde_json::Map::is_empty)) {
        said["UnprocessedItems"] = Value::Object(left);
    }
    Ok(answer.with_body(said.to_string().into_bytes()))
}
