-- Version 4. The same tables as SQLite's, in a schema of their own; what differs says why. Codes of status and reason
-- stand in tasks/lifecycle.py, flags in store/base.py. Times are milliseconds since 1970 by the store's clock.

-- What this schema is: one row.
CREATE TABLE store (
    version     integer NOT NULL,
    leader      integer,                       -- the worker that looks after the store, or did last
    news_floor  xid8    NOT NULL DEFAULT '0',  -- news of transactions up to this one are gone
    identity    uuid    NOT NULL DEFAULT gen_random_uuid(),  -- tells it from every other store
    only_one    boolean PRIMARY KEY DEFAULT true CHECK (only_one)
);

CREATE TABLE class (
    id        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text NOT NULL,
    type      text NOT NULL,
    grp       text NOT NULL DEFAULT '',
    UNIQUE (namespace, type, grp)
);
CREATE INDEX class_group ON class (grp);

-- Numbers are drawn, not counted: transactions run side by side, and those that roll back leave gaps.
CREATE SEQUENCE task_seq;

CREATE TABLE task (
    seq           bigint   PRIMARY KEY,
    rank          bigint   NOT NULL,                    -- order among ready tasks, smaller first
    submitted_ms  bigint   NOT NULL,
    ready_ms      bigint   NOT NULL,                    -- since when nothing but a slot is missing
    not_before_ms bigint,
    due_ms        bigint,                               -- when delayed or retry ends
    deadline_ms   bigint,
    timeout_ms    bigint,
    ended_ms      bigint,
    waits_for     bigint,                               -- one unfinished parent
    waits_at      integer,                              -- number of the edge to it
    class         integer  NOT NULL,
    attempt       integer  NOT NULL DEFAULT 0,          -- the fencing token
    owner         integer,                              -- worker that holds the claim
    flags         integer  NOT NULL DEFAULT 0,
    retry_count   integer  NOT NULL DEFAULT 0,          -- what is charged
    max_retries   integer  NOT NULL,
    crashes       integer  NOT NULL DEFAULT 0,          -- times it died alone
    releases      integer  NOT NULL DEFAULT 0,          -- times it was handed back unfinished
    status        smallint NOT NULL CHECK (status BETWEEN 0 AND 5),
    reason        smallint CHECK (reason BETWEEN 0 AND 5),
    priority      smallint NOT NULL CHECK (priority BETWEEN 0 AND 3),
    id            bytea    NOT NULL CHECK (length(id) = 16),
    input         bytea    NOT NULL,
    spec          bytea,                                -- rarely used fields
    output        bytea,
    error         bytea,
    CHECK ((status = 0) = (reason IS NOT NULL)),
    CHECK ((owner IS NOT NULL) = (status = 1 OR reason IS NOT DISTINCT FROM 4)),
    CHECK ((due_ms IS NOT NULL) = (reason IS NOT NULL AND reason IN (2, 3))),
    CHECK ((waits_for IS NOT NULL) = (reason IS NOT DISTINCT FROM 1)),
    CHECK ((ended_ms IS NOT NULL) = (status > 1)),
    CHECK ((output IS NOT NULL) = (status = 2))
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_analyze_scale_factor = 0.05,
        autovacuum_vacuum_cost_delay = 1);

CREATE UNIQUE INDEX task_id ON task (id);
CREATE INDEX task_ready ON task (class, rank, seq) WHERE reason = 0;
CREATE INDEX task_due ON task (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX task_deadline ON task (deadline_ms) WHERE deadline_ms IS NOT NULL AND status = 0;
CREATE INDEX task_held ON task (owner) WHERE owner IS NOT NULL;
CREATE INDEX task_slot ON task (class) WHERE owner IS NOT NULL AND flags & 512 <> 0;
CREATE INDEX task_waits ON task (waits_for) WHERE waits_for IS NOT NULL;

CREATE TABLE attempt (
    task        bigint   NOT NULL,
    started_ms  bigint,
    ended_ms    bigint   NOT NULL,
    duration_us bigint,
    cpu_us      bigint,
    memory      bigint,
    network     bigint,
    wait_ms     bigint,
    number      integer  NOT NULL,
    owner       integer,
    batch       integer  NOT NULL DEFAULT 1,
    outcome     smallint NOT NULL,
    lane        text,
    error       bytea,
    PRIMARY KEY (task, number)
);
CREATE INDEX attempt_ended ON attempt (ended_ms);   -- what happened lately, among whatever there is

-- child waits for parent; policy 0 require, 1 allow_failure, 2 skip.
CREATE TABLE edge (
    child  bigint   NOT NULL,
    parent bigint   NOT NULL,
    n      integer  NOT NULL,
    policy smallint NOT NULL CHECK (policy BETWEEN 0 AND 2),
    PRIMARY KEY (child, n)
);
CREATE INDEX edge_parent ON edge (parent, child);

-- The output of task stands for the results of other tasks.
CREATE TABLE stands_for (
    task bigint  NOT NULL,
    ref  bigint  NOT NULL,
    n    integer NOT NULL,
    PRIMARY KEY (task, n)
);
CREATE INDEX stands_for_ref ON stands_for (ref);

-- Ended tasks whose end has not reached all their children yet: those up to `past` know that it failed.
CREATE TABLE cascade (
    task bigint PRIMARY KEY,
    past bigint NOT NULL DEFAULT 0
);

CREATE TABLE idempotency (
    namespace text   NOT NULL,
    key       text   NOT NULL,
    task      bigint NOT NULL,
    PRIMARY KEY (namespace, key)
);
CREATE INDEX idempotency_task ON idempotency (task);

CREATE TABLE retried (
    task  bigint PRIMARY KEY,   -- the ended one
    again bigint NOT NULL       -- the new one
);
CREATE INDEX retried_again ON retried (again);

CREATE TABLE tombstone (
    id       bytea    PRIMARY KEY,
    ended_ms bigint   NOT NULL,
    status   smallint NOT NULL
);
CREATE INDEX tombstone_ended ON tombstone (ended_ms);

-- Classes that got ready tasks, for processes that look after another's commit. Who has seen all transactions up to one
-- reads what came after it: numbers of rows would not do, as a lower one may be committed later.
CREATE TABLE news (
    xid   xid8    NOT NULL DEFAULT pg_current_xact_id(),
    class integer NOT NULL,
    rank  bigint  NOT NULL DEFAULT -9223372036854775808   -- that none of those tasks goes before
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000);
CREATE INDEX news_xid ON news (xid);

-- Tasks that users submit in transactions of their own, until a process takes them in. Users write here and nowhere else, and
-- nobody waits for what they write: a transaction of theirs may stay open for as long as it likes.
CREATE TABLE inbox (
    n         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,    -- parents come before their children
    xid       xid8   NOT NULL DEFAULT pg_current_xact_id(),       -- the user's transaction
    id        bytea  NOT NULL UNIQUE CHECK (length(id) = 16),
    namespace text,                                               -- of the idempotency key
    key       text,
    task      bytea  NOT NULL                                     -- MessagePack of a NewTask
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE INDEX inbox_key ON inbox (namespace, key) WHERE key IS NOT NULL;

-- Users' sessions look into the inbox by these: a plan of their own, made while it was empty, would read all of it. What is
-- set here holds within the function alone.
CREATE FUNCTION inbox_of_ids(ids bytea[]) RETURNS SETOF inbox
    LANGUAGE sql STABLE SET search_path FROM CURRENT
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$SELECT * FROM inbox WHERE inbox.id = ANY (ids)$$;
CREATE FUNCTION inbox_of_keys(namespaces text[], keys text[]) RETURNS SETOF inbox LANGUAGE plpgsql STABLE
    SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$BEGIN
        FOR at IN 1 .. cardinality(keys) LOOP
            RETURN QUERY SELECT * FROM inbox WHERE inbox.namespace = namespaces[at] AND inbox.key = keys[at];
        END LOOP;
    END$$;

-- How many tasks a class has in each status; class 0 is all of them. Each worker counts what it changed, so that none
-- waits for another's row; what workers that are gone have counted is added up as worker 0.
CREATE TABLE tally (
    class  integer  NOT NULL,
    worker integer  NOT NULL,
    n      bigint   NOT NULL,
    status smallint NOT NULL,
    PRIMARY KEY (class, status, worker)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE progress (
    task    bigint PRIMARY KEY,
    done    double precision NOT NULL,
    total   double precision NOT NULL,
    at_ms   bigint  NOT NULL,
    attempt integer NOT NULL
) WITH (fillfactor = 50);

-- A process that has the store open. A helper of it raises `beat` as long as it lives, whatever keeps it busy; `turns`
-- is what its writer has done; who takes claims of it back raises `revoked`.
CREATE TABLE worker (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pid        integer NOT NULL,
    started_ms bigint  NOT NULL,
    ended_ms   bigint,
    beat       bigint  NOT NULL DEFAULT 0,
    turns      bigint  NOT NULL DEFAULT 0,
    revoked    bigint  NOT NULL DEFAULT 0,
    is_lost    boolean NOT NULL DEFAULT false, -- its helper saw it die,
    running    bigint[] NOT NULL DEFAULT '{}', -- and what ran then: seq, attempt, seq, attempt ...
    name       text    NOT NULL UNIQUE,
    host       text    NOT NULL,
    slots      text               -- of its lanes, JSON; NULL: it serves nothing, or is of an older version
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX worker_open ON worker (id) WHERE ended_ms IS NULL;

CREATE TABLE serves (
    worker integer NOT NULL,
    type   text    NOT NULL,
    PRIMARY KEY (worker, type)
);

-- How full the machines are that work: what each process that does has told last. It goes with the process.
CREATE TABLE usage (
    worker  integer PRIMARY KEY,
    at_ms   bigint  NOT NULL,
    figures text    NOT NULL    -- JSON of a ResourceUsage
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- What handlers there have been, for submitters that don't have the code.
CREATE TABLE handler (
    type    text   NOT NULL,
    version text   NOT NULL,
    lane    text   NOT NULL,
    options text   NOT NULL,   -- JSON
    schema  text   NOT NULL,   -- JSON Schema of the input
    source  text   NOT NULL,   -- hash of the source, to tell a change under the same version
    seen_ms bigint NOT NULL,
    PRIMARY KEY (type, version)
);

-- What may not start now; '' stands for any.
CREATE TABLE pause (
    namespace text   NOT NULL,
    type      text   NOT NULL,
    grp       text   NOT NULL,
    since_ms  bigint NOT NULL,
    who       text   NOT NULL DEFAULT '',    -- has asked for it, in words; '' where that was not noted
    PRIMARY KEY (namespace, type, grp)
);

-- Blobs that task payloads refer to.
CREATE TABLE payload_blob (
    digest text   NOT NULL,
    task   bigint NOT NULL,
    PRIMARY KEY (digest, task)
);
CREATE INDEX payload_blob_task ON payload_blob (task);

CREATE TABLE audit (
    n      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms  bigint NOT NULL,
    action text   NOT NULL,
    detail text   NOT NULL    -- JSON
);

-- What equal work has given. A key tells namespace, type, code, model, params and input.
CREATE TABLE cache (
    key        bytea    PRIMARY KEY,
    namespace  text     NOT NULL,
    type       text     NOT NULL,
    version    text     NOT NULL,
    output     bytea    NOT NULL,
    flags      integer  NOT NULL,
    digest     text,                 -- of the blob that the output lives in
    bytes      bigint   NOT NULL,
    made_ms    bigint   NOT NULL,
    expires_ms bigint   NOT NULL,
    used_ms    bigint   NOT NULL      -- in steps of a minute
);
CREATE INDEX cache_expires ON cache (expires_ms);
CREATE INDEX cache_used ON cache (used_ms, bytes);
CREATE INDEX cache_digest ON cache (digest) WHERE digest IS NOT NULL;

-- How many bytes all of them have: one row, counted by whatever changes them, so that no look at the limit adds them up. What
-- changes them runs alone, so that nobody waits for this row; notes of use change no bytes, and leave it.
CREATE TABLE kept_size (
    bytes    bigint NOT NULL,
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
INSERT INTO kept_size (bytes) VALUES (0);
CREATE FUNCTION count_cache() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$BEGIN
        IF TG_OP = 'INSERT' THEN
            UPDATE kept_size SET bytes = kept_size.bytes + (SELECT coalesce(sum(came.bytes), 0) FROM came);
        ELSIF TG_OP = 'DELETE' THEN
            UPDATE kept_size SET bytes = kept_size.bytes - (SELECT coalesce(sum(went.bytes), 0) FROM went);
        ELSE
            UPDATE kept_size SET bytes = kept_size.bytes + new.bytes - old.bytes;
        END IF;
        RETURN NULL;
    END$$;
CREATE TRIGGER cache_came AFTER INSERT ON cache REFERENCING NEW TABLE AS came EXECUTE FUNCTION count_cache();
CREATE TRIGGER cache_went AFTER DELETE ON cache REFERENCING OLD TABLE AS went EXECUTE FUNCTION count_cache();
CREATE TRIGGER cache_changed AFTER UPDATE OF bytes ON cache FOR EACH ROW EXECUTE FUNCTION count_cache();

-- Equal work under way: one task of a key leads, the others follow.
CREATE TABLE flight (
    task    bigint  PRIMARY KEY,
    key     bytea    NOT NULL,
    leads   smallint NOT NULL,
    keep_ms bigint   NOT NULL         -- for how long it wants the result kept
);
CREATE UNIQUE INDEX flight_leader ON flight (key) WHERE leads = 1;
CREATE INDEX flight_followers ON flight (key) WHERE leads = 0;

-- What a living worker says of tasks that lack resources: JSON, for people who ask why a task does not run.
CREATE TABLE offer (
    worker bigint PRIMARY KEY,
    at_ms  bigint NOT NULL,
    state  text   NOT NULL
);

-- What a group may do, at once and in a time; '' as its namespace stands for any. Changes are numbered, so that processes read only what
-- is new to them; a limit that was taken off leaves its row. Who claims for a group holds its row until the commit.
CREATE TABLE group_limit (
    id          integer PRIMARY KEY,
    concurrency integer CHECK (concurrency > 0),       -- tasks held at once; NULL: any number
    rate        integer CHECK (rate > 0),              -- tasks that may begin in a time; NULL: any number
    rate_ms     bigint,                                -- that time
    full_us     bigint  NOT NULL DEFAULT 0,            -- when so many as that may begin at once again, in microseconds
    weight      double precision CHECK (weight > 0),   -- its share of lanes that others share; NULL: none of its own
    held_then   integer NOT NULL,                      -- how many were held when it was set: so many may be, until they end
    changed     bigint  NOT NULL UNIQUE,
    namespace   text    NOT NULL,
    grp         text    NOT NULL,
    cost_rate   bigint CHECK (cost_rate > 0),          -- what those that begin may cost in a time; NULL: any amount
    cost_ms     bigint,                                -- that time
    cost_used   double precision NOT NULL DEFAULT 0,   -- how much of it was used; above the rate it is a debt
    cost_at_ms  bigint  NOT NULL DEFAULT 0,            -- when that was so
    CHECK ((cost_rate IS NULL) = (cost_ms IS NULL)),
    UNIQUE (grp, namespace),
    CHECK ((rate IS NULL) = (rate_ms IS NULL))
) WITH (fillfactor = 50);
