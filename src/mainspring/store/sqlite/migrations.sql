-- What makes a file of one version a file of the next: run in one transaction when such a file is opened.

-- name: to_2
ALTER TABLE cascade ADD COLUMN past INTEGER NOT NULL DEFAULT 0;

-- name: to_3
CREATE TABLE news (
    n     INTEGER PRIMARY KEY,
    class INTEGER NOT NULL
) STRICT;
CREATE INDEX worker_open ON worker (id) WHERE ended_ms IS NULL;

-- name: to_4
DROP INDEX task_due;
CREATE INDEX task_due ON task (reason, due_ms) WHERE due_ms IS NOT NULL;
CREATE TABLE clock (
    id       INTEGER PRIMARY KEY CHECK (id = 0),
    order_ms INTEGER NOT NULL
) STRICT;
INSERT INTO clock SELECT 0, max(
    coalesce((SELECT submitted_ms FROM task ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT max(started_ms) FROM worker), 0), coalesce((SELECT max(ended_ms) FROM worker), 0));
