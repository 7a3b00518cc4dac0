-- What changed of a deployment since its body was written: one row for each node that got an outcome, and one for the whole.
-- Writing the body takes both out again.

CREATE TABLE outcomes (
    deployment BIGINT NOT NULL,
    node TEXT NOT NULL,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (deployment, node)
);
CREATE INDEX outcomes_by_revision ON outcomes (revision);

CREATE TABLE courses (
    deployment BIGINT PRIMARY KEY,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX courses_by_revision ON courses (revision);
