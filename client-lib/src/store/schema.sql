-- The device's own store as of schema 3; `schema-4.sql` and what comes after it add to it. `PRAGMA user_version` holds the number.
CREATE TABLE device (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    id             TEXT NOT NULL,
    key            BLOB NOT NULL,     -- PKCS #8, never leaves the device
    chain          BLOB NOT NULL,     -- certificates, leaf first, each with a length
    authority      BLOB NOT NULL,     -- the root's certificate, DER
    generation     INTEGER,           -- of the home's store, as it was seen last
    listed         INTEGER NOT NULL DEFAULT 0 -- all of the user's chats were here once
) STRICT;
CREATE TABLE relays (
    address        TEXT PRIMARY KEY,
    rank           INTEGER NOT NULL,
    named          INTEGER NOT NULL DEFAULT 1, -- by the relay that was joined last, or given
    last           INTEGER NOT NULL DEFAULT 0, -- the device was there last
    round_trip     INTEGER                     -- microseconds
) STRICT;
CREATE TABLE chats (
    chat           TEXT PRIMARY KEY,
    kind           INTEGER NOT NULL,
    title          TEXT NOT NULL,
    role           INTEGER,           -- none after leaving
    position       INTEGER NOT NULL,  -- everything up to here is in `entries`, or is not for this device
    delivered      INTEGER NOT NULL DEFAULT 0,
    read           INTEGER NOT NULL DEFAULT 0,
    own_read       INTEGER NOT NULL DEFAULT 0, -- what this user has read, on this device
    told_read      INTEGER NOT NULL DEFAULT 0  -- of that, what the relay knows
) STRICT;
CREATE TABLE participants (
    chat           TEXT NOT NULL,
    user           TEXT NOT NULL,
    role           INTEGER NOT NULL,
    PRIMARY KEY (chat, user)
) STRICT, WITHOUT ROWID;
CREATE TABLE entries (
    chat           TEXT NOT NULL,
    seq            INTEGER NOT NULL,
    at             INTEGER NOT NULL,
    sender         TEXT NOT NULL,
    id             BLOB NOT NULL,
    body           BLOB NOT NULL,     -- an entry's body as it came
    PRIMARY KEY (chat, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE holes (                  -- ranges that this device may not see, or that were not pushed
    chat           TEXT NOT NULL,
    first          INTEGER NOT NULL,
    last           INTEGER NOT NULL,
    pushed         INTEGER NOT NULL,  -- 0: history has them
    PRIMARY KEY (chat, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE numbers (                -- the next number of each chat, for this enrolment
    chat           TEXT PRIMARY KEY,
    next           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    local          INTEGER PRIMARY KEY AUTOINCREMENT,
    chat           TEXT NOT NULL,
    n              INTEGER NOT NULL,  -- 0: of an earlier enrolment
    id             BLOB NOT NULL UNIQUE,
    request        BLOB NOT NULL,
    state          INTEGER NOT NULL,  -- 0 pending, 1 queued, 2 sent, 3 refused
    seq            INTEGER,
    at             INTEGER,
    refusal        BLOB
) STRICT;
CREATE INDEX outbox_numbers ON outbox (chat, n);
CREATE INDEX outbox_unsent ON outbox (chat, n) WHERE state < 2;
CREATE TABLE events (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    event          BLOB NOT NULL
) STRICT;
CREATE TABLE fetches (                -- history that another process on this home asks for
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    chat           TEXT NOT NULL,
    before         INTEGER,
    count          INTEGER NOT NULL,
    outcome        BLOB               -- none while it is not done; a refusal, or empty
) STRICT;
CREATE TABLE seen (                   -- entries that the app was told of before a restored store had them cut off
    chat           TEXT NOT NULL,
    id             BLOB NOT NULL,
    PRIMARY KEY (chat, id)
) STRICT, WITHOUT ROWID;
