-- What there is to know of a store from outside, and of the server that it is on.

-- name: living
-- Who has not signed off, with what it holds and serves.
SELECT worker.name, pid, host, started_ms, (SELECT count(*) FROM task WHERE owner = worker.id),
    (SELECT string_agg(type, ' ') FROM serves WHERE serves.worker = worker.id)
FROM worker WHERE ended_ms IS NULL ORDER BY worker.id;

-- name: beats
SELECT name, beat, is_lost FROM worker WHERE ended_ms IS NULL;

-- name: classes
-- Classes with unfinished tasks: how many, how many of them ready (counted up to a limit), and since when the next one.
SELECT namespace, type, grp, unfinished.n,
    (SELECT count(*) FROM (SELECT 1 FROM task WHERE task.class = class.id AND reason = 0 LIMIT $1) AS few),
    (SELECT ready_ms FROM task WHERE task.class = class.id AND reason = 0 ORDER BY rank, seq LIMIT 1)
FROM (SELECT class, sum(n)::bigint AS n FROM tally WHERE status = 0 GROUP BY class) AS unfinished
JOIN class ON class.id = unfinished.class WHERE unfinished.n > 0 ORDER BY unfinished.n DESC;

-- name: deadlines
-- Of the tasks that wait, those whose deadlines come first (up to a limit): how many a class has, and its first one.
SELECT namespace, type, grp, count(*), min(deadline_ms) FROM (SELECT class, deadline_ms FROM task
    WHERE deadline_ms IS NOT NULL AND status = 0 AND reason IS DISTINCT FROM 4 ORDER BY deadline_ms LIMIT $1) AS first
JOIN class ON class.id = first.class GROUP BY namespace, type, grp;

-- name: rates
SELECT grp, namespace, rate, rate_ms FROM group_limit WHERE rate IS NOT NULL ORDER BY grp, namespace;

-- name: following
-- Queued tasks that lead equal work, by their class: how many of other classes wait for them.
SELECT namespace, type, grp, count(*) FROM flight AS mine JOIN flight AS first ON first.key = mine.key AND first.leads = 1
JOIN task AS leader ON leader.seq = first.task JOIN task AS follower ON follower.seq = mine.task
JOIN class ON class.id = leader.class
WHERE mine.leads = 0 AND leader.reason = 0 AND follower.class <> leader.class GROUP BY namespace, type, grp;

-- name: offers
SELECT worker.name, state FROM offer JOIN worker ON worker.id = offer.worker ORDER BY worker.id;

-- name: first_of_type
-- Ready tasks of a type, those first that go first in their class, with the spec of those that say what they need.
SELECT first.id, CASE WHEN first.flags & 4096 <> 0 THEN first.spec END FROM class JOIN LATERAL
    (SELECT * FROM task WHERE task.class = class.id AND reason = 0 ORDER BY rank, seq LIMIT $2) AS first ON true
WHERE class.type = $1 LIMIT $2;

-- name: known_tables
SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema();

-- name: ends
-- How tasks of each type ended: completed, and failed or out of time.
SELECT type, coalesce(sum(n) FILTER (WHERE status = 2), 0)::bigint,
    coalesce(sum(n) FILTER (WHERE status IN (3, 5)), 0)::bigint
FROM tally JOIN class ON class.id = tally.class WHERE status IN (2, 3, 5) GROUP BY type HAVING sum(n) > 0 ORDER BY type;

-- name: pauses
SELECT namespace, type, grp FROM pause;

-- name: overrun
-- Attempts that may have run for longer than their timeout and some grace: they became ready before that, and so did
-- their worker.
SELECT task.id, type, worker.name, timeout_ms, $1::bigint - greatest(ready_ms, worker.started_ms)
FROM task JOIN worker ON worker.id = owner JOIN class ON class.id = class
WHERE owner IS NOT NULL AND status = 1 AND $1::bigint - greatest(ready_ms, worker.started_ms) > timeout_ms + $2::bigint
LIMIT $3;

-- name: late
-- When the first delay ended, and the first deadline passed, that nobody has acted on.
SELECT (SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL),
    (SELECT min(deadline_ms) FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason IS DISTINCT FROM 4);

-- name: newest
SELECT greatest((SELECT submitted_ms FROM task ORDER BY seq DESC LIMIT 1), (SELECT max(started_ms) FROM worker),
    (SELECT max(ended_ms) FROM worker));

-- name: unfinished
SELECT coalesce(sum(n), 0)::bigint FROM tally WHERE class = 0 AND status = 0;

-- name: handlers
SELECT type, version, lane, options, seen_ms FROM handler ORDER BY type, version;

-- name: travelling
SELECT count(*) FROM cascade;

-- name: now
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- name: inbox
-- How many tasks of users' transactions wait to be taken in (counted up to a limit), and the oldest of them.
SELECT (SELECT count(*) FROM (SELECT 1 FROM inbox LIMIT $1) AS few), (SELECT min(n) FROM inbox);

-- name: moves
SELECT to_regclass('migration') IS NOT NULL;

-- name: leader
-- Whether somebody holds the lock of who looks after the store.
SELECT EXISTS (SELECT 1 FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND classid = $1::bigint::oid AND objsubid = 2
        AND objid::bigint = (SELECT oid::bigint % 2147483647 FROM pg_namespace WHERE nspname = current_schema())
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));

-- name: server
SELECT current_setting('server_version'), (SELECT version FROM store), pg_is_in_recovery(),
    current_user::text, current_database()::text,
    current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on',
    current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
    (SELECT count(*) FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend'),
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
    (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
    (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
    pg_database_size(current_database()), (SELECT identity::text FROM store);

-- name: rights
-- What this user may not do to which table, and whether it may not draw the numbers of tasks.
SELECT relname::text, CASE WHEN relkind = 'S' THEN 'USAGE' ELSE needed END
FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed
WHERE relnamespace = current_schema()::regnamespace AND CASE
    WHEN relkind IN ('r', 'p') THEN NOT has_table_privilege(pg_class.oid, needed)
    WHEN relname = 'task_seq' THEN needed = 'SELECT' AND NOT has_sequence_privilege(pg_class.oid, 'USAGE')
    ELSE false END
ORDER BY relname, needed;

-- name: held_back
-- What keeps dead rows of this database, the oldest first: sessions in a transaction, prepared transactions, and slots of
-- replicas. For how long slots do is not known, but how many transactions began since.
SELECT 'session', pid, coalesce(application_name, ''), coalesce(usename::text, ''), coalesce(state, ''), '',
    extract(epoch FROM clock_timestamp() - xact_start)::float8,
    coalesce(greatest(age(backend_xmin), age(backend_xid)), 0)::bigint
FROM pg_stat_activity
WHERE backend_type <> 'autovacuum worker' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    AND (datname = current_database() OR datname IS NULL) AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
UNION ALL
SELECT 'prepared', NULL, '', owner::text, '', gid::text, extract(epoch FROM clock_timestamp() - prepared)::float8,
    age(transaction)::bigint
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'slot', active_pid, '', '', CASE WHEN active THEN 'active' ELSE 'inactive' END, slot_name::text, NULL,
    age(xmin)::bigint
FROM pg_replication_slots WHERE xmin IS NOT NULL
ORDER BY 8 DESC LIMIT 20;

-- name: hidden
-- How many sessions do not tell this user what they do.
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query = '<insufficient privilege>';

-- name: tables
SELECT pg_class.relname::text, greatest(reltuples, 0)::bigint, n_live_tup, n_dead_tup, pg_total_relation_size(pg_class.oid),
    (extract(epoch FROM greatest(last_vacuum, last_autovacuum)) * 1000)::bigint, coalesce(reloptions, '{}')
FROM pg_class JOIN pg_stat_user_tables ON relid = pg_class.oid
WHERE relnamespace = current_schema()::regnamespace ORDER BY 1;

-- name: indexes
-- All indexes, and whether a constraint stands on it.
SELECT index.relname::text, indrelid::regclass::text, pg_relation_size(index.oid), coalesce(idx_scan, 0), indisvalid,
    EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = index.oid)
FROM pg_index JOIN pg_class AS index ON index.oid = pg_index.indexrelid
LEFT JOIN pg_stat_user_indexes ON pg_stat_user_indexes.indexrelid = index.oid
WHERE index.relnamespace = current_schema()::regnamespace ORDER BY 1;
