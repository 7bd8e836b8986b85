-- From schema 1 to 2.
ALTER TABLE relays ADD COLUMN named INTEGER NOT NULL DEFAULT 1;
ALTER TABLE relays ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
ALTER TABLE relays ADD COLUMN round_trip INTEGER;
CREATE TABLE seen (                   -- entries that the app was told of before a restored store had them cut off
    chat           TEXT NOT NULL,
    id             BLOB NOT NULL,
    PRIMARY KEY (chat, id)
) STRICT, WITHOUT ROWID;
