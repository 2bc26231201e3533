-- What there is to know of a store from outside.

-- name: living
-- Who has not signed off, with what it holds and serves.
SELECT worker.name, pid, host, started_ms, (SELECT count(*) FROM task WHERE owner = worker.id),
    (SELECT group_concat(type, ' ') FROM serves WHERE serves.worker = worker.id)
FROM worker WHERE ended_ms IS NULL ORDER BY worker.id;

-- name: is_known
SELECT 1 FROM worker WHERE name = ?;

-- name: classes
-- Classes with unfinished tasks: how many, how many of them ready (counted up to a limit), and since when the next one.
SELECT namespace, type, grp, n,
    (SELECT count(*) FROM (SELECT 1 FROM task WHERE task.class = class.id AND reason = 0 LIMIT ?1)),
    (SELECT ready_ms FROM task WHERE task.class = class.id AND reason = 0 ORDER BY rank, seq LIMIT 1)
FROM tally JOIN class ON class.id = tally.class WHERE status = 0 AND n > 0 ORDER BY n DESC;

-- name: deadlines
-- Of the tasks that wait, those whose deadlines come first (up to a limit): how many a class has, and its first one.
SELECT namespace, type, grp, count(*), min(deadline_ms) FROM (SELECT class, deadline_ms FROM task
    WHERE deadline_ms IS NOT NULL AND status = 0 AND reason IS NOT 4 ORDER BY deadline_ms LIMIT ?) AS first
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
SELECT task.id, CASE WHEN task.flags & 4096 <> 0 THEN task.spec END FROM class CROSS JOIN task ON task.class = class.id
WHERE class.type = ?1 AND task.reason = 0 LIMIT ?2;

-- name: known_tables
SELECT name FROM sqlite_schema WHERE type = 'table';

-- name: ends
-- How tasks of each type ended: completed, and failed or out of time.
SELECT type, sum(CASE WHEN status = 2 THEN n ELSE 0 END), sum(CASE WHEN status IN (3, 5) THEN n ELSE 0 END)
FROM tally JOIN class ON class.id = tally.class WHERE status IN (2, 3, 5) GROUP BY type HAVING sum(n) > 0 ORDER BY type;

-- name: pauses
SELECT namespace, type, grp FROM pause;

-- name: overrun
-- Attempts that may have run for longer than their timeout and some grace: they became ready before that, and so did
-- their worker.
SELECT task.id, type, worker.name, timeout_ms, ?1 - max(ready_ms, worker.started_ms)
FROM task JOIN worker ON worker.id = owner JOIN class ON class.id = class
WHERE owner IS NOT NULL AND status = 1 AND ?1 - max(ready_ms, worker.started_ms) > timeout_ms + ?2 LIMIT ?3;

-- name: late
-- When the first delay ended, and the first deadline passed, that nobody has acted on.
SELECT (SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL),
    (SELECT min(deadline_ms) FROM task WHERE deadline_ms IS NOT NULL AND status = 0 AND reason IS NOT 4);

-- name: newest
SELECT max(coalesce((SELECT submitted_ms FROM task ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT max(max(started_ms, coalesce(ended_ms, 0))) FROM worker), 0));

-- name: unfinished
SELECT coalesce(sum(n), 0) FROM tally WHERE class = 0 AND status = 0;

-- name: handlers
SELECT type, version, lane, options, seen_ms FROM handler ORDER BY type, version;

-- name: travelling
SELECT count(*) FROM cascade;
