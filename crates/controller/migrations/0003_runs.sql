-- What each node did in each deployment, for reports. Never part of the state that is loaded at the start.

CREATE TABLE runs (
    deployment BIGINT NOT NULL,
    node TEXT NOT NULL,
    revision BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (deployment, node)
);
