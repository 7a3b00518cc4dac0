-- Sets of machines, with the address by which each is asked.

CREATE TABLE sets (
    name TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX sets_by_revision ON sets (revision);
