-- Version 8. Codes of status and reason stand in tasks/lifecycle.py; flags in store/base.py. Times are milliseconds
-- since 1970 by the store's clock.

CREATE TABLE store (
    identity TEXT NOT NULL       -- tells it from every other store
) STRICT;
INSERT INTO store (identity) VALUES (lower(hex(randomblob(16))));

-- What tasks of one kind have in common, interned: it leads the ready index, so that a class that may not run now costs
-- nothing to pass over.
CREATE TABLE class (
    id        INTEGER PRIMARY KEY,
    namespace TEXT NOT NULL,
    type      TEXT NOT NULL,
    grp       TEXT NOT NULL DEFAULT '',
    UNIQUE (namespace, type, grp)
) STRICT;
CREATE INDEX class_group ON class (grp);

CREATE TABLE task (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,   -- never used again, also after pruning
    id            BLOB    NOT NULL CHECK (length(id) = 16),
    class         INTEGER NOT NULL,
    rank          INTEGER NOT NULL,                    -- order among ready tasks, smaller first
    status        INTEGER NOT NULL CHECK (status BETWEEN 0 AND 5),
    reason        INTEGER CHECK (reason BETWEEN 0 AND 5),
    attempt       INTEGER NOT NULL DEFAULT 0,          -- the fencing token
    owner         INTEGER,                             -- worker that holds the claim
    flags         INTEGER NOT NULL DEFAULT 0,
    priority      INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 3),
    retry_count   INTEGER NOT NULL DEFAULT 0,          -- what is charged
    max_retries   INTEGER NOT NULL,
    crashes       INTEGER NOT NULL DEFAULT 0,          -- times it died alone
    releases      INTEGER NOT NULL DEFAULT 0,          -- times it was handed back unfinished
    submitted_ms  INTEGER NOT NULL,
    ready_ms      INTEGER NOT NULL,                    -- since when nothing but a slot is missing
    not_before_ms INTEGER,
    due_ms        INTEGER,                             -- when delayed or retry ends
    deadline_ms   INTEGER,
    timeout_ms    INTEGER,
    ended_ms      INTEGER,
    waits_for     INTEGER,                             -- one unfinished parent
    waits_at      INTEGER,                             -- number of the edge to it
    input         BLOB    NOT NULL,
    spec          BLOB,                                -- rarely used fields
    output        BLOB,
    error         BLOB,
    CHECK ((status = 0) = (reason IS NOT NULL)),
    CHECK ((owner IS NOT NULL) = (status = 1 OR reason IS 4)),
    CHECK ((due_ms IS NOT NULL) = (reason IS NOT NULL AND reason IN (2, 3))),
    CHECK ((waits_for IS NOT NULL) = (reason IS 1)),
    CHECK ((ended_ms IS NOT NULL) = (status > 1)),
    CHECK ((output IS NOT NULL) = (status = 2))
) STRICT;

CREATE UNIQUE INDEX task_id ON task (id);
CREATE INDEX task_ready ON task (class, rank, seq) WHERE reason = 0;
CREATE INDEX task_due ON task (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX task_deadline ON task (deadline_ms) WHERE deadline_ms IS NOT NULL AND status = 0;
CREATE INDEX task_held ON task (owner) WHERE owner IS NOT NULL;
CREATE INDEX task_slot ON task (class) WHERE owner IS NOT NULL AND flags & 512;
CREATE INDEX task_waits ON task (waits_for) WHERE waits_for IS NOT NULL;

-- One row a try, written once, when it ends.
CREATE TABLE attempt (
    task        INTEGER NOT NULL,
    number      INTEGER NOT NULL,
    outcome     INTEGER NOT NULL,
    owner       INTEGER,
    started_ms  INTEGER,
    ended_ms    INTEGER NOT NULL,
    duration_us INTEGER,
    cpu_us      INTEGER,
    memory      INTEGER,
    network     INTEGER,
    batch       INTEGER NOT NULL DEFAULT 1,
    wait_ms     INTEGER,
    lane        TEXT,
    error       BLOB,
    PRIMARY KEY (task, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX attempt_ended ON attempt (ended_ms);   -- what happened lately, among whatever there is

-- child waits for parent; policy 0 require, 1 allow_failure, 2 skip.
CREATE TABLE edge (
    child  INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    policy INTEGER NOT NULL CHECK (policy BETWEEN 0 AND 2),
    PRIMARY KEY (child, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_parent ON edge (parent, child);

-- The output of task stands for the results of other tasks.
CREATE TABLE stands_for (
    task INTEGER NOT NULL,
    n    INTEGER NOT NULL,
    ref  INTEGER NOT NULL,
    PRIMARY KEY (task, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX stands_for_ref ON stands_for (ref);

-- Ended tasks whose end has not reached all their children yet: those up to `past` know that it failed.
CREATE TABLE cascade (
    task INTEGER PRIMARY KEY,
    past INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE idempotency (
    namespace TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    task      INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_task ON idempotency (task);

CREATE TABLE retried (
    task  INTEGER PRIMARY KEY,   -- the ended one
    again INTEGER NOT NULL       -- the new one
) STRICT;
CREATE INDEX retried_again ON retried (again);

CREATE TABLE tombstone (
    id       BLOB    PRIMARY KEY,
    status   INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tombstone_ended ON tombstone (ended_ms);

-- Classes that got ready tasks, in the order of commits, for processes that look after another's commit. Written only
-- while there are several; the newest are kept.
CREATE TABLE news (
    n     INTEGER PRIMARY KEY,
    class INTEGER NOT NULL,
    rank  INTEGER NOT NULL DEFAULT -9223372036854775808  -- one that they have; by default it is not known
) STRICT;

-- How many tasks a class has in each status; class 0 is all of them.
CREATE TABLE tally (
    class  INTEGER NOT NULL,
    status INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (class, status)
) STRICT, WITHOUT ROWID;

CREATE TABLE progress (
    task    INTEGER PRIMARY KEY,
    attempt INTEGER NOT NULL,
    done    REAL    NOT NULL,
    total   REAL    NOT NULL,
    at_ms   INTEGER NOT NULL
) STRICT;

-- A process that has the store open; its life is the lock on its file, this row says who it is.
CREATE TABLE worker (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE,
    pid        INTEGER NOT NULL,
    host       TEXT    NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms   INTEGER,
    slots      TEXT              -- of its lanes, JSON; NULL: it serves nothing, or is of an older version
) STRICT;
CREATE INDEX worker_open ON worker (id) WHERE ended_ms IS NULL;

CREATE TABLE serves (
    worker INTEGER NOT NULL,
    type   TEXT    NOT NULL,
    PRIMARY KEY (worker, type)
) STRICT, WITHOUT ROWID;

-- How full the machines are that work: what each process that does has told last. It goes with the process.
CREATE TABLE usage (
    worker  INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    figures TEXT    NOT NULL    -- JSON of a ResourceUsage
) STRICT;

-- What handlers there have been, for submitters that don't have the code.
CREATE TABLE handler (
    type    TEXT    NOT NULL,
    version TEXT    NOT NULL,
    lane    TEXT    NOT NULL,
    options TEXT    NOT NULL,   -- JSON
    schema  TEXT    NOT NULL,   -- JSON Schema of the input
    source  TEXT    NOT NULL,   -- hash of the source, to tell a change under the same version
    seen_ms INTEGER NOT NULL,
    PRIMARY KEY (type, version)
) STRICT, WITHOUT ROWID;

-- What may not start now; '' stands for any.
CREATE TABLE pause (
    namespace TEXT NOT NULL,
    type      TEXT NOT NULL,
    grp       TEXT NOT NULL,
    since_ms  INTEGER NOT NULL,
    who       TEXT    NOT NULL DEFAULT '',    -- has asked for it, in words; '' where that was not noted
    PRIMARY KEY (namespace, type, grp)
) STRICT, WITHOUT ROWID;

-- Blobs that task payloads refer to.
CREATE TABLE payload_blob (
    digest TEXT    NOT NULL,
    task   INTEGER NOT NULL,
    PRIMARY KEY (digest, task)
) STRICT, WITHOUT ROWID;
CREATE INDEX payload_blob_task ON payload_blob (task);

CREATE TABLE audit (
    at_ms  INTEGER NOT NULL,
    action TEXT    NOT NULL,
    detail TEXT    NOT NULL    -- JSON
) STRICT;

-- What equal work has given. A key tells namespace, type, code, model, params and input.
CREATE TABLE cache (
    key        BLOB    PRIMARY KEY,
    namespace  TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    output     BLOB    NOT NULL,
    flags      INTEGER NOT NULL,
    digest     TEXT,                 -- of the blob that the output lives in
    bytes      INTEGER NOT NULL,
    made_ms    INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms    INTEGER NOT NULL      -- in steps of a minute
) STRICT;
CREATE INDEX cache_expires ON cache (expires_ms);
CREATE INDEX cache_used ON cache (used_ms, bytes);
CREATE INDEX cache_digest ON cache (digest) WHERE digest IS NOT NULL;

-- How many bytes all of them have: one row, counted by whatever changes them, so that no look at the limit adds them up.
CREATE TABLE kept_size (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    bytes    INTEGER NOT NULL
) STRICT;
INSERT INTO kept_size (only_one, bytes) VALUES (1, 0);
CREATE TRIGGER cache_came AFTER INSERT ON cache BEGIN
    UPDATE kept_size SET bytes = bytes + new.bytes;
END;
CREATE TRIGGER cache_went AFTER DELETE ON cache BEGIN
    UPDATE kept_size SET bytes = bytes - old.bytes;
END;
CREATE TRIGGER cache_changed AFTER UPDATE OF bytes ON cache BEGIN
    UPDATE kept_size SET bytes = bytes + new.bytes - old.bytes;
END;

-- Equal work under way: one task of a key leads, the others follow.
CREATE TABLE flight (
    task    INTEGER PRIMARY KEY,
    key     BLOB    NOT NULL,
    leads   INTEGER NOT NULL,
    keep_ms INTEGER NOT NULL         -- for how long it wants the result kept
) STRICT;
CREATE UNIQUE INDEX flight_leader ON flight (key) WHERE leads = 1;
CREATE INDEX flight_followers ON flight (key) WHERE leads = 0;

-- What a living worker says of tasks that lack resources: JSON, for people who ask why a task does not run.
CREATE TABLE offer (
    worker INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    state  TEXT    NOT NULL
) STRICT;

-- What a group may do, at once and in a time; '' as its namespace stands for any. Changes are numbered, so that processes read only what
-- is new to them; a limit that was taken off leaves its row.
CREATE TABLE group_limit (
    id          INTEGER PRIMARY KEY,
    namespace   TEXT    NOT NULL,
    grp         TEXT    NOT NULL,
    concurrency INTEGER CHECK (concurrency > 0),       -- tasks held at once; NULL: any number
    rate        INTEGER CHECK (rate > 0),              -- tasks that may begin in a time; NULL: any number
    rate_ms     INTEGER,                               -- that time
    full_us     INTEGER NOT NULL DEFAULT 0,            -- when so many as that may begin at once again, in microseconds
    weight      REAL CHECK (weight > 0),               -- its share of lanes that others share; NULL: none of its own
    held_then   INTEGER NOT NULL,                      -- how many were held when it was set: so many may be, until they end
    changed     INTEGER NOT NULL UNIQUE,
    cost_rate   INTEGER CHECK (cost_rate > 0),         -- what those that begin may cost in a time; NULL: any amount
    cost_ms     INTEGER CHECK ((cost_rate IS NULL) = (cost_ms IS NULL)),    -- that time
    cost_used   REAL    NOT NULL DEFAULT 0,            -- how much of it was used; above the rate it is a debt
    cost_at_ms  INTEGER NOT NULL DEFAULT 0,            -- when that was so
    UNIQUE (grp, namespace),
    CHECK ((rate IS NULL) = (rate_ms IS NULL))
) STRICT;
