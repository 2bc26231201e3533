-- What makes a file of one version a file of the next: run in one transaction when such a file is opened.

-- name: to_2
ALTER TABLE cascade ADD COLUMN past INTEGER NOT NULL DEFAULT 0;

-- name: to_3
CREATE TABLE news (
    n     INTEGER PRIMARY KEY,
    class INTEGER NOT NULL
) STRICT;
CREATE INDEX worker_open ON worker (id) WHERE ended_ms IS NULL;
