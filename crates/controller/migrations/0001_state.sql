-- Runs unchanged on SQLite and PostgreSQL: TEXT and BIGINT only, bodies as JSON text.
-- Every row carries the revision that wrote it, so that what changed since a revision is a range of rows.

CREATE TABLE revision (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    value BIGINT NOT NULL
);
INSERT INTO revision (id, value) VALUES (1, 0);

CREATE TABLE nodes (
    name TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX nodes_by_revision ON nodes (revision);

CREATE TABLE racks (
    name TEXT PRIMARY KEY,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX racks_by_revision ON racks (revision);

CREATE TABLE deployments (
    id BIGINT PRIMARY KEY,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX deployments_by_revision ON deployments (revision);

-- Names of what was removed, with the latest removal.
CREATE TABLE gone (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
);
CREATE INDEX gone_by_revision ON gone (revision);

CREATE TABLE timeline (
    revision BIGINT NOT NULL,
    line BIGINT NOT NULL,
    node TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (revision, line)
);
CREATE INDEX timeline_by_node ON timeline (node, revision, line);

CREATE TABLE leases (
    address TEXT PRIMARY KEY,
    mac TEXT NOT NULL,
    expires BIGINT NOT NULL
);
