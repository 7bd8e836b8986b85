//! The client library: an app's way into Godwit.
//!
//! A [`Client`] works on one folder, the device's home, with the device's key, its chats and its messages in SQLite. It
//! is offline first: a message is kept in the outbox before [`Client::send`] returns and becomes the same message once,
//! over retries, crashes and reconnects. The app takes [`Event`]s, each chat's in the order of their seq and each once,
//! and acknowledges them when it has them.
//!
//! ```no_run
//! use godwit_client::{Client, ClientOptions, Content, EnrolOptions, Event, Host, MessageState};
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), godwit_client::Error> {
//! let home = std::path::PathBuf::from("alice-phone");
//! // Once, with a token from the app's backend and the root's certificate:
//! godwit_client::enrol(EnrolOptions {
//!     home: home.clone(),
//!     relays: vec!["relay.example:4433".into()],
//!     authority_pem: std::fs::read_to_string("root.crt").expect("the root's certificate"),
//!     token: "eyJ…".into(),
//!     host: Host::system(),
//! })
//! .await?;
//!
//! let client = Client::open(ClientOptions::new(home))?;
//! let (chat, _) = client.direct("bob@eu".parse().expect("a user id"))?;
//! let message = client.send(&chat, Content::text("hello"))?;
//! client.wait_for(message, MessageState::Sent, Duration::from_secs(30)).await?;
//!
//! let mut events = client.events()?;
//! while let Some(next) = events.next().await {
//!     let next = next?;
//!     if let Event::MessageReceived { chat, message } = &next.event {
//!         println!("{chat} #{}: {}", message.seq, message.content.as_text().unwrap_or("…"));
//!     }
//!     client.acknowledge(&next)?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`client`]: the public API
//! - [`event`]: what an app hears; [`content`]: what a message says
//! - [`attachment`]: files that belong to messages
//! - [`enrol`]: how a device gets its certificate
//! - [`host`]: the device, as it comes in from outside
//! - [`order`]: per-chat order and gaps (pure)
//! - [`store`]: the device's own store; `outbox` what is unsent
//! - `worker`: keeps the connection, sends and takes; `session` one live connection; `dial` how it is made

pub mod attachment;
pub mod client;
pub mod content;
mod dial;
pub mod enrol;
pub mod error;
pub mod event;
pub mod host;
mod locked;
pub mod order;
mod session;
mod store;
mod stream;
mod worker;

pub use attachment::{Attachment, Progress};
pub use client::{Chat, Client, ClientOptions, HistoryEntry, NewAttachment, SentMessage, Upload};
pub use content::Content;
pub use enrol::{EnrolOptions, enrol};
pub use error::Error;
pub use event::{ConnectionState, Event, MessageState, Next};
pub use godwit_wire::blob::{BlobHash, BlobRef};
pub use godwit_wire::entry::{Change, ChatKind, Member, Role, Title};
pub use godwit_wire::frame::Receipt;
pub use godwit_wire::{ChatId, Code, DeviceId, MessageId, Refusal, Seq, UnixMillis, UserId, limits};
pub use host::Host;
pub use stream::EventStream;
