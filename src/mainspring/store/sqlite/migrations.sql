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
CREATE TABLE cache (
    key        BLOB    PRIMARY KEY,
    namespace  TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    output     BLOB    NOT NULL,
    flags      INTEGER NOT NULL,
    digest     TEXT,
    bytes      INTEGER NOT NULL,
    made_ms    INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX cache_expires ON cache (expires_ms);
CREATE INDEX cache_used ON cache (used_ms, bytes);
CREATE INDEX cache_digest ON cache (digest) WHERE digest IS NOT NULL;

CREATE TABLE flight (
    task    INTEGER PRIMARY KEY,
    key     BLOB    NOT NULL,
    leads   INTEGER NOT NULL,
    keep_ms INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX flight_leader ON flight (key) WHERE leads = 1;
CREATE INDEX flight_followers ON flight (key) WHERE leads = 0;

-- name: to_5
CREATE TABLE usage (
    worker  INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    figures TEXT    NOT NULL
) STRICT;
CREATE TABLE offer (
    worker INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    state  TEXT    NOT NULL
) STRICT;
CREATE INDEX class_group ON class (grp);
CREATE INDEX task_slot ON task (class) WHERE owner IS NOT NULL AND flags & 512;
UPDATE task SET flags = flags | 512 WHERE class IN (SELECT id FROM class WHERE grp <> '');
CREATE TABLE group_limit (
    id          INTEGER PRIMARY KEY,
    namespace   TEXT    NOT NULL,
    grp         TEXT    NOT NULL,
    concurrency INTEGER CHECK (concurrency > 0),
    rate        INTEGER CHECK (rate > 0),
    rate_ms     INTEGER,
    full_us     INTEGER NOT NULL DEFAULT 0,
    weight      REAL CHECK (weight > 0),
    held_then   INTEGER NOT NULL,
    changed     INTEGER NOT NULL UNIQUE,
    UNIQUE (grp, namespace),
    CHECK ((rate IS NULL) = (rate_ms IS NULL))
) STRICT;
CREATE INDEX attempt_ended ON attempt (ended_ms);
ALTER TABLE pause ADD COLUMN who TEXT NOT NULL DEFAULT '';
ALTER TABLE worker ADD COLUMN slots TEXT;

-- name: to_6
CREATE TABLE kept_size (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    bytes    INTEGER NOT NULL
) STRICT;
INSERT INTO kept_size (only_one, bytes) SELECT 1, coalesce(sum(bytes), 0) FROM cache;
CREATE TRIGGER cache_came AFTER INSERT ON cache BEGIN
    UPDATE kept_size SET bytes = bytes + new.bytes;
END;
CREATE TRIGGER cache_went AFTER DELETE ON cache BEGIN
    UPDATE kept_size SET bytes = bytes - old.bytes;
END;
CREATE TRIGGER cache_changed AFTER UPDATE OF bytes ON cache BEGIN
    UPDATE kept_size SET bytes = bytes + new.bytes - old.bytes;
END;
ALTER TABLE group_limit ADD COLUMN cost_rate INTEGER CHECK (cost_rate > 0);
ALTER TABLE group_limit ADD COLUMN cost_ms INTEGER CHECK ((cost_rate IS NULL) = (cost_ms IS NULL));
ALTER TABLE group_limit ADD COLUMN cost_used REAL NOT NULL DEFAULT 0;
ALTER TABLE group_limit ADD COLUMN cost_at_ms INTEGER NOT NULL DEFAULT 0;

-- name: to_7
ALTER TABLE news ADD COLUMN rank INTEGER NOT NULL DEFAULT -9223372036854775808;

-- name: to_8
CREATE TABLE store (
    identity TEXT NOT NULL
) STRICT;
INSERT INTO store (identity) VALUES (lower(hex(randomblob(16))));
