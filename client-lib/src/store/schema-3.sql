-- From schema 2 to 3.
ALTER TABLE device ADD COLUMN listed INTEGER NOT NULL DEFAULT 0;
UPDATE device SET listed = EXISTS (SELECT 1 FROM chats);
