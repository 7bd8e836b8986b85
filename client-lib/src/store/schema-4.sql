-- From schema 3 to 4.
CREATE TABLE uploads (                -- files that are to be sent; what is uploaded moves to the outbox
    local          INTEGER PRIMARY KEY AUTOINCREMENT,
    id             BLOB NOT NULL UNIQUE, -- of the message that it will be
    chat           TEXT NOT NULL,
    path           BLOB NOT NULL,
    draft          BLOB NOT NULL,     -- the file as it was, its key, and what is said of it
    manifest       BLOB,              -- what its parts are, once it was read
    refusal        BLOB,
    finished       INTEGER NOT NULL DEFAULT 0, -- its message is in the outbox, or was sent
    again          INTEGER NOT NULL DEFAULT 0  -- how often its home had lost it by then
) STRICT;
