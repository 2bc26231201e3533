-- Named statements, by the names that store/sql uses. The line above each says which state becomes which. The guard is
-- the WHERE: no row changed means that the claim is lost or the state has moved on. A guard that is no way to the row is
-- written so that no index serves it (coalesce): plans are made once, when tables may be empty and any index looks good.

-- name: insert_task
-- new -> PENDING (ready, parents, delayed or claimed), many at once
INSERT INTO task (seq, id, class, rank, status, reason, attempt, owner, flags, priority, max_retries, submitted_ms,
    ready_ms, not_before_ms, due_ms, deadline_ms, timeout_ms, waits_for, waits_at, input, spec)
SELECT v.seq, v.id, v.class, v.rank, 0, v.reason, v.attempt, v.owner, v.flags, v.priority, v.max_retries,
    v.submitted_ms, v.ready_ms, v.not_before_ms, v.due_ms, v.deadline_ms, v.timeout_ms, v.waits_for, v.waits_at,
    v.input, v.spec
FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::bigint[], $5::smallint[], $6::integer[], $7::integer[],
    $8::integer[], $9::smallint[], $10::integer[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[],
    $15::bigint[], $16::bigint[], $17::bigint[], $18::integer[], $19::bytea[], $20::bytea[])
    AS v (seq, id, class, rank, reason, attempt, owner, flags, priority, max_retries, submitted_ms, ready_ms,
    not_before_ms, due_ms, deadline_ms, timeout_ms, waits_for, waits_at, input, spec);

-- name: insert_alike
-- The same for many that differ in nothing but number, id, rank and input.
INSERT INTO task (seq, id, rank, input, class, status, reason, attempt, owner, flags, priority, max_retries,
    submitted_ms, ready_ms, not_before_ms, due_ms, deadline_ms, timeout_ms, waits_for, waits_at, spec)
SELECT v.seq, v.id, v.rank, v.input, $5::integer, 0, $6::smallint, $7::integer, $8::integer, $9::integer, $10::smallint,
    $11::integer, $12::bigint, $13::bigint, $14::bigint, $15::bigint, $16::bigint, $17::bigint, $18::bigint,
    $19::integer, $20::bytea
FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bytea[]) AS v (seq, id, rank, input);

-- name: numbers
-- Numbers of new tasks, in order.
SELECT nextval('task_seq') FROM generate_series(1, $1::integer);

-- name: task_by_id
SELECT seq, status, class, input, flags, spec FROM task WHERE id = $1;

-- name: tombstone_by_id
SELECT status FROM tombstone WHERE id = $1;

-- name: insert_edge
INSERT INTO edge (child, n, parent, policy)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::smallint[]);

-- name: add_class
-- Another transaction may have made it a moment ago.
INSERT INTO class (namespace, type, grp) VALUES ($1, $2, $3)
ON CONFLICT (namespace, type, grp) DO UPDATE SET grp = excluded.grp RETURNING id;

-- name: find_class
SELECT id FROM class WHERE namespace = $1 AND type = $2 AND grp = $3;

-- name: status_and_id
SELECT status, id, retry_count + crashes FROM task WHERE seq = $1;

-- name: class_and_id
SELECT class, id FROM task WHERE seq = $1;

-- name: class_by_id
SELECT namespace, type, grp FROM class WHERE id = $1;

-- name: task_by_key
SELECT seq, status, class, input, flags, spec, id FROM task
WHERE seq = (SELECT task FROM idempotency WHERE namespace = $1 AND key = $2);

-- name: tasks_by_keys
-- The same for many, behind their keys. Each is looked up by itself, whatever a plan supposes of how many there are.
SELECT wanted.namespace, wanted.key, found.* FROM unnest($1::text[], $2::text[]) AS wanted (namespace, key)
CROSS JOIN LATERAL (SELECT seq, status, class, input, flags, spec, id FROM task
    WHERE seq = (SELECT task FROM idempotency WHERE namespace = wanted.namespace AND key = wanted.key)) AS found;

-- name: add_key
INSERT INTO idempotency (namespace, key, task) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]);

-- name: unfinished
SELECT coalesce(sum(n), 0)::bigint FROM tally WHERE class = 0 AND status IN (0, 1);

-- name: heads
-- The best ready tasks of a class, in order, from a place on that none goes before: what is in front of it died.
SELECT rank, seq FROM task WHERE class = $1 AND reason = 0 AND (rank, seq) >= ($3, $4) ORDER BY rank, seq LIMIT $2;

-- name: heads_to_weigh
-- The same, with the spec of those that say themselves what they need.
SELECT rank, seq, CASE WHEN flags & 4096 <> 0 THEN spec END FROM task
WHERE class = $1 AND reason = 0 AND (rank, seq) >= ($3, $4) ORDER BY rank, seq LIMIT $2;

-- name: still_ready
-- Those of these tasks of a class that are.
SELECT rank, seq FROM task WHERE seq = ANY ($2::bigint[]) AND class = $1 AND reason = 0;

-- name: ready_classes
-- All classes that have ready tasks, with the best of each: one step of the index a class.
WITH RECURSIVE head AS (
    (SELECT class, rank, seq FROM task WHERE reason = 0 ORDER BY class, rank, seq LIMIT 1)
    UNION ALL
    SELECT next.class, next.rank, next.seq FROM head, LATERAL (
        SELECT class, rank, seq FROM task WHERE reason = 0 AND class > head.class ORDER BY class, rank, seq LIMIT 1
    ) AS next)
SELECT class, rank, seq FROM head;

-- name: catch_up
-- What others committed since a snapshot, and what falls due; with numbers for new tasks, and how many are unfinished.
-- Transactions that were under way then are looked for by their numbers: somebody else's long one costs no more than that.
SELECT pg_current_snapshot()::text,
    (SELECT news_floor FROM store) >= pg_snapshot_xmin($1::text::pg_snapshot),
    ARRAY(SELECT ARRAY[class, rank] FROM (
        SELECT class, rank FROM news WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot)
        UNION SELECT class, rank FROM news WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
        ) AS new),
    (SELECT count(*) FROM worker WHERE ended_ms IS NULL AND id <> $2),
    ARRAY(SELECT ARRAY[namespace, type, grp] FROM pause),
    (SELECT max(changed) FROM group_limit),
    (SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL),
    (SELECT deadline_ms FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason <> 4
     ORDER BY deadline_ms LIMIT 1),
    EXISTS (SELECT 1 FROM worker WHERE ended_ms IS NULL AND id = $2),
    (SELECT n FROM inbox ORDER BY n LIMIT 1) IS NOT NULL,
    ARRAY(SELECT nextval('task_seq') FROM generate_series(1, $3::integer)),
    (SELECT coalesce(sum(n), 0)::bigint FROM tally WHERE class = 0 AND status IN (0, 1));

-- name: take_inbox
-- The oldest tasks of users' transactions, to be taken in. What another process is taking now is left to it.
DELETE FROM inbox WHERE n = ANY (ARRAY(SELECT n FROM inbox ORDER BY n LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING n, id, task;

-- name: arrivals
SELECT 1 FROM inbox LIMIT 1;

-- name: whereabouts
-- Which of these tasks the store knows, and where: 0 as tasks, 1 on their way in, 2 as pruned ones.
SELECT id, 0 FROM task WHERE id = ANY ($1::bytea[])
UNION ALL SELECT id, 1 FROM inbox WHERE id = ANY ($1::bytea[])
UNION ALL SELECT id, 2 FROM tombstone WHERE id = ANY ($1::bytea[]);

-- name: inbox_of_id
SELECT task, xid::text FROM inbox WHERE id = $1;

-- name: inbox_of_key
SELECT task, xid::text FROM inbox WHERE namespace = $1 AND key = $2 ORDER BY n LIMIT 1;

-- name: identity
-- Which store this is, and where: a copy has the same identity.
SELECT identity::text, current_database()::text, tableoid::bigint FROM store;

-- name: fate
-- How a transaction stands: in progress, committed or aborted; unknown when it was long ago.
SELECT pg_xact_status($1::text::xid8);

-- name: raise_news_floor
-- Forget what all that run have seen, but for the last minutes.
UPDATE store SET news_floor = $1::text::xid8 WHERE news_floor < $1::text::xid8;

-- name: drop_news
DELETE FROM news WHERE xid <= $1::text::xid8;

-- name: lower_news_floor
-- On a server that counts transactions anew (the rows were restored from a dump) it may lie ahead of all there will be.
UPDATE store SET news_floor = '0' WHERE news_floor > pg_snapshot_xmax(pg_current_snapshot());

-- name: drop_foreign_news
DELETE FROM news WHERE xid > pg_snapshot_xmax(pg_current_snapshot());

-- name: newest_transaction
SELECT pg_snapshot_xmin(pg_current_snapshot())::text;

-- name: claim
-- PENDING (ready) -> PENDING (claimed). What another process is taking now is left to it.
UPDATE task SET reason = 4, owner = $1, attempt = attempt + 1
WHERE seq = ANY (ARRAY(SELECT seq FROM task WHERE seq = ANY ($2::bigint[]) AND coalesce(reason, -1) = 0
    FOR UPDATE SKIP LOCKED))
RETURNING seq, id, attempt, class, rank, flags, priority, retry_count, max_retries, crashes, releases, ready_ms,
    deadline_ms, timeout_ms, input, spec;

-- name: claim_of_class
-- The same for the best of one class, from a place on that none goes before. Tells where the first one was, taken by this
-- or by another: none went before it.
WITH head AS MATERIALIZED (SELECT rank, seq FROM task WHERE class = $2 AND reason = 0 AND (rank, seq) >= ($4, $5)
    ORDER BY rank, seq LIMIT 1)
UPDATE task SET reason = 4, owner = $1, attempt = attempt + 1
WHERE seq = ANY (ARRAY(SELECT seq FROM task WHERE class = $2 AND reason = 0 AND (rank, seq) >= ($4, $5)
    ORDER BY rank, seq LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING seq, id, attempt, class, rank, flags, priority, retry_count, max_retries, crashes, releases, ready_ms,
    deadline_ms, timeout_ms, input, spec, (SELECT rank FROM head), (SELECT seq FROM head);

-- name: start
-- PENDING (claimed) -> RUNNING
UPDATE task SET status = 1, reason = NULL WHERE seq = $1 AND attempt = $2 AND coalesce(owner, 0) = $3 AND reason = 4;

-- name: complete
-- PENDING (claimed) or RUNNING -> COMPLETED, unless somebody asked for a cancel
UPDATE task SET status = 2, reason = NULL, owner = NULL, ended_ms = $1, output = $2, flags = flags | $3, error = NULL
WHERE seq = $4 AND attempt = $5 AND coalesce(owner, 0) = $6 AND flags & 1 = 0;

-- name: complete_and_note
-- The same for many at once, with the rows of their attempts; tells how many there were, and whether anybody waits for anything.
WITH done AS (
        UPDATE task SET status = 2, reason = NULL, owner = NULL, ended_ms = v.ended_ms, output = v.output,
            flags = task.flags | v.flags, error = NULL
        FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $8::integer[], $9::integer[], $10::integer[])
            AS v (seq, output, ended_ms, attempt, owner, flags)
        WHERE task.seq = v.seq AND task.attempt = v.attempt AND coalesce(task.owner, 0) = v.owner
            AND task.flags & 1 = 0
        RETURNING 1),
    noted AS (
        INSERT INTO attempt (task, outcome, ended_ms, started_ms, duration_us, cpu_us, wait_ms, number, owner, batch,
            lane, memory, network)
        SELECT seq, 0, ended_ms, started_ms, duration_us, cpu_us, wait_ms, number, owner, batch, lane, memory, network
        FROM unnest($1::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::integer[],
            $9::integer[], $11::integer[], $12::text[], $13::bigint[], $14::bigint[])
            AS v (seq, ended_ms, started_ms, duration_us, cpu_us, wait_ms, number, owner, batch, lane, memory, network))
SELECT (SELECT count(*) FROM done), EXISTS (SELECT 1 FROM task WHERE waits_for IS NOT NULL);

-- name: complete_alike
-- The same for those that have attempt, owner, flags, batch, lane, memory and network in common, where these are unknown
-- at least.
WITH done AS (
        UPDATE task SET status = 2, reason = NULL, owner = NULL, ended_ms = v.ended_ms, output = v.output,
            flags = task.flags | $10::integer, error = NULL
        FROM unnest($1::bigint[], $2::bytea[], $3::bigint[]) AS v (seq, output, ended_ms)
        WHERE task.seq = v.seq AND task.attempt = $8::integer AND coalesce(task.owner, 0) = $9::integer
            AND task.flags & 1 = 0
        RETURNING 1),
    noted AS (
        INSERT INTO attempt (task, outcome, ended_ms, started_ms, duration_us, cpu_us, wait_ms, number, owner, batch,
            lane, memory, network)
        SELECT seq, 0, ended_ms, started_ms, duration_us, cpu_us, wait_ms, $8, $9, $11::integer, $12::text,
            $13::bigint, $14::bigint
        FROM unnest($1::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
            AS v (seq, ended_ms, started_ms, duration_us, cpu_us, wait_ms))
SELECT (SELECT count(*) FROM done), EXISTS (SELECT 1 FROM task WHERE waits_for IS NOT NULL);

-- name: held
-- What a finish may change: the row as it is, if this claim still holds it.
SELECT status, class, flags, priority, retry_count, max_retries, crashes, releases, deadline_ms, id, rank
FROM task WHERE seq = $1 AND attempt = $2 AND coalesce(owner, 0) = $3;

-- name: end
-- PENDING (any) or RUNNING -> CANCELLED or TIMEOUT; what is held or waits for parents -> FAILED
UPDATE task SET status = $1::smallint, reason = NULL, owner = NULL, due_ms = NULL, waits_for = NULL, waits_at = NULL,
    ended_ms = $2, error = $3
WHERE seq = $4 AND status < 2 AND ($1::smallint <> 3 OR owner IS NOT NULL OR reason = 1);

-- name: end_many
-- The same for many at once that are held. Where somebody asked for a cancel they may only become CANCELLED
UPDATE task SET status = v.status, reason = NULL, owner = NULL, ended_ms = v.ended_ms, error = v.error
FROM unnest($1::smallint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::integer[], $6::integer[])
    AS v (status, ended_ms, error, seq, attempt, owner)
WHERE task.seq = v.seq AND task.attempt = v.attempt AND coalesce(task.owner, 0) = v.owner
    AND (task.flags & 1 = 0 OR v.status = 4);

-- name: again
-- PENDING (claimed) or RUNNING -> PENDING (retry)
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = $1, retry_count = retry_count + 1, error = $2,
    flags = flags & ~2
WHERE seq = $3 AND owner IS NOT NULL;

-- name: again_many
-- The same for many at once, unless somebody asked for a cancel
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = v.due_ms, retry_count = retry_count + 1,
    error = v.error, flags = (task.flags | v.flags) & ~2, spec = coalesce(v.spec, task.spec)
FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::bigint[], $5::integer[], $6::integer[], $7::bytea[])
    AS v (due_ms, error, flags, seq, attempt, owner, spec)
WHERE task.seq = v.seq AND task.attempt = v.attempt AND coalesce(task.owner, 0) = v.owner AND task.flags & 1 = 0;

-- name: again_after_crash
-- PENDING (claimed) or RUNNING -> PENDING (retry), charged as a crash; it runs where it harms nobody from then on
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = $1, crashes = crashes + 1, error = $2,
    flags = flags | $3
WHERE seq = $4 AND owner IS NOT NULL;

-- name: give_back
-- PENDING (claimed) or RUNNING -> PENDING (ready), uncharged; its rank stays
UPDATE task SET status = 0, reason = 0, owner = NULL, releases = releases + $1, crashes = crashes + $2,
    flags = flags | $3
WHERE seq = $4 AND owner IS NOT NULL;

-- name: hand_back
-- PENDING (claimed) -> PENDING (ready), many at once that never began, unless somebody asked for a cancel
UPDATE task SET reason = 0, owner = NULL
FROM unnest($1::bigint[], $2::integer[], $3::integer[]) AS v (seq, attempt, owner)
WHERE task.seq = v.seq AND task.attempt = v.attempt AND coalesce(task.owner, 0) = v.owner AND task.reason = 4
    AND task.flags & 1 = 0;

-- name: insert_attempt
INSERT INTO attempt (task, number, outcome, owner, started_ms, ended_ms, duration_us, cpu_us, memory, network, batch,
    wait_ms, lane, error)
SELECT * FROM unnest($1::bigint[], $2::integer[], $3::smallint[], $4::integer[], $5::bigint[], $6::bigint[],
    $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::integer[], $12::bigint[], $13::text[], $14::bytea[]);

-- name: attempt_is_there
SELECT 1 FROM attempt WHERE task = $1 AND number = $2;

-- name: any_waiting
SELECT 1 FROM task WHERE waits_for IS NOT NULL LIMIT 1;

-- name: awaited
-- Those of these tasks that others wait for.
SELECT v FROM unnest($1::bigint[]) AS v WHERE EXISTS (SELECT 1 FROM task WHERE waits_for = v);

-- name: having_children
-- Those of these tasks that others depend on.
SELECT v FROM unnest($1::bigint[]) AS v WHERE EXISTS (SELECT 1 FROM edge WHERE parent = v);

-- name: waiting_on
-- The children that wait for one of these parents, each with the next edge that is unfinished or broken, if there is one.
SELECT child.seq, child.class, child.rank, child.not_before_ms,
    (SELECT edge.n FROM edge JOIN task AS parent ON parent.seq = edge.parent
     WHERE edge.child = child.seq AND edge.n >= child.waits_at
         AND (parent.status < 2 OR parent.status > 2 AND edge.policy <> 1)
     ORDER BY edge.n LIMIT 1)
FROM task AS child WHERE child.waits_for = ANY ($1::bigint[]) LIMIT $2;

-- name: edge_of
-- An edge, with how its parent stands.
SELECT edge.n, edge.parent, edge.policy, task.status, task.id
FROM edge JOIN task ON task.seq = edge.parent WHERE edge.child = $1 AND edge.n = $2;

-- name: wait_on
-- PENDING (parents) -> PENDING (parents), for another one
UPDATE task SET waits_for = $1, waits_at = $2 WHERE seq = $3 AND reason = 1;

-- name: release_children
-- PENDING (parents) -> PENDING (ready)
UPDATE task SET reason = 0, waits_for = NULL, waits_at = NULL, ready_ms = $1
WHERE seq = ANY ($2::bigint[]) AND reason = 1;

-- name: delay_children
-- PENDING (parents) -> PENDING (delayed)
UPDATE task SET reason = 2, due_ms = not_before_ms, waits_for = NULL, waits_at = NULL
WHERE seq = ANY ($1::bigint[]) AND reason = 1;

-- name: children_after
-- The next of a parent's children, with what they wait with.
SELECT edge.child, edge.policy, task.reason FROM edge JOIN task ON task.seq = edge.child
WHERE edge.parent = $1 AND edge.child > $2 ORDER BY edge.child LIMIT $3;

-- name: fail_children
-- PENDING (parents) -> FAILED or CANCELLED
UPDATE task SET status = $1, reason = NULL, waits_for = NULL, waits_at = NULL, ended_ms = $2, error = $3
WHERE seq = ANY ($4::bigint[]) AND reason = 1 RETURNING seq, class, id;

-- name: all_children_of
SELECT edge.child, edge.policy, task.rank, task.reason, task.priority, task.deadline_ms
FROM edge JOIN task ON task.seq = edge.child
WHERE edge.parent = $1;

-- name: depends_on
-- Whether one of these depends on that task, at whatever distance. None on the way can have completed before it.
WITH RECURSIVE above (seq) AS (
    SELECT task.seq FROM task WHERE task.seq = ANY ($1::bigint[]) AND task.status <> 2
    UNION
    SELECT task.seq FROM above JOIN edge ON edge.child = above.seq JOIN task ON task.seq = edge.parent
    WHERE task.status <> 2 OR task.seq = $2)
SELECT 1 FROM above WHERE seq = $2 LIMIT 1;

-- name: lacks_parent
-- Whether one of the tasks that it depends on was pruned.
SELECT 1 FROM edge LEFT JOIN task ON task.seq = edge.parent WHERE edge.child = $1 AND task.seq IS NULL LIMIT 1;

-- name: last_edge
SELECT max(n) FROM edge WHERE child = $1;

-- name: raise_ranks
-- A parent takes the best rank of those that wait for it; one that runs may come back.
UPDATE task SET rank = $1 WHERE seq = ANY ($2::bigint[]) AND status < 2 AND rank > $3 RETURNING seq, class, reason;

-- name: parents_of
SELECT parent FROM edge WHERE child = $1;

-- name: hasten
-- Who waits for these is urgent, as those with a priority above NORMAL are by themselves: they wait for nobody to join.
UPDATE task SET flags = flags | 32768 WHERE seq = ANY ($1::bigint[]) AND status < 2 AND priority < 2 AND flags & 32768 = 0
RETURNING seq, reason, id, rank;

-- name: parents_of_all
SELECT DISTINCT parent FROM edge WHERE child = ANY ($1::bigint[]);

-- name: parent_results
SELECT edge.child, task.id, task.status, task.output, task.flags
FROM edge JOIN task ON task.seq = edge.parent WHERE edge.child = ANY ($1::bigint[]) ORDER BY edge.child, edge.n;

-- name: heirs_results
-- What parents that were made anew have left, by the ids of those that they were made of.
WITH RECURSIVE former (seq, heir) AS (
    SELECT retried.task, edge.parent FROM edge JOIN retried ON retried.again = edge.parent WHERE edge.child = $1
    UNION ALL
    SELECT retried.task, former.heir FROM former JOIN retried ON retried.again = former.seq)
SELECT old.id, task.status, task.output, task.flags
FROM former JOIN task AS old ON old.seq = former.seq JOIN task ON task.seq = former.heir;

-- name: add_stands_for
INSERT INTO stands_for (task, n, ref) VALUES ($1, $2, $3);

-- name: stood_for
-- What the outputs of these tasks stand for.
SELECT stands_for.task, task.seq, task.status, task.id
FROM stands_for JOIN task ON task.seq = ref WHERE stands_for.task = ANY ($1::bigint[]) ORDER BY stands_for.task, n;

-- name: add_cascade
INSERT INTO cascade (task, past) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: drop_cascade
DELETE FROM cascade WHERE task = $1;

-- name: next_cascade
SELECT cascade.task, task.status, task.id, cascade.past FROM cascade LEFT JOIN task ON task.seq = cascade.task
LIMIT $1;

-- name: promote
-- PENDING (delayed or retry) -> PENDING (ready). What another process is promoting now is left to it.
UPDATE task SET reason = 0, due_ms = NULL, ready_ms = $1
WHERE seq = ANY (ARRAY(SELECT seq FROM task WHERE due_ms <= $2 ORDER BY due_ms LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING class, rank, seq;

-- name: next_due
SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL;

-- name: overdue
SELECT seq, class, owner, attempt, reason FROM task
WHERE deadline_ms IS NOT NULL AND status = 0 AND deadline_ms <= $1 AND reason <> 4 ORDER BY deadline_ms LIMIT $2;

-- name: next_deadline
SELECT deadline_ms FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason <> 4 ORDER BY deadline_ms LIMIT 1;

-- name: next_events
SELECT (SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL),
    (SELECT deadline_ms FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason <> 4
     ORDER BY deadline_ms LIMIT 1);

-- name: note_cancel
-- The same for an attempt that may not have begun.
UPDATE task SET flags = flags | 1 WHERE seq = $1 AND owner IS NOT NULL;

-- name: state_by_id
SELECT seq, status, reason, class, owner, attempt, flags, id FROM task WHERE id = $1;

-- name: outcome_by_id
SELECT id, status, output, flags, error FROM task WHERE id = $1 AND status > 1;

-- name: outcomes_by_ids
SELECT id, status, output, flags, error FROM task WHERE id = ANY ($1::bytea[]) AND status > 1;

-- name: known_ids
SELECT id FROM task WHERE id = ANY ($1::bytea[]);

-- name: buried_ids
SELECT id FROM tombstone WHERE id = ANY ($1::bytea[]);

-- name: asked_to_stop
SELECT id FROM task WHERE owner = $1 AND flags & 1 = 1;

-- name: timeouts_of
SELECT seq, attempt, status, timeout_ms FROM task WHERE owner = $1;

-- name: add_worker
INSERT INTO worker (name, pid, host, started_ms) VALUES ($1, $2, $3, $4) RETURNING id;

-- name: newest_times
-- What the clock must not go back behind: when a task came last, and when a worker came or went.
SELECT (SELECT submitted_ms FROM task ORDER BY seq DESC LIMIT 1), (SELECT max(started_ms) FROM worker),
    (SELECT max(ended_ms) FROM worker);

-- name: server_ms
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint;

-- name: end_worker
UPDATE worker SET ended_ms = $1 WHERE id = $2 AND ended_ms IS NULL;

-- name: open_workers
SELECT id, name, pid FROM worker WHERE ended_ms IS NULL;

-- name: signs_of_life
SELECT id, name, pid, beat, turns, is_lost, running FROM worker WHERE ended_ms IS NULL;

-- name: is_open
SELECT 1 FROM worker WHERE id = $1 AND ended_ms IS NULL;

-- name: beat
-- A worker's helper tells that it lives, and hears whether claims were taken back from it.
UPDATE worker SET beat = beat + 1, turns = $1 WHERE name = $2 AND ended_ms IS NULL RETURNING revoked;

-- name: farewell
-- A worker's helper saw it die.
UPDATE worker SET is_lost = true, running = $1::bigint[] WHERE name = $2 AND ended_ms IS NULL;

-- name: revoke
UPDATE worker SET revoked = revoked + 1 WHERE id = $1;

-- name: revoked
SELECT revoked FROM worker WHERE id = $1;

-- name: lead
UPDATE store SET leader = $1;

-- name: rename_worker
-- One that was taken for dead and lives leaves its name to its next row.
UPDATE worker SET name = name || ' until ' || id WHERE id = $1;

-- name: leader
SELECT leader FROM store;

-- name: forget_worker
DELETE FROM worker WHERE id = $1;

-- name: forget_workers
DELETE FROM worker WHERE ended_ms < $1;

-- name: stray_tallies
SELECT 1 FROM tally WHERE worker <> 0 AND NOT EXISTS
    (SELECT 1 FROM worker WHERE worker.id = tally.worker AND ended_ms IS NULL) LIMIT 1;

-- name: gather_tallies
-- What workers that are gone have counted is added up.
WITH gone AS (
    DELETE FROM tally WHERE worker <> 0 AND NOT EXISTS
        (SELECT 1 FROM worker WHERE worker.id = tally.worker AND ended_ms IS NULL)
    RETURNING class, status, n)
INSERT INTO tally AS old (class, status, worker, n)
SELECT class, status, 0, sum(n) FROM gone GROUP BY class, status
ON CONFLICT (class, status, worker) DO UPDATE SET n = old.n + excluded.n;

-- name: held_by
SELECT seq, id, attempt, status, class, retry_count, crashes, rank, flags FROM task WHERE owner = $1 LIMIT $2;

-- name: claims_of
SELECT seq, attempt FROM task WHERE owner = $1;

-- name: put_offer
INSERT INTO offer (worker, at_ms, state) VALUES ($1, $2, $3)
ON CONFLICT (worker) DO UPDATE SET at_ms = excluded.at_ms, state = excluded.state;

-- name: drop_offer
DELETE FROM offer WHERE worker = $1;

-- name: offers
SELECT worker.name, offer.state FROM offer JOIN worker ON worker.id = offer.worker WHERE worker.ended_ms IS NULL
ORDER BY worker.id;

-- name: serving
-- Who serves a type.
SELECT worker.name FROM serves JOIN worker ON worker.id = serves.worker
WHERE worker.ended_ms IS NULL AND serves.type = $1 ORDER BY worker.id;

-- name: claimed_elsewhere
-- What living workers but this one hold and have not begun with.
SELECT DISTINCT task.owner, class.id, class.namespace, class.type, class.grp
FROM worker JOIN task ON task.owner = worker.id JOIN class ON class.id = task.class
WHERE worker.ended_ms IS NULL AND worker.id <> $1 AND task.status = 0;

-- name: note_slots
UPDATE worker SET slots = $1 WHERE id = $2;

-- name: clear_serves
DELETE FROM serves WHERE worker = $1;

-- name: put_usage
INSERT INTO usage (worker, at_ms, figures) VALUES ($1, $2, $3)
ON CONFLICT (worker) DO UPDATE SET at_ms = excluded.at_ms, figures = excluded.figures;

-- name: drop_usage
DELETE FROM usage WHERE worker = $1;

-- name: usages
SELECT worker.name, worker.host, usage.at_ms, usage.figures FROM usage JOIN worker ON worker.id = usage.worker
WHERE worker.ended_ms IS NULL;

-- name: add_serves
INSERT INTO serves (worker, type) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: registered_types
SELECT type FROM handler UNION SELECT type FROM serves;

-- name: put_handler
INSERT INTO handler (type, version, lane, options, schema, source, seen_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (type, version) DO UPDATE SET lane = excluded.lane, options = excluded.options, schema = excluded.schema,
    source = excluded.source, seen_ms = excluded.seen_ms;

-- name: handler_source
SELECT source FROM handler WHERE type = $1 AND version = $2;

-- name: handlers
SELECT type, version, lane, options, schema, seen_ms FROM handler ORDER BY type, version;

-- name: add_pause
INSERT INTO pause (namespace, type, grp, since_ms, who) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING;

-- name: drop_pause
DELETE FROM pause WHERE namespace = $1 AND type = $2 AND grp = $3;

-- name: pauses
SELECT namespace, type, grp FROM pause;

-- name: put_progress
INSERT INTO progress (done, total, at_ms, task, attempt)
SELECT $1, $2, $3, seq, attempt FROM task WHERE seq = $4 AND attempt = $5 AND coalesce(owner, 0) = $6
ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt, done = excluded.done, total = excluded.total,
    at_ms = excluded.at_ms;

-- name: add_payload_blob
INSERT INTO payload_blob (digest, task) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: copy_payload_blobs
INSERT INTO payload_blob (digest, task) SELECT digest, $1 FROM payload_blob WHERE task = $2;

-- name: add_audit
INSERT INTO audit (at_ms, action, detail) VALUES ($1, $2, $3);

-- name: drop_audit
-- The oldest ones stand first.
DELETE FROM audit WHERE n IN (SELECT n FROM (SELECT n, at_ms FROM audit ORDER BY n LIMIT $1) AS oldest WHERE at_ms < $2);

-- name: prunable
-- Ended tasks in order of age from a cursor on; the caller decides which may go.
SELECT seq, id, status, ended_ms FROM task WHERE seq > $1 ORDER BY seq LIMIT $2;

-- name: with_live_child
-- Those of these tasks that unfinished ones depend on.
SELECT v FROM unnest($1::bigint[]) AS v
WHERE EXISTS (SELECT 1 FROM edge JOIN task ON task.seq = edge.child WHERE edge.parent = v AND task.status < 2);

-- name: stand_for_these
-- A task whose result a kept task stands for must stay as long.
SELECT ref, task FROM stands_for WHERE ref = ANY ($1::bigint[]);

-- name: add_tombstone
INSERT INTO tombstone (id, status, ended_ms) SELECT * FROM unnest($1::bytea[], $2::smallint[], $3::bigint[])
ON CONFLICT (id) DO UPDATE SET status = excluded.status, ended_ms = excluded.ended_ms;

-- name: old_tombstone
SELECT 1 FROM tombstone WHERE ended_ms < $1 LIMIT 1;

-- name: drop_tombstones
DELETE FROM tombstone WHERE id = ANY (ARRAY(SELECT id FROM tombstone WHERE ended_ms < $1 LIMIT $2));

-- name: prune_tasks
DELETE FROM task WHERE seq = ANY ($1::bigint[]) AND status > 1 RETURNING class, status;

-- name: prune_attempts
DELETE FROM attempt WHERE task = ANY ($1::bigint[]);

-- name: prune_edges
DELETE FROM edge WHERE child = ANY ($1::bigint[]);

-- name: prune_keys
DELETE FROM idempotency WHERE task = ANY ($1::bigint[]);

-- name: prune_progress
DELETE FROM progress WHERE task = ANY ($1::bigint[]);

-- name: prune_stands_for
DELETE FROM stands_for WHERE task = ANY ($1::bigint[]);

-- name: prune_payload_blobs
DELETE FROM payload_blob WHERE task = ANY ($1::bigint[]);

-- name: prune_retried
DELETE FROM retried WHERE task = ANY ($1::bigint[]) OR again = ANY ($1::bigint[]);

-- name: blob_in_use
SELECT 1 FROM payload_blob WHERE digest = $1 UNION ALL SELECT 1 FROM cache WHERE digest = $1 LIMIT 1;

-- name: add_retried
INSERT INTO retried (task, again) VALUES ($1, $2);

-- name: move_key
UPDATE idempotency SET task = $1 WHERE task = $2;

-- name: retried_as
SELECT task.id FROM retried JOIN task ON task.seq = retried.again WHERE retried.task = $1;

-- name: descendants
-- The edges of the tasks below that never ran because of this one: (task, parent, whether that was pruned, whether the
-- task was retried).
WITH RECURSIVE below (seq) AS (
    SELECT $1::bigint UNION SELECT edge.child FROM below JOIN edge ON edge.parent = below.seq
    JOIN task ON task.seq = edge.child WHERE task.status IN (3, 4) AND task.attempt = 0 AND task.error <> $2::bytea)
SELECT below.seq, edge.parent, task.seq IS NULL, retried.task IS NOT NULL
FROM below JOIN edge ON edge.child = below.seq LEFT JOIN task ON task.seq = edge.parent
LEFT JOIN retried ON retried.task = below.seq WHERE below.seq <> $1::bigint;

-- name: to_renew
SELECT class, priority, max_retries, timeout_ms, input, spec, flags, not_before_ms FROM task WHERE seq = $1;

-- name: edges_of
SELECT parent, policy FROM edge WHERE child = $1 ORDER BY n;

-- name: whole_task
SELECT task.seq, task.id, task.class, task.rank, task.status, task.reason, task.attempt, task.owner, task.flags,
    task.priority, task.retry_count, task.max_retries, task.crashes, task.releases, task.submitted_ms, task.ready_ms,
    task.not_before_ms, task.due_ms, task.deadline_ms, task.timeout_ms, task.ended_ms, task.waits_for, task.input,
    task.spec, task.output, task.error, class.namespace, class.type, class.grp, worker.name
FROM task JOIN class ON class.id = task.class LEFT JOIN worker ON worker.id = task.owner WHERE task.id = $1;

-- name: attempts_of
SELECT attempt.number, attempt.outcome, worker.name, attempt.started_ms, attempt.ended_ms, attempt.duration_us,
    attempt.cpu_us, attempt.memory, attempt.network, attempt.batch, attempt.wait_ms, attempt.lane, attempt.error
FROM attempt LEFT JOIN worker ON worker.id = attempt.owner WHERE attempt.task = $1 ORDER BY attempt.number;

-- name: parents_ids
SELECT task.id, task.status, task.reason FROM edge JOIN task ON task.seq = edge.parent WHERE edge.child = $1 ORDER BY edge.n;

-- name: progress_of
SELECT done, total FROM progress WHERE task = $1 AND attempt = $2;

-- name: retry_links
SELECT (SELECT t.id FROM retried r JOIN task t ON t.seq = r.task WHERE r.again = $1),
       (SELECT t.id FROM retried r JOIN task t ON t.seq = r.again WHERE r.task = $1);

-- name: ahead
-- How many ready tasks of a class go first.
SELECT count(*) FROM (SELECT 1 FROM task WHERE class = $1 AND reason = 0 AND (rank, seq) < ($2, $3) LIMIT $4) AS first;

-- name: line
-- The classes that have ready tasks, each with how many of these go before a place, counted up to a limit.
WITH RECURSIVE head AS (
    (SELECT class FROM task WHERE reason = 0 ORDER BY class, rank, seq LIMIT 1)
    UNION ALL
    SELECT next.class FROM head, LATERAL (
        SELECT class FROM task WHERE reason = 0 AND class > head.class ORDER BY class, rank, seq LIMIT 1) AS next)
SELECT class.id, class.namespace, class.type, class.grp, (SELECT count(*) FROM
    (SELECT 1 FROM task WHERE task.class = head.class AND reason = 0 AND (rank, seq) < ($1, $2) LIMIT $3) AS first)
FROM head JOIN class ON class.id = head.class;

-- name: type_of_claimed
SELECT class.type FROM task JOIN class ON class.id = task.class
WHERE task.id = $1 AND task.status = 0 AND task.owner IS NOT NULL;

-- name: line_of_group
-- Of each class of a group how many ready tasks go before a place, counted up to a limit.
SELECT class.id, class.namespace, class.type, (SELECT count(*) FROM
    (SELECT 1 FROM task WHERE task.class = class.id AND reason = 0 AND (rank, seq) < ($2, $3) LIMIT $4) AS first)
FROM class WHERE class.grp = $1;

-- name: specs_before
-- Of the ready tasks of a class that go before a place, up to a limit: what those say that they need, and how many say so.
SELECT spec, count(*) FROM (SELECT CASE WHEN flags & 4096 <> 0 THEN spec END AS spec FROM task
    WHERE class = $1 AND reason = 0 AND (rank, seq) < ($2, $3) ORDER BY rank, seq LIMIT $4) AS first GROUP BY spec;

-- name: served_beside
-- What those living workers serve that serve a type.
SELECT worker.name, other.type FROM serves AS mine JOIN worker ON worker.id = mine.worker
JOIN serves AS other ON other.worker = mine.worker WHERE mine.type = $1 AND worker.ended_ms IS NULL;

-- name: lanes_of_handlers
-- Of each type the lane that its newest handler was declared with.
SELECT type, (array_agg(lane ORDER BY seen_ms DESC))[1] FROM handler GROUP BY type;

-- name: ended_lately
-- Of the newest attempts since a moment, up to a limit: how many there are, since when, and of those that ran in a lane of workers
-- that serve a type (of a type alone, where one is named): how many, since when, and how many ended in that first moment.
WITH ours AS (SELECT ended_ms, lane = $1 AND owner = ANY (ARRAY(SELECT worker FROM serves WHERE type = $2)) AND ($5::text = '' OR $5 =
        (SELECT type FROM task JOIN class ON class.id = task.class WHERE task.seq = attempt.task)) AS is_ours
    FROM attempt WHERE ended_ms >= $3 ORDER BY ended_ms DESC LIMIT $4)
SELECT count(*), min(ended_ms), count(*) FILTER (WHERE is_ours), min(ended_ms) FILTER (WHERE is_ours),
    count(*) FILTER (WHERE is_ours AND ended_ms = (SELECT min(ended_ms) FROM ours WHERE is_ours)) FROM ours;

-- name: unfinished_by_reason
-- Tasks that run (-1) or wait for something else than their turn, by type and reason: of each of their indexes so many at most.
SELECT class.type, found.reason, count(*) FROM (
    (SELECT class, coalesce(reason, -1) AS reason FROM task WHERE owner IS NOT NULL LIMIT $1)
    UNION ALL (SELECT class, reason FROM task WHERE due_ms IS NOT NULL LIMIT $1)
    UNION ALL (SELECT class, reason FROM task WHERE waits_for IS NOT NULL LIMIT $1)
    UNION ALL (SELECT task.class, task.reason FROM flight JOIN task ON task.seq = flight.task
        WHERE flight.leads = 0 LIMIT $1)) AS found
JOIN class ON class.id = found.class GROUP BY 1, 2;

-- name: held_by_workers
SELECT owner, status, count(*) FROM task WHERE owner IS NOT NULL GROUP BY 1, 2;

-- name: held_types
-- What a worker holds, by type.
SELECT class.type, count(*) FROM task JOIN class ON class.id = task.class WHERE owner = $1 GROUP BY 1;

-- name: ended_by_type
-- The newest attempts since a moment, up to a limit, by type, lane and outcome: how many, in how many calls, how long these
-- took, since when they ended, and for how much of the time since then slots were taken. Where there are more than the limit,
-- that moment is the first end among them.
SELECT class.type, newest.lane, newest.outcome, count(*), sum(1.0::double precision / newest.batch),
    sum(newest.duration_us::double precision / newest.batch), min(newest.ended_ms),
    sum(CASE WHEN newest.duration_us IS NOT NULL
        THEN least(newest.duration_us, 1000 * (newest.ended_ms - newest.since_ms))::double precision / newest.batch END)
FROM (SELECT *, CASE WHEN count(*) OVER () < $2 THEN $1::bigint ELSE min(ended_ms) OVER () END AS since_ms
    FROM (SELECT task, lane, outcome, batch, duration_us, ended_ms FROM attempt WHERE ended_ms >= $1
        ORDER BY ended_ms DESC LIMIT $2) AS last) AS newest
JOIN task ON task.seq = newest.task JOIN class ON class.id = task.class GROUP BY 1, 2, 3;

-- name: running_since
-- What runs now, by type: for how many milliseconds of those since a moment it has been ready at most.
SELECT class.type, sum($2::bigint - greatest(task.ready_ms, $1::bigint))::bigint
FROM task JOIN class ON class.id = task.class WHERE task.owner IS NOT NULL AND task.status = 1 GROUP BY 1;

-- name: tallies
SELECT class.namespace, class.type, class.grp, tally.status, sum(tally.n)::bigint
FROM tally JOIN class ON class.id = tally.class GROUP BY 1, 2, 3, 4 HAVING sum(tally.n) <> 0 ORDER BY 1, 2, 3, 4;

-- name: totals
SELECT status, sum(n)::bigint FROM tally WHERE class = 0 GROUP BY status;

-- name: ready_class_after
-- The first class after this one that has ready tasks: one step of a skip scan.
SELECT class FROM task WHERE class > $1 AND reason = 0 ORDER BY class LIMIT 1;

-- name: first_of_class
-- By priority, those ready tasks of a class that go first.
SELECT priority, count(*), min(ready_ms)
FROM (SELECT priority, ready_ms FROM task WHERE class = $1 AND reason = 0 ORDER BY rank, seq LIMIT $2) AS first
GROUP BY priority;

-- name: held_by_status
SELECT status, count(*) FROM task WHERE owner IS NOT NULL GROUP BY status;

-- name: page
SELECT task.id FROM task JOIN class ON class.id = task.class
WHERE ($1::smallint IS NULL OR task.status = $1) AND ($2::text IS NULL OR class.type = $2)
    AND ($3::text IS NULL OR class.namespace = $3)
    AND ($4::bytea IS NULL OR task.seq < (SELECT seq FROM task WHERE id = $4))
ORDER BY task.seq DESC LIMIT $5;

-- name: ids_by_end
SELECT id FROM task WHERE right(upper(encode(id, 'hex')), $1::integer) = $2 LIMIT $3;

-- name: serving_workers
SELECT worker.name, worker.pid, worker.host, worker.started_ms, string_agg(serves.type, ' '), worker.slots, worker.id
FROM worker JOIN serves ON serves.worker = worker.id WHERE worker.ended_ms IS NULL
GROUP BY worker.id ORDER BY worker.id;

-- name: pauses_since
SELECT namespace, type, grp, since_ms, who FROM pause ORDER BY since_ms;

-- name: newest_handler
SELECT options, schema FROM handler WHERE type = $1 ORDER BY seen_ms DESC LIMIT 1;

-- name: handler_types
SELECT DISTINCT type FROM handler ORDER BY type;

-- name: unfinished_specs
-- Every unfinished task is in one of these partial indexes, so that those that ended are not walked over.
SELECT id, spec FROM task WHERE reason = 0 UNION ALL SELECT id, spec FROM task WHERE waits_for IS NOT NULL
UNION ALL SELECT id, spec FROM task WHERE due_ms IS NOT NULL UNION ALL SELECT id, spec FROM task WHERE owner IS NOT NULL;

-- name: attempts_since
SELECT class.type, attempt.outcome, attempt.duration_us, attempt.wait_ms, attempt.cpu_us
FROM attempt JOIN task ON task.seq = attempt.task JOIN class ON class.id = task.class WHERE attempt.ended_ms >= $1;

-- name: ledger
-- What attempts that ended since then have cost, by outcome, and by those of type, group and day (of UTC) that are wanted.
SELECT CASE WHEN $1::boolean THEN class.type END, CASE WHEN $2::boolean THEN class.grp END,
    CASE WHEN $3::boolean THEN attempt.ended_ms / 86400000 END, attempt.outcome, count(*),
    sum(1.0::double precision / attempt.batch), sum(attempt.duration_us::double precision / attempt.batch),
    count(attempt.duration_us), sum(attempt.duration_us)::bigint, max(attempt.duration_us),
    count(attempt.wait_ms), sum(attempt.wait_ms)::bigint, max(attempt.wait_ms),
    count(attempt.cpu_us), sum(attempt.cpu_us)::bigint, max(attempt.cpu_us),
    count(attempt.memory), sum(attempt.memory)::bigint, max(attempt.memory),
    count(attempt.network), sum(attempt.network)::bigint, max(attempt.network)
FROM attempt JOIN task ON task.seq = attempt.task JOIN class ON class.id = task.class
WHERE attempt.ended_ms >= $4 GROUP BY 1, 2, 3, 4;

-- name: ledger_hits
-- Tasks that completed since then with the result of equal work, by the same keys.
SELECT CASE WHEN $1::boolean THEN class.type END, CASE WHEN $2::boolean THEN class.grp END,
    CASE WHEN $3::boolean THEN task.ended_ms / 86400000 END, count(*)
FROM task JOIN class ON class.id = task.class
WHERE task.flags & 256 <> 0 AND task.status = 2 AND task.ended_ms >= $4 GROUP BY 1, 2, 3;

-- name: pruned_since
SELECT count(*), max(ended_ms) FROM tombstone WHERE ended_ms >= $1;

-- name: insert_done
-- new -> COMPLETED, with the result of equal work
INSERT INTO task (seq, id, class, rank, status, flags, priority, max_retries, submitted_ms, ready_ms, not_before_ms,
    deadline_ms, timeout_ms, ended_ms, input, spec, output)
SELECT v.seq, v.id, v.class, v.rank, 2, v.flags, v.priority, v.max_retries, v.submitted_ms, v.ready_ms, v.not_before_ms,
    v.deadline_ms, v.timeout_ms, v.ended_ms, v.input, v.spec, v.output
FROM unnest($1::bigint[], $2::bytea[], $3::integer[], $4::bigint[], $5::integer[], $6::smallint[], $7::integer[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bytea[], $15::bytea[],
    $16::bytea[])
    AS v (seq, id, class, rank, flags, priority, max_retries, submitted_ms, ready_ms, not_before_ms, deadline_ms,
    timeout_ms, ended_ms, input, spec, output);

-- name: kept
SELECT key, output, flags, made_ms, used_ms FROM cache
WHERE key = ANY ($1::bytea[]) AND expires_ms > $2;

-- name: use_kept
-- What another process notes just now is left to it: nobody waits here, in whatever order two take the same results.
UPDATE cache SET used_ms = $1 WHERE key = (SELECT key FROM cache WHERE key = $2 FOR UPDATE SKIP LOCKED);

-- name: keep
-- Who wanted the one before for longer takes this one: it is newer.
INSERT INTO cache (key, namespace, type, version, output, flags, digest, bytes, made_ms, expires_ms, used_ms)
SELECT * FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::integer[], $7::text[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[])
ON CONFLICT (key) DO UPDATE SET output = excluded.output, flags = excluded.flags, digest = excluded.digest,
    bytes = excluded.bytes, made_ms = excluded.made_ms, used_ms = excluded.used_ms,
    expires_ms = greatest(cache.expires_ms, excluded.expires_ms);

-- name: drop_kept
DELETE FROM cache WHERE key = $1 AND made_ms = $2;

-- name: kept_kinds
SELECT namespace, type, version, count(*), sum(bytes)::bigint, min(made_ms) FROM cache GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- name: kept_bytes
SELECT bytes FROM kept_size;

-- name: drop_expired
DELETE FROM cache WHERE key = ANY (ARRAY(SELECT key FROM cache WHERE expires_ms <= $1 LIMIT $2));

-- name: drop_unused
-- Those that were not used for longest, as many as it takes to free so many bytes.
DELETE FROM cache WHERE key = ANY (ARRAY(SELECT key FROM
    (SELECT key, sum(bytes) OVER (ORDER BY used_ms ROWS UNBOUNDED PRECEDING) - bytes AS freed FROM
        (SELECT key, used_ms, bytes FROM cache ORDER BY used_ms LIMIT $1) AS oldest) AS sums
    WHERE freed < $2));

-- name: purge_kept
DELETE FROM cache WHERE key = ANY (ARRAY(SELECT key FROM cache
    WHERE ($1::text = '' OR namespace = $1) AND ($2::text = '' OR type = $2) AND ($3::text = '' OR version = $3) LIMIT $4));

-- name: leaders
SELECT flight.key, task.seq, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.leads = 1 AND flight.key = ANY ($1::bytea[]);

-- name: flights_of
-- Who leads this work, and what a task itself is listed for.
SELECT flight.key, task.seq, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.leads = 1 AND flight.key = $1
UNION ALL
SELECT flight.key, flight.task, 0 FROM flight WHERE flight.task = $2 AND flight.key <> $1;

-- name: leaders_of
-- Whom these followers wait for.
SELECT (SELECT task FROM flight WHERE key = mine.key AND leads = 1) FROM flight AS mine WHERE task = ANY ($1::bigint[]);

-- name: leader_of
SELECT id, status, reason FROM task WHERE seq =
    (SELECT task FROM flight WHERE leads = 1 AND key = (SELECT key FROM flight WHERE task = $1));

-- name: root_of
-- What a task waits for in the end, of those that wait for a parent or for equal work one after the other.
WITH RECURSIVE above (seq, n) AS (
    SELECT seq, 0 FROM task WHERE id = $1
    UNION ALL
    SELECT CASE reason WHEN 1 THEN waits_for WHEN 5 THEN (SELECT first.task FROM flight JOIN flight AS first
        ON first.key = flight.key AND first.leads = 1 WHERE flight.task = task.seq) END, n + 1
    FROM above JOIN task ON task.seq = above.seq WHERE n < 10000)
SELECT task.id, task.status, task.reason FROM above JOIN task ON task.seq = above.seq WHERE n > 0 ORDER BY n DESC LIMIT 1;

-- name: join_flight
INSERT INTO flight (task, key, leads, keep_ms)
SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::smallint[], $4::bigint[]);

-- name: leave_flights
DELETE FROM flight WHERE task = ANY ($1::bigint[]) RETURNING task, key, leads, keep_ms;

-- name: awaited_work
-- What of this somebody waits for who does not lead it, and for how long those want it kept.
SELECT key, max(keep_ms) FROM flight WHERE leads = 0 AND key = ANY ($1::bytea[]) GROUP BY key;

-- name: lead_flight
UPDATE flight SET leads = 1 WHERE task = $1;

-- name: followers
SELECT task.seq, task.id, task.class FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = $1 AND flight.leads = 0 LIMIT $2;

-- name: best_follower
SELECT task.seq, task.class, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = $1 AND flight.leads = 0 ORDER BY task.rank, task.seq LIMIT 1;

-- name: urgent_follower
SELECT 1 FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = $1 AND flight.leads = 0 AND (task.priority > 1 OR task.flags & 32768 <> 0) LIMIT 1;

-- name: follow
-- PENDING (claimed) -> PENDING (same_work)
UPDATE task SET reason = 5, owner = NULL WHERE seq = $1 AND attempt = $2 AND owner = $3 AND reason = 4 RETURNING rank;

-- name: take_lead
-- PENDING (same_work) -> PENDING (ready)
UPDATE task SET reason = 0, flags = flags | $1, ready_ms = $2 WHERE seq = $3 AND reason = 5;

-- name: put_spec
-- What is stored with a task that is about to come again.
UPDATE task SET spec = $1 WHERE seq = $2 AND owner IS NOT NULL;

-- name: add_flags
UPDATE task SET flags = flags | $1 WHERE seq = $2 AND owner IS NOT NULL;

-- name: share
-- PENDING (same_work) -> COMPLETED
UPDATE task SET status = 2, reason = NULL, ended_ms = $1, output = $2, flags = flags | $3, error = NULL
WHERE seq = ANY ($4::bigint[]) AND reason = 5;

-- name: share_failure
-- PENDING (same_work) -> FAILED or TIMEOUT
UPDATE task SET status = $1, reason = NULL, ended_ms = $2, error = $3, flags = flags | $4
WHERE seq = ANY ($5::bigint[]) AND reason = 5;

-- name: hold_limit
-- Nobody else claims for this group until the commit. Where another process does that now, it is left to it.
SELECT 1 FROM group_limit WHERE id = $1 FOR NO KEY UPDATE SKIP LOCKED;

-- name: held_in_group
-- How many tasks of a group are held, in a namespace or ('') in all.
SELECT count(*) FROM task WHERE owner IS NOT NULL AND flags & 512 <> 0
    AND class = ANY (ARRAY(SELECT id FROM class WHERE grp = $1 AND ($2::text = '' OR namespace = $2)));

-- name: put_limit
-- What was begun so far counts on under the new limit. Once a cost rate is taken off, or a rate where no cost rate stays, what was
-- used is forgotten, and what is set later has another number: earlier claims have to do with none of that.
INSERT INTO group_limit (id, namespace, grp, concurrency, rate, rate_ms, cost_rate, cost_ms, held_then, changed)
SELECT coalesce(max(id), 0) + 1, $1, $2, $3::integer, $4::integer, $5::bigint, $6::bigint, $7::bigint, $8::integer,
    coalesce(max(changed), 0) + 1 FROM group_limit
ON CONFLICT (grp, namespace) DO UPDATE SET concurrency = excluded.concurrency, rate = excluded.rate,
    rate_ms = excluded.rate_ms, cost_rate = excluded.cost_rate, cost_ms = excluded.cost_ms,
    held_then = excluded.held_then, changed = excluded.changed,
    id = CASE WHEN excluded.cost_rate IS NULL AND (group_limit.cost_rate > 0
        OR group_limit.rate > 0 AND excluded.rate IS NULL) THEN excluded.id ELSE group_limit.id END,
    full_us = CASE WHEN coalesce(excluded.rate, excluded.cost_rate) IS NULL THEN 0 ELSE group_limit.full_us END,
    cost_used = CASE WHEN excluded.cost_rate IS NULL THEN 0 ELSE group_limit.cost_used END;

-- name: put_share
INSERT INTO group_limit (id, namespace, grp, weight, held_then, changed)
SELECT coalesce(max(id), 0) + 1, $1, $2, $3::double precision, 0, coalesce(max(changed), 0) + 1 FROM group_limit
ON CONFLICT (grp, namespace) DO UPDATE SET weight = excluded.weight, changed = excluded.changed;

-- name: limits_after
SELECT changed, id, namespace, grp, concurrency, rate, rate_ms, weight, cost_rate, cost_ms FROM group_limit
WHERE changed > $1 ORDER BY changed;

-- name: rate_used
SELECT full_us FROM group_limit WHERE id = $1;

-- name: use_rate
UPDATE group_limit SET full_us = $1 WHERE id = $2;

-- name: cost_used
SELECT cost_used, cost_at_ms FROM group_limit WHERE id = $1;

-- name: use_cost
UPDATE group_limit SET cost_used = $1, cost_at_ms = $2 WHERE id = $3;

-- name: costs_of
-- Those of these tasks that say what they are to cost.
SELECT seq, spec FROM task WHERE seq = ANY ($1::bigint[]) AND flags & 16384 <> 0;

-- name: firsts_of_group
-- Of each class of a group, in a namespace or ('') in all, the ready task that goes first: its spec, whether that says what it is
-- to cost, and the class.
SELECT task.rank, task.seq, task.spec, task.flags & 16384, class.id, class.namespace, class.type FROM class
JOIN task ON task.seq =
    (SELECT seq FROM task AS one WHERE one.class = class.id AND one.reason = 0 ORDER BY one.rank, one.seq LIMIT 1)
WHERE class.grp = $1 AND ($2::text = '' OR class.namespace = $2);

-- name: firsts_of_class
-- The same of a class for some that go first.
SELECT rank, seq, spec, flags & 16384 FROM task WHERE class = $1 AND reason = 0 ORDER BY rank, seq LIMIT $2;

-- name: limits
SELECT namespace, grp, concurrency, rate, rate_ms, full_us, weight, cost_rate, cost_ms, cost_used, cost_at_ms FROM group_limit
WHERE concurrency IS NOT NULL OR rate IS NOT NULL OR cost_rate IS NOT NULL OR weight IS NOT NULL ORDER BY grp, namespace;

-- name: shares
SELECT namespace, grp, weight FROM group_limit WHERE weight IS NOT NULL;

-- name: limits_of
SELECT namespace, grp, concurrency, rate, rate_ms, full_us, weight, cost_rate, cost_ms, cost_used, cost_at_ms FROM group_limit
WHERE grp = $1 AND namespace IN ('', $2) AND (concurrency IS NOT NULL OR rate IS NOT NULL OR cost_rate IS NOT NULL);
