-- Named statements. The line above each says which state becomes which. Hot ones take their values by position.
-- The guard is the WHERE: no row changed means that the claim is lost or the state has moved on.

-- name: insert_task
-- new -> PENDING (ready, parents, delayed or claimed)
INSERT INTO task (seq, id, class, rank, status, reason, attempt, owner, flags, priority, max_retries, submitted_ms,
    ready_ms, not_before_ms, due_ms, deadline_ms, timeout_ms, waits_for, waits_at, input, spec)
VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: last_seq
SELECT seq FROM sqlite_sequence WHERE name = 'task';

-- name: task_by_id
SELECT seq, status, class, input, flags, spec FROM task WHERE id = ?;

-- name: tombstone_by_id
SELECT status FROM tombstone WHERE id = ?;

-- name: insert_edge
INSERT INTO edge (child, n, parent, policy) VALUES (?, ?, ?, ?);

-- name: add_class
INSERT INTO class (namespace, type, grp) VALUES (?, ?, ?) RETURNING id;

-- name: find_class
SELECT id FROM class WHERE namespace = ? AND type = ? AND grp = ?;

-- name: status_and_id
SELECT status, id, retry_count + crashes FROM task WHERE seq = ?;

-- name: class_and_id
SELECT class, id FROM task WHERE seq = ?;

-- name: class_by_id
SELECT namespace, type, grp FROM class WHERE id = ?;

-- name: task_by_key
SELECT seq, status, class, input, flags, spec, id FROM task
WHERE seq = (SELECT task FROM idempotency WHERE namespace = ? AND key = ?);

-- name: add_key
INSERT INTO idempotency (namespace, key, task) VALUES (?, ?, ?);

-- name: add_tally
INSERT INTO tally (class, status, n) VALUES (?, ?, ?) ON CONFLICT (class, status) DO UPDATE SET n = n + excluded.n;

-- name: unfinished
SELECT coalesce(sum(n), 0) FROM tally WHERE class = 0 AND status IN (0, 1);

-- name: heads
-- The best ready tasks of a class, in order.
SELECT rank, seq FROM task WHERE class = ? AND reason = 0 ORDER BY rank, seq LIMIT ?;

-- name: heads_to_weigh
-- The same from a place on, with the spec of those that say themselves what they need. In two parts: of (rank, seq) >=
-- a place the index would serve the rank alone, which all tasks of a call have in common.
SELECT rank, seq, CASE WHEN flags & 4096 <> 0 THEN spec END FROM task
WHERE class = ?1 AND reason = 0 AND rank = ?3 AND seq >= ?4
UNION ALL
SELECT rank, seq, CASE WHEN flags & 4096 <> 0 THEN spec END FROM task
WHERE class = ?1 AND reason = 0 AND rank > ?3
ORDER BY rank, seq LIMIT ?2;

-- name: still_ready
-- Those of these tasks of a class that are.
SELECT rank, seq FROM task WHERE seq IN (SELECT value FROM json_each(?2)) AND class = ?1 AND reason = 0;

-- name: next_ready_class
-- The first class after this one that has ready tasks, with the best of them: one step of a skip scan.
SELECT class, rank, seq FROM task WHERE class > ? AND reason = 0 ORDER BY class, rank, seq LIMIT 1;

-- name: add_news
INSERT INTO news (class, rank) VALUES (?, ?);

-- name: span_of_news
SELECT (SELECT min(n) FROM news), (SELECT max(n) FROM news);

-- name: news_after
SELECT class, rank FROM news WHERE n > ?;

-- name: drop_news
DELETE FROM news WHERE n <= ?;

-- name: claim
-- PENDING (ready) -> PENDING (claimed)
UPDATE task SET reason = 4, owner = ?, attempt = attempt + 1
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 0
RETURNING seq, id, attempt, class, rank, flags, priority, retry_count, max_retries, crashes, releases, ready_ms,
    deadline_ms, timeout_ms, input, spec;

-- name: claim_of_class
-- The same for the best of one class.
UPDATE task SET reason = 4, owner = ?, attempt = attempt + 1
WHERE seq IN (SELECT seq FROM task WHERE class = ? AND reason = 0 ORDER BY rank, seq LIMIT ?)
RETURNING seq, id, attempt, class, rank, flags, priority, retry_count, max_retries, crashes, releases, ready_ms,
    deadline_ms, timeout_ms, input, spec;

-- name: start
-- PENDING (claimed) -> RUNNING
UPDATE task SET status = 1, reason = NULL WHERE seq = ? AND attempt = ? AND owner = ? AND reason = 4;

-- name: complete
-- PENDING (claimed) or RUNNING -> COMPLETED, unless somebody asked for a cancel
UPDATE task SET status = 2, reason = NULL, owner = NULL, ended_ms = ?, output = ?, flags = flags | ?, error = NULL
WHERE seq = ? AND attempt = ? AND owner = ? AND flags & 1 = 0;

-- name: complete_many
-- The same for many at once.
UPDATE task SET status = 2, reason = NULL, owner = NULL, ended_ms = v.column1, output = v.column2,
    flags = flags | v.column3, error = NULL
FROM (VALUES (?, ?, ?, ?, ?, ?)) AS v
WHERE task.seq = v.column4 AND task.attempt = v.column5 AND task.owner = v.column6 AND task.flags & 1 = 0;

-- name: held
-- What a finish may change: the row as it is, if this claim still holds it.
SELECT status, class, flags, priority, retry_count, max_retries, crashes, releases, deadline_ms, id, rank
FROM task WHERE seq = ? AND attempt = ? AND owner = ?;

-- name: end
-- PENDING (any) or RUNNING -> CANCELLED or TIMEOUT; what is held or waits for parents -> FAILED
UPDATE task SET status = ?1, reason = NULL, owner = NULL, due_ms = NULL, waits_for = NULL, waits_at = NULL,
    ended_ms = ?2, error = ?3
WHERE seq = ?4 AND status < 2 AND (?1 <> 3 OR owner IS NOT NULL OR reason = 1);

-- name: end_many
-- The same for many at once that are held. Where somebody asked for a cancel they may only become CANCELLED
UPDATE task SET status = v.column1, reason = NULL, owner = NULL, ended_ms = v.column2, error = v.column3
FROM (VALUES (?, ?, ?, ?, ?, ?)) AS v
WHERE task.seq = v.column4 AND task.attempt = v.column5 AND task.owner = v.column6
    AND (task.flags & 1 = 0 OR v.column1 = 4);

-- name: again
-- PENDING (claimed) or RUNNING -> PENDING (retry)
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = ?, retry_count = retry_count + 1, error = ?,
    flags = flags & ~2
WHERE seq = ? AND owner IS NOT NULL;

-- name: again_many
-- The same for many at once, unless somebody asked for a cancel
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = v.column1, retry_count = retry_count + 1,
    error = v.column2, flags = (flags | v.column3) & ~2, spec = coalesce(v.column7, spec)
FROM (VALUES (?, ?, ?, ?, ?, ?, ?)) AS v
WHERE task.seq = v.column4 AND task.attempt = v.column5 AND task.owner = v.column6 AND task.flags & 1 = 0;

-- name: again_after_crash
-- PENDING (claimed) or RUNNING -> PENDING (retry), charged as a crash; it runs where it harms nobody from then on
UPDATE task SET status = 0, reason = 3, owner = NULL, due_ms = ?, crashes = crashes + 1, error = ?, flags = flags | ?
WHERE seq = ? AND owner IS NOT NULL;

-- name: give_back
-- PENDING (claimed) or RUNNING -> PENDING (ready), uncharged; its rank stays
UPDATE task SET status = 0, reason = 0, owner = NULL, releases = releases + ?, crashes = crashes + ?, flags = flags | ?
WHERE seq = ? AND owner IS NOT NULL;

-- name: hand_back
-- PENDING (claimed) -> PENDING (ready), many at once that never began, unless somebody asked for a cancel
UPDATE task SET reason = 0, owner = NULL FROM (VALUES (?, ?, ?)) AS v
WHERE task.seq = v.column1 AND task.attempt = v.column2 AND task.owner = v.column3 AND task.reason = 4
    AND task.flags & 1 = 0;

-- name: insert_attempt
INSERT INTO attempt (task, number, outcome, owner, started_ms, ended_ms, duration_us, cpu_us, memory, network, batch,
    wait_ms, lane, error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: attempt_is_there
SELECT 1 FROM attempt WHERE task = ? AND number = ?;

-- name: any_waiting
SELECT 1 FROM task WHERE waits_for IS NOT NULL LIMIT 1;

-- name: awaited
-- Those of these tasks that others wait for.
SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM task WHERE waits_for = value);

-- name: having_children
-- Those of these tasks that others depend on.
SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM edge WHERE parent = value);

-- name: waiting_on
-- The children that wait for one of these parents, each with the next edge that is unfinished or broken, if there is one.
SELECT child.seq, child.class, child.rank, child.not_before_ms,
    (SELECT edge.n FROM edge JOIN task AS parent ON parent.seq = edge.parent
     WHERE edge.child = child.seq AND edge.n >= child.waits_at
         AND (parent.status < 2 OR parent.status > 2 AND edge.policy <> 1)
     ORDER BY edge.n LIMIT 1)
FROM task AS child WHERE child.waits_for IN (SELECT value FROM json_each(?)) LIMIT ?;

-- name: edge_of
-- An edge, with how its parent stands.
SELECT edge.n, edge.parent, edge.policy, task.status, task.id
FROM edge JOIN task ON task.seq = edge.parent WHERE edge.child = ? AND edge.n = ?;

-- name: wait_on
-- PENDING (parents) -> PENDING (parents), for another one
UPDATE task SET waits_for = ?, waits_at = ? WHERE seq = ? AND reason = 1;

-- name: release_children
-- PENDING (parents) -> PENDING (ready)
UPDATE task SET reason = 0, waits_for = NULL, waits_at = NULL, ready_ms = ?
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 1;

-- name: delay_children
-- PENDING (parents) -> PENDING (delayed)
UPDATE task SET reason = 2, due_ms = not_before_ms, waits_for = NULL, waits_at = NULL
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 1;

-- name: children_after
-- The next of a parent's children, with what they wait with.
SELECT edge.child, edge.policy, task.reason FROM edge JOIN task ON task.seq = edge.child
WHERE edge.parent = ? AND edge.child > ? ORDER BY edge.child LIMIT ?;

-- name: fail_children
-- PENDING (parents) -> FAILED or CANCELLED
UPDATE task SET status = ?, reason = NULL, waits_for = NULL, waits_at = NULL, ended_ms = ?, error = ?
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 1 RETURNING seq, class, id;

-- name: all_children_of
SELECT edge.child, edge.policy, task.rank, task.reason, task.priority, task.deadline_ms
FROM edge JOIN task ON task.seq = edge.child
WHERE edge.parent = ?;

-- name: depends_on
-- Whether one of these depends on that task, at whatever distance. None on the way can have completed before it.
WITH RECURSIVE above(seq) AS (
    SELECT task.seq FROM json_each(?1) JOIN task ON task.seq = json_each.value WHERE task.status <> 2
    UNION
    SELECT task.seq FROM above JOIN edge ON edge.child = above.seq JOIN task ON task.seq = edge.parent
    WHERE task.status <> 2 OR task.seq = ?2)
SELECT 1 FROM above WHERE seq = ?2 LIMIT 1;

-- name: lacks_parent
-- Whether one of the tasks that it depends on was pruned.
SELECT 1 FROM edge LEFT JOIN task ON task.seq = edge.parent WHERE edge.child = ? AND task.seq IS NULL LIMIT 1;

-- name: last_edge
SELECT max(n) FROM edge WHERE child = ?;

-- name: raise_ranks
-- A parent takes the best rank of those that wait for it; one that runs may come back.
UPDATE task SET rank = ? WHERE seq IN (SELECT value FROM json_each(?)) AND status < 2 AND rank > ?
RETURNING seq, class, reason;

-- name: hasten
-- Who waits for these is urgent, as those with a priority above NORMAL are by themselves: they wait for nobody to join.
UPDATE task SET flags = flags | 32768 WHERE seq IN (SELECT value FROM json_each(?)) AND status < 2 AND priority < 2 AND flags & 32768 = 0
RETURNING seq, reason, id, rank;

-- name: parents_of_all
SELECT DISTINCT parent FROM edge WHERE child IN (SELECT value FROM json_each(?));

-- name: parents_of
SELECT parent FROM edge WHERE child = ?;

-- name: parent_results
SELECT edge.child, task.id, task.status, task.output, task.flags
FROM json_each(?) AS claimed JOIN edge ON edge.child = claimed.value JOIN task ON task.seq = edge.parent;

-- name: heirs_results
-- What parents that were made anew have left, by the ids of those that they were made of.
WITH RECURSIVE former(seq, heir) AS (
    SELECT retried.task, edge.parent FROM edge JOIN retried ON retried.again = edge.parent WHERE edge.child = ?
    UNION ALL
    SELECT retried.task, former.heir FROM former JOIN retried ON retried.again = former.seq)
SELECT old.id, task.status, task.output, task.flags
FROM former JOIN task AS old ON old.seq = former.seq JOIN task ON task.seq = former.heir;

-- name: add_stands_for
INSERT INTO stands_for (task, n, ref) VALUES (?, ?, ?);

-- name: stood_for
-- What the outputs of these tasks stand for.
SELECT stands_for.task, task.seq, task.status, task.id
FROM json_each(?) JOIN stands_for ON stands_for.task = json_each.value JOIN task ON task.seq = ref
ORDER BY stands_for.task, n;

-- name: add_cascade
INSERT OR IGNORE INTO cascade (task, past) VALUES (?, ?);

-- name: drop_cascade
DELETE FROM cascade WHERE task = ?;

-- name: next_cascade
SELECT cascade.task, task.status, task.id, cascade.past FROM cascade LEFT JOIN task ON task.seq = cascade.task
LIMIT ?;

-- name: promote
-- PENDING (delayed or retry) -> PENDING (ready)
UPDATE task SET reason = 0, due_ms = NULL, ready_ms = ?
WHERE seq IN (SELECT seq FROM task WHERE due_ms <= ? ORDER BY due_ms LIMIT ?) RETURNING class, rank, seq;

-- name: next_due
SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL;

-- name: overdue
SELECT seq, class, owner, attempt, reason FROM task
WHERE deadline_ms IS NOT NULL AND status = 0 AND deadline_ms <= ? AND reason IS NOT 4 ORDER BY deadline_ms LIMIT ?;

-- name: next_deadline
SELECT min(deadline_ms) FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason IS NOT 4;

-- name: ask_cancel
-- RUNNING -> RUNNING, with the wish noted
UPDATE task SET flags = flags | 1 WHERE seq = ? AND status = 1;

-- name: note_cancel
-- The same for an attempt that may not have begun.
UPDATE task SET flags = flags | 1 WHERE seq = ? AND owner IS NOT NULL;

-- name: state_by_id
SELECT seq, status, reason, class, owner, attempt, flags, id FROM task WHERE id = ?;

-- name: outcome_by_id
SELECT id, status, output, flags, error FROM task WHERE id = ? AND status > 1;

-- name: add_worker
INSERT INTO worker (name, pid, host, started_ms) VALUES (?, ?, ?, ?) RETURNING id;

-- name: newest_times
-- What the clock must not go back behind: when a task came last, and when a worker came or went.
SELECT (SELECT submitted_ms FROM task ORDER BY seq DESC LIMIT 1), (SELECT max(started_ms) FROM worker),
    (SELECT max(ended_ms) FROM worker);

-- name: end_worker
UPDATE worker SET ended_ms = ? WHERE id = ? AND ended_ms IS NULL;

-- name: open_workers
SELECT id, name, pid, host FROM worker WHERE ended_ms IS NULL;

-- name: forget_worker
DELETE FROM worker WHERE id = ?;

-- name: another_worker
SELECT 1 FROM worker WHERE ended_ms IS NULL AND id <> ? LIMIT 1;

-- name: forget_workers
DELETE FROM worker WHERE ended_ms < ?;

-- name: held_by
SELECT seq, id, attempt, status, class, retry_count, crashes, rank, flags FROM task WHERE owner = ? LIMIT ?;

-- name: claims_of
SELECT seq, attempt FROM task WHERE owner = ?;

-- name: put_offer
INSERT INTO offer (worker, at_ms, state) VALUES (?, ?, ?)
ON CONFLICT (worker) DO UPDATE SET at_ms = excluded.at_ms, state = excluded.state;

-- name: drop_offer
DELETE FROM offer WHERE worker = ?;

-- name: offers
SELECT worker.name, offer.state FROM offer JOIN worker ON worker.id = offer.worker WHERE worker.ended_ms IS NULL
ORDER BY worker.id;

-- name: serving
-- Who serves a type.
SELECT worker.name FROM serves JOIN worker ON worker.id = serves.worker
WHERE worker.ended_ms IS NULL AND serves.type = ? ORDER BY worker.id;

-- name: claimed_elsewhere
-- What living workers but this one hold and have not begun with.
SELECT DISTINCT task.owner, class.id, class.namespace, class.type, class.grp
FROM worker CROSS JOIN task ON task.owner = worker.id CROSS JOIN class ON class.id = task.class
WHERE worker.ended_ms IS NULL AND worker.id <> ? AND task.status = 0;

-- name: note_slots
UPDATE worker SET slots = ? WHERE id = ?;

-- name: clear_serves
DELETE FROM serves WHERE worker = ?;

-- name: put_usage
INSERT INTO usage (worker, at_ms, figures) VALUES (?, ?, ?)
ON CONFLICT (worker) DO UPDATE SET at_ms = excluded.at_ms, figures = excluded.figures;

-- name: drop_usage
DELETE FROM usage WHERE worker = ?;

-- name: usages
SELECT worker.name, worker.host, usage.at_ms, usage.figures FROM usage JOIN worker ON worker.id = usage.worker
WHERE worker.ended_ms IS NULL;

-- name: add_serves
INSERT OR IGNORE INTO serves (worker, type) VALUES (?, ?);

-- name: put_handler
INSERT INTO handler (type, version, lane, options, schema, source, seen_ms) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (type, version) DO UPDATE SET lane = excluded.lane, options = excluded.options, schema = excluded.schema,
    source = excluded.source, seen_ms = excluded.seen_ms;

-- name: handler_source
SELECT source FROM handler WHERE type = ? AND version = ?;

-- name: handlers
SELECT type, version, lane, options, schema, seen_ms FROM handler ORDER BY type, version;

-- name: add_pause
INSERT OR IGNORE INTO pause (namespace, type, grp, since_ms, who) VALUES (?, ?, ?, ?, ?);

-- name: drop_pause
DELETE FROM pause WHERE namespace = ? AND type = ? AND grp = ?;

-- name: pauses
SELECT namespace, type, grp FROM pause;

-- name: put_progress
INSERT INTO progress (task, attempt, done, total, at_ms)
SELECT seq, attempt, ?, ?, ? FROM task WHERE seq = ? AND attempt = ? AND owner = ?
ON CONFLICT (task) DO UPDATE SET attempt = excluded.attempt, done = excluded.done, total = excluded.total,
    at_ms = excluded.at_ms;

-- name: add_payload_blob
INSERT OR IGNORE INTO payload_blob (digest, task) VALUES (?, ?);

-- name: add_audit
INSERT INTO audit (at_ms, action, detail) VALUES (?, ?, ?);

-- name: drop_audit
-- The oldest ones stand first.
DELETE FROM audit WHERE rowid IN
    (SELECT rowid FROM (SELECT rowid, at_ms FROM audit ORDER BY rowid LIMIT ?) WHERE at_ms < ?);

-- name: prunable
-- Ended tasks in order of age from a cursor on; the caller decides which may go.
SELECT seq, id, status, ended_ms FROM task WHERE seq > ? ORDER BY seq LIMIT ?;

-- name: with_live_child
-- Those of these tasks that unfinished ones depend on.
SELECT value FROM json_each(?)
WHERE EXISTS (SELECT 1 FROM edge JOIN task ON task.seq = edge.child WHERE edge.parent = value AND task.status < 2);

-- name: stand_for_these
-- A task whose result a kept task stands for must stay as long.
SELECT ref, task FROM stands_for WHERE ref IN (SELECT value FROM json_each(?));

-- name: add_tombstone
INSERT OR REPLACE INTO tombstone (id, status, ended_ms) VALUES (?, ?, ?);

-- name: old_tombstone
SELECT 1 FROM tombstone WHERE ended_ms < ? LIMIT 1;

-- name: drop_tombstones
DELETE FROM tombstone WHERE id IN (SELECT id FROM tombstone WHERE ended_ms < ? LIMIT ?);

-- name: prune_tasks
DELETE FROM task WHERE seq IN (SELECT value FROM json_each(?)) AND status > 1 RETURNING class, status;

-- name: prune_attempts
DELETE FROM attempt WHERE task IN (SELECT value FROM json_each(?));

-- name: prune_edges
DELETE FROM edge WHERE child IN (SELECT value FROM json_each(?));

-- name: prune_keys
DELETE FROM idempotency WHERE task IN (SELECT value FROM json_each(?));

-- name: prune_progress
DELETE FROM progress WHERE task IN (SELECT value FROM json_each(?));

-- name: prune_stands_for
DELETE FROM stands_for WHERE task IN (SELECT value FROM json_each(?));

-- name: prune_payload_blobs
DELETE FROM payload_blob WHERE task IN (SELECT value FROM json_each(?));

-- name: prune_retried
DELETE FROM retried WHERE task IN (SELECT value FROM json_each(?1)) OR again IN (SELECT value FROM json_each(?1));

-- name: blob_in_use
SELECT 1 FROM payload_blob WHERE digest = ?1 UNION ALL SELECT 1 FROM cache WHERE digest = ?1 LIMIT 1;

-- name: add_retried
INSERT INTO retried (task, again) VALUES (?, ?);

-- name: move_key
UPDATE idempotency SET task = ? WHERE task = ?;

-- name: retried_as
SELECT task.id FROM retried JOIN task ON task.seq = retried.again WHERE retried.task = ?;

-- name: descendants
-- The edges of the tasks below that never ran because of this one: (task, parent, whether that was pruned, whether the
-- task was retried).
WITH RECURSIVE below(seq) AS (
    VALUES (?1) UNION SELECT edge.child FROM below JOIN edge ON edge.parent = below.seq
    JOIN task ON task.seq = edge.child WHERE task.status IN (3, 4) AND task.attempt = 0 AND task.error <> ?2)
SELECT below.seq, edge.parent, task.seq IS NULL, retried.task IS NOT NULL
FROM below JOIN edge ON edge.child = below.seq LEFT JOIN task ON task.seq = edge.parent
LEFT JOIN retried ON retried.task = below.seq WHERE below.seq <> ?1;

-- name: to_renew
SELECT class, priority, max_retries, timeout_ms, input, spec, flags, not_before_ms FROM task WHERE seq = ?;

-- name: edges_of
SELECT parent, policy FROM edge WHERE child = ? ORDER BY n;

-- name: copy_payload_blobs
INSERT INTO payload_blob (digest, task) SELECT digest, ? FROM payload_blob WHERE task = ?;

-- name: whole_task
SELECT task.seq, task.id, task.class, task.rank, task.status, task.reason, task.attempt, task.owner, task.flags,
    task.priority, task.retry_count, task.max_retries, task.crashes, task.releases, task.submitted_ms, task.ready_ms,
    task.not_before_ms, task.due_ms, task.deadline_ms, task.timeout_ms, task.ended_ms, task.waits_for, task.input,
    task.spec, task.output, task.error, class.namespace, class.type, class.grp, worker.name
FROM task JOIN class ON class.id = task.class LEFT JOIN worker ON worker.id = task.owner WHERE task.id = ?;

-- name: attempts_of
SELECT attempt.number, attempt.outcome, worker.name, attempt.started_ms, attempt.ended_ms, attempt.duration_us,
    attempt.cpu_us, attempt.memory, attempt.network, attempt.batch, attempt.wait_ms, attempt.lane, attempt.error
FROM attempt LEFT JOIN worker ON worker.id = attempt.owner WHERE attempt.task = ? ORDER BY attempt.number;

-- name: parents_ids
SELECT task.id, task.status, task.reason FROM edge JOIN task ON task.seq = edge.parent WHERE edge.child = ? ORDER BY edge.n;

-- name: progress_of
SELECT done, total FROM progress WHERE task = ? AND attempt = ?;

-- name: retry_links
SELECT (SELECT t.id FROM retried r JOIN task t ON t.seq = r.task WHERE r.again = ?1),
       (SELECT t.id FROM retried r JOIN task t ON t.seq = r.again WHERE r.task = ?1);

-- name: ahead
-- How many ready tasks of a class go first.
SELECT count(*) FROM (SELECT 1 FROM task WHERE class = ? AND reason = 0 AND (rank, seq) < (?, ?) LIMIT ?);

-- name: line
-- The classes that have ready tasks, each with how many of these go before a place, counted up to a limit.
WITH RECURSIVE head(class) AS (
    SELECT min(class) FROM task WHERE reason = 0
    UNION ALL
    SELECT (SELECT min(class) FROM task WHERE reason = 0 AND class > head.class) FROM head WHERE class IS NOT NULL)
SELECT class.id, class.namespace, class.type, class.grp, (SELECT count(*) FROM
    (SELECT 1 FROM task WHERE task.class = head.class AND reason = 0 AND (rank, seq) < (?1, ?2) LIMIT ?3))
FROM head JOIN class ON class.id = head.class;

-- name: type_of_claimed
SELECT class.type FROM task JOIN class ON class.id = task.class
WHERE task.id = ? AND task.status = 0 AND task.owner IS NOT NULL;

-- name: line_of_group
-- Of each class of a group how many ready tasks go before a place, counted up to a limit.
SELECT class.id, class.namespace, class.type, (SELECT count(*) FROM
    (SELECT 1 FROM task WHERE task.class = class.id AND reason = 0 AND (rank, seq) < (?2, ?3) LIMIT ?4))
FROM class WHERE class.grp = ?1;

-- name: specs_before
-- Of the ready tasks of a class that go before a place, up to a limit: what those say that they need, and how many say so.
SELECT spec, count(*) FROM (SELECT CASE WHEN flags & 4096 <> 0 THEN spec END AS spec FROM task
    WHERE class = ?1 AND reason = 0 AND (rank, seq) < (?2, ?3) ORDER BY rank, seq LIMIT ?4) GROUP BY spec;

-- name: served_beside
-- What those living workers serve that serve a type.
SELECT worker.name, other.type FROM serves AS mine JOIN worker ON worker.id = mine.worker
JOIN serves AS other ON other.worker = mine.worker WHERE mine.type = ? AND worker.ended_ms IS NULL;

-- name: lanes_of_handlers
-- Of each type the lane that its newest handler was declared with.
SELECT type, lane, max(seen_ms) FROM handler GROUP BY type;

-- name: ended_lately
-- Of the newest attempts since a moment, up to a limit: how many there are, since when, and of those that ran in a lane of workers
-- that serve a type (of a type alone, where one is named): how many, since when, and how many ended in that first moment.
WITH ours AS (SELECT ended_ms, lane = ?1 AND owner IN (SELECT worker FROM serves WHERE type = ?2) AND (?5 = '' OR ?5 =
        (SELECT type FROM task JOIN class ON class.id = task.class WHERE task.seq = attempt.task)) AS is_ours
    FROM attempt WHERE ended_ms >= ?3 ORDER BY ended_ms DESC LIMIT ?4)
SELECT count(*), min(ended_ms), count(*) FILTER (WHERE is_ours), min(ended_ms) FILTER (WHERE is_ours),
    count(*) FILTER (WHERE is_ours AND ended_ms = (SELECT min(ended_ms) FROM ours WHERE is_ours)) FROM ours;

-- name: unfinished_by_reason
-- Tasks that run (-1) or wait for something else than their turn, by type and reason: of each of their indexes so many at most.
SELECT class.type, found.reason, count(*) FROM (
    SELECT * FROM (SELECT class, coalesce(reason, -1) AS reason FROM task WHERE owner IS NOT NULL LIMIT ?1)
    UNION ALL SELECT * FROM (SELECT class, reason FROM task WHERE due_ms IS NOT NULL LIMIT ?1)
    UNION ALL SELECT * FROM (SELECT class, reason FROM task WHERE waits_for IS NOT NULL LIMIT ?1)
    UNION ALL SELECT * FROM (SELECT task.class, task.reason FROM flight JOIN task ON task.seq = flight.task
        WHERE flight.leads = 0 LIMIT ?1)) AS found
JOIN class ON class.id = found.class GROUP BY 1, 2;

-- name: held_by_workers
SELECT owner, status, count(*) FROM task WHERE owner IS NOT NULL GROUP BY 1, 2;

-- name: held_types
-- What a worker holds, by type.
SELECT class.type, count(*) FROM task JOIN class ON class.id = task.class WHERE owner = ? GROUP BY 1;

-- name: ended_by_type
-- The newest attempts since a moment, up to a limit, by type, lane and outcome: how many, in how many calls, how long these
-- took, since when they ended, and for how much of the time since then slots were taken. Where there are more than the limit,
-- that moment is the first end among them.
SELECT class.type, newest.lane, newest.outcome, count(*), sum(1.0 / newest.batch), sum(1.0 * newest.duration_us / newest.batch),
    min(newest.ended_ms), sum(1.0 * min(newest.duration_us, 1000 * (newest.ended_ms - newest.since_ms)) / newest.batch)
FROM (SELECT *, CASE WHEN count(*) OVER () < ?2 THEN ?1 ELSE min(ended_ms) OVER () END AS since_ms
    FROM (SELECT task, lane, outcome, batch, duration_us, ended_ms FROM attempt WHERE ended_ms >= ?1
        ORDER BY ended_ms DESC LIMIT ?2)) AS newest
JOIN task ON task.seq = newest.task JOIN class ON class.id = task.class GROUP BY 1, 2, 3;

-- name: running_since
-- What runs now, by type: for how many milliseconds of those since a moment it has been ready at most.
SELECT class.type, sum(?2 - max(task.ready_ms, ?1)) FROM task JOIN class ON class.id = task.class
WHERE task.owner IS NOT NULL AND task.status = 1 GROUP BY 1;

-- name: tallies
SELECT class.namespace, class.type, class.grp, tally.status, tally.n FROM tally JOIN class ON class.id = tally.class
WHERE tally.n <> 0 ORDER BY 1, 2, 3, 4;

-- name: totals
SELECT status, n FROM tally WHERE class = 0;

-- name: reasons
SELECT reason, count(*) FROM task WHERE status = 0 GROUP BY reason;

-- name: page
SELECT task.id FROM task JOIN class ON class.id = task.class
WHERE (?1 IS NULL OR task.status = ?1) AND (?2 IS NULL OR class.type = ?2) AND (?3 IS NULL OR class.namespace = ?3)
    AND (?4 IS NULL OR task.seq < (SELECT seq FROM task WHERE id = ?4))
ORDER BY task.seq DESC LIMIT ?5;

-- name: known_id
SELECT id FROM task WHERE id = ?;

-- name: buried_id
SELECT id FROM tombstone WHERE id = ?;

-- name: asked_to_stop
SELECT id FROM task WHERE owner = ? AND flags & 1;

-- name: registered_types
SELECT type FROM handler UNION SELECT type FROM serves;

-- name: ready_class_after
-- The first class after this one that has ready tasks: one step of a skip scan.
SELECT class FROM task WHERE class > ? AND reason = 0 ORDER BY class LIMIT 1;

-- name: first_of_class
-- By priority, those ready tasks of a class that go first.
SELECT priority, count(*), min(ready_ms)
FROM (SELECT priority, ready_ms FROM task WHERE class = ? AND reason = 0 ORDER BY rank, seq LIMIT ?) AS first
GROUP BY priority;

-- name: held_by_status
SELECT status, count(*) FROM task WHERE owner IS NOT NULL GROUP BY status;

-- name: timeouts_of
SELECT seq, attempt, status, timeout_ms FROM task WHERE owner = ?;

-- name: ids_by_end
SELECT id FROM task WHERE substr(hex(id), -?) = ? LIMIT ?;

-- name: serving_workers
SELECT worker.name, worker.pid, worker.host, worker.started_ms, group_concat(serves.type, ' '), worker.slots, worker.id
FROM worker JOIN serves ON serves.worker = worker.id WHERE worker.ended_ms IS NULL
GROUP BY worker.id ORDER BY worker.id;

-- name: pauses_since
SELECT namespace, type, grp, since_ms, who FROM pause ORDER BY since_ms;

-- name: newest_handler
SELECT options, schema FROM handler WHERE type = ? ORDER BY seen_ms DESC LIMIT 1;

-- name: handler_types
SELECT DISTINCT type FROM handler ORDER BY type;

-- name: unfinished_specs
-- Every unfinished task is in one of these partial indexes, so that those that ended are not walked over.
SELECT id, spec FROM task WHERE reason = 0 UNION ALL SELECT id, spec FROM task WHERE waits_for IS NOT NULL
UNION ALL SELECT id, spec FROM task WHERE due_ms IS NOT NULL UNION ALL SELECT id, spec FROM task WHERE owner IS NOT NULL;

-- name: attempts_since
SELECT class.type, attempt.outcome, attempt.duration_us, attempt.wait_ms, attempt.cpu_us
FROM attempt JOIN task ON task.seq = attempt.task JOIN class ON class.id = task.class WHERE attempt.ended_ms >= ?;

-- name: ledger
-- What attempts that ended since then have cost, by outcome, and by those of type, group and day (of UTC) that are wanted.
SELECT CASE WHEN ?1 THEN class.type END, CASE WHEN ?2 THEN class.grp END,
    CASE WHEN ?3 THEN attempt.ended_ms / 86400000 END, attempt.outcome, count(*), sum(1.0 / attempt.batch),
    sum(1.0 * attempt.duration_us / attempt.batch),
    count(attempt.duration_us), sum(attempt.duration_us), max(attempt.duration_us),
    count(attempt.wait_ms), sum(attempt.wait_ms), max(attempt.wait_ms),
    count(attempt.cpu_us), sum(attempt.cpu_us), max(attempt.cpu_us),
    count(attempt.memory), sum(attempt.memory), max(attempt.memory),
    count(attempt.network), sum(attempt.network), max(attempt.network)
FROM attempt JOIN task ON task.seq = attempt.task JOIN class ON class.id = task.class
WHERE attempt.ended_ms >= ?4 GROUP BY 1, 2, 3, 4;

-- name: ledger_hits
-- Tasks that completed since then with the result of equal work, by the same keys.
SELECT CASE WHEN ?1 THEN class.type END, CASE WHEN ?2 THEN class.grp END,
    CASE WHEN ?3 THEN task.ended_ms / 86400000 END, count(*)
FROM task JOIN class ON class.id = task.class
WHERE task.flags & 256 AND task.status = 2 AND task.ended_ms >= ?4 GROUP BY 1, 2, 3;

-- name: pruned_since
SELECT count(*), max(ended_ms) FROM tombstone WHERE ended_ms >= ?;

-- name: insert_done
-- new -> COMPLETED, with the result of equal work
INSERT INTO task (seq, id, class, rank, status, flags, priority, max_retries, submitted_ms, ready_ms, not_before_ms,
    deadline_ms, timeout_ms, ended_ms, input, spec, output)
SELECT column1, column2, column3, column4, 2, column5, column6, column7, column8, column9, column10, column11, column12,
    column13, column14, column15, column16
FROM (VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?));

-- name: kept
SELECT key, output, flags, made_ms, used_ms FROM cache
WHERE key IN (SELECT unhex(value) FROM json_each(?)) AND expires_ms > ?;

-- name: use_kept
UPDATE cache SET used_ms = ? WHERE key = ?;

-- name: keep
-- Who wanted the one before for longer takes this one: it is newer.
INSERT INTO cache (key, namespace, type, version, output, flags, digest, bytes, made_ms, expires_ms, used_ms)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET output = excluded.output, flags = excluded.flags, digest = excluded.digest,
    bytes = excluded.bytes, made_ms = excluded.made_ms, used_ms = excluded.used_ms,
    expires_ms = max(expires_ms, excluded.expires_ms);

-- name: drop_kept
DELETE FROM cache WHERE key = ? AND made_ms = ?;

-- name: kept_kinds
SELECT namespace, type, version, count(*), sum(bytes), min(made_ms) FROM cache GROUP BY 1, 2, 3 ORDER BY 1, 2, 3;

-- name: kept_bytes
SELECT bytes FROM kept_size;

-- name: drop_expired
DELETE FROM cache WHERE key IN (SELECT key FROM cache WHERE expires_ms <= ? LIMIT ?);

-- name: drop_unused
-- Those that were not used for longest, as many as it takes to free so many bytes.
DELETE FROM cache WHERE key IN (SELECT key FROM
    (SELECT key, sum(bytes) OVER (ORDER BY used_ms ROWS UNBOUNDED PRECEDING) - bytes AS freed FROM
        (SELECT key, used_ms, bytes FROM cache ORDER BY used_ms LIMIT ?) AS oldest) AS sums
    WHERE freed < ?);

-- name: purge_kept
DELETE FROM cache WHERE key IN (SELECT key FROM cache
    WHERE (?1 = '' OR namespace = ?1) AND (?2 = '' OR type = ?2) AND (?3 = '' OR version = ?3) LIMIT ?4);

-- name: leaders
SELECT flight.key, task.seq, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.leads = 1 AND flight.key IN (SELECT unhex(value) FROM json_each(?));

-- name: flights_of
-- Who leads this work, and what a task itself is listed for.
SELECT flight.key, task.seq, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.leads = 1 AND flight.key = ?1
UNION ALL
SELECT flight.key, flight.task, 0 FROM flight WHERE flight.task = ?2 AND flight.key <> ?1;

-- name: leaders_of
-- Whom these followers wait for.
SELECT (SELECT task FROM flight WHERE key = mine.key AND leads = 1) FROM flight AS mine WHERE task IN (SELECT value FROM json_each(?));

-- name: leader_of
SELECT id, status, reason FROM task WHERE seq =
    (SELECT task FROM flight WHERE leads = 1 AND key = (SELECT key FROM flight WHERE task = ?));

-- name: root_of
-- What a task waits for in the end, of those that wait for a parent or for equal work one after the other.
WITH RECURSIVE above(seq, n) AS (
    SELECT seq, 0 FROM task WHERE id = ?1
    UNION ALL
    SELECT CASE reason WHEN 1 THEN waits_for WHEN 5 THEN (SELECT first.task FROM flight JOIN flight AS first
        ON first.key = flight.key AND first.leads = 1 WHERE flight.task = task.seq) END, n + 1
    FROM above JOIN task ON task.seq = above.seq WHERE n < 10000)
SELECT task.id, task.status, task.reason FROM above JOIN task ON task.seq = above.seq WHERE n > 0 ORDER BY n DESC LIMIT 1;

-- name: join_flight
INSERT INTO flight (task, key, leads, keep_ms) VALUES (?, ?, ?, ?);

-- name: leave_flights
DELETE FROM flight WHERE task IN (SELECT value FROM json_each(?)) RETURNING task, key, leads, keep_ms;

-- name: awaited_work
-- What of this somebody waits for who does not lead it, and for how long those want it kept.
SELECT key, max(keep_ms) FROM flight WHERE leads = 0 AND key IN (SELECT unhex(value) FROM json_each(?)) GROUP BY key;

-- name: lead_flight
UPDATE flight SET leads = 1 WHERE task = ?;

-- name: followers
SELECT task.seq, task.id, task.class FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = ? AND flight.leads = 0 LIMIT ?;

-- name: best_follower
SELECT task.seq, task.class, task.rank FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = ? AND flight.leads = 0 ORDER BY task.rank, task.seq LIMIT 1;

-- name: urgent_follower
SELECT 1 FROM flight JOIN task ON task.seq = flight.task
WHERE flight.key = ? AND flight.leads = 0 AND (task.priority > 1 OR task.flags & 32768 <> 0) LIMIT 1;

-- name: follow
-- PENDING (claimed) -> PENDING (same_work)
UPDATE task SET reason = 5, owner = NULL WHERE seq = ? AND attempt = ? AND owner = ? AND reason = 4 RETURNING rank;

-- name: take_lead
-- PENDING (same_work) -> PENDING (ready)
UPDATE task SET reason = 0, flags = flags | ?, ready_ms = ? WHERE seq = ? AND reason = 5;

-- name: put_spec
-- What is stored with a task that is about to come again.
UPDATE task SET spec = ? WHERE seq = ? AND owner IS NOT NULL;

-- name: add_flags
UPDATE task SET flags = flags | ? WHERE seq = ? AND owner IS NOT NULL;

-- name: share
-- PENDING (same_work) -> COMPLETED
UPDATE task SET status = 2, reason = NULL, ended_ms = ?, output = ?, flags = flags | ?, error = NULL
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 5;

-- name: share_failure
-- PENDING (same_work) -> FAILED or TIMEOUT
UPDATE task SET status = ?, reason = NULL, ended_ms = ?, error = ?, flags = flags | ?
WHERE seq IN (SELECT value FROM json_each(?)) AND reason = 5;

-- name: held_in_group
-- How many tasks of a group are held, in a namespace or ('') in all.
SELECT count(*) FROM class JOIN task ON task.class = class.id AND task.owner IS NOT NULL AND task.flags & 512
WHERE class.grp = ?1 AND (?2 = '' OR class.namespace = ?2);

-- name: put_limit
-- What was begun so far counts on under the new limit. Once a cost rate is taken off, or a rate where no cost rate stays, what was
-- used is forgotten, and what is set later has another number: earlier claims have to do with none of that.
INSERT INTO group_limit (id, namespace, grp, concurrency, rate, rate_ms, cost_rate, cost_ms, held_then, changed)
SELECT coalesce(max(id), 0) + 1, ?, ?, ?, ?, ?, ?, ?, ?, coalesce(max(changed), 0) + 1 FROM group_limit WHERE true
ON CONFLICT (grp, namespace) DO UPDATE SET concurrency = excluded.concurrency, rate = excluded.rate,
    rate_ms = excluded.rate_ms, cost_rate = excluded.cost_rate, cost_ms = excluded.cost_ms,
    held_then = excluded.held_then, changed = excluded.changed,
    id = CASE WHEN excluded.cost_rate IS NULL AND (group_limit.cost_rate > 0
        OR group_limit.rate > 0 AND excluded.rate IS NULL) THEN excluded.id ELSE group_limit.id END,
    full_us = CASE WHEN coalesce(excluded.rate, excluded.cost_rate) IS NULL THEN 0 ELSE group_limit.full_us END,
    cost_used = CASE WHEN excluded.cost_rate IS NULL THEN 0 ELSE group_limit.cost_used END;

-- name: newest_limit
SELECT max(changed) FROM group_limit;

-- name: put_share
INSERT INTO group_limit (id, namespace, grp, weight, held_then, changed)
SELECT coalesce(max(id), 0) + 1, ?, ?, ?, 0, coalesce(max(changed), 0) + 1 FROM group_limit WHERE true
ON CONFLICT (grp, namespace) DO UPDATE SET weight = excluded.weight, changed = excluded.changed;

-- name: limits_after
SELECT changed, id, namespace, grp, concurrency, rate, rate_ms, weight, cost_rate, cost_ms FROM group_limit
WHERE changed > ? ORDER BY changed;

-- name: rate_used
SELECT full_us FROM group_limit WHERE id = ?;

-- name: use_rate
UPDATE group_limit SET full_us = ? WHERE id = ?;

-- name: cost_used
SELECT cost_used, cost_at_ms FROM group_limit WHERE id = ?;

-- name: use_cost
UPDATE group_limit SET cost_used = ?, cost_at_ms = ? WHERE id = ?;

-- name: costs_of
-- Those of these tasks that say what they are to cost.
SELECT seq, spec FROM task WHERE seq IN (SELECT value FROM json_each(?)) AND flags & 16384 <> 0;

-- name: firsts_of_group
-- Of each class of a group, in a namespace or ('') in all, the ready task that goes first: its spec, whether that says what it is
-- to cost, and the class.
SELECT task.rank, task.seq, task.spec, task.flags & 16384, class.id, class.namespace, class.type FROM class
JOIN task ON task.seq =
    (SELECT seq FROM task AS one WHERE one.class = class.id AND one.reason = 0 ORDER BY one.rank, one.seq LIMIT 1)
WHERE class.grp = ?1 AND (?2 = '' OR class.namespace = ?2);

-- name: firsts_of_class
-- The same of a class for some that go first.
SELECT rank, seq, spec, flags & 16384 FROM task WHERE class = ? AND reason = 0 ORDER BY rank, seq LIMIT ?;

-- name: limits
SELECT namespace, grp, concurrency, rate, rate_ms, full_us, weight, cost_rate, cost_ms, cost_used, cost_at_ms FROM group_limit
WHERE concurrency IS NOT NULL OR rate IS NOT NULL OR cost_rate IS NOT NULL OR weight IS NOT NULL ORDER BY grp, namespace;

-- name: shares
SELECT namespace, grp, weight FROM group_limit WHERE weight IS NOT NULL;

-- name: limits_of
SELECT namespace, grp, concurrency, rate, rate_ms, full_us, weight, cost_rate, cost_ms, cost_used, cost_at_ms FROM group_limit
WHERE grp = ? AND namespace IN ('', ?) AND (concurrency IS NOT NULL OR rate IS NOT NULL OR cost_rate IS NOT NULL);

-- name: identity
SELECT identity FROM store;
