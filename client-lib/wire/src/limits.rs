//! Every limit of the protocol, in one place.

/// Bytes of content in one message.
pub const CONTENT_BYTES: usize = 64 * 1024;
/// Bytes of one encoded frame without its length prefix.
pub const FRAME_BYTES: usize = 256 * 1024;
/// Bytes of any id in its text form.
pub const ID_BYTES: usize = 64;
/// Bytes of a region's name.
pub const REGION_BYTES: usize = 16;
/// Bytes of the user part, the device part and the relay's name.
pub const NAME_BYTES: usize = 32;
/// Bytes of a chat's title.
pub const TITLE_BYTES: usize = 256;
/// Participants of one chat, those who left not counted.
pub const PARTICIPANTS: usize = 1024;
/// Users named in one change of a chat, and in its creation.
pub const USERS_PER_CHANGE: usize = PARTICIPANTS;
/// Blob references in one message.
pub const BLOBS: usize = 32;
/// Parts of one blob, see [`crate::blob`]: 32 GiB. A relay has a limit of its own.
pub const BLOB_PARTS: usize = 4096;
/// Bytes of a request's reserved options.
pub const OPTIONS_BYTES: usize = 256;
/// Entries in one page of history, and chats in one page of a list.
pub const PAGE_ENTRIES: usize = 512;
/// Encoded bytes at which a page of history ends early. A page always holds at least one entry.
pub const PAGE_BYTES: usize = 128 * 1024;
/// Chats acknowledged in one request.
pub const ACKS: usize = 512;
/// Bytes of a certificate signing request, a certificate or a token.
pub const CREDENTIAL_BYTES: usize = 8 * 1024;
/// Bytes of a refusal's explanation.
pub const EXPLANATION_BYTES: usize = 256;
/// Addresses of relays named in one frame.
pub const ADDRESSES: usize = 16;
/// Bytes of the address of a blob.
pub const URL_BYTES: usize = 4096;
/// Headers that a request to such an address must have, and bytes of a name or a value.
pub const URL_HEADERS: usize = 16;
pub const HEADER_BYTES: usize = 256;
/// Hidden ranges named in one page of history.
pub const RANGES: usize = 512;
