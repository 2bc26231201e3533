-- What must hold in every committed state of a store. Each statement finds what breaks its invariant: the task's id where
-- there is one, what is wrong, and the figures. Codes are those of schema.sql; outcomes of attempts are completed 0,
-- failed 1, timeout 2, cancelled 3, retry 4, released 5, crashed 6.
--
-- Both SQLite and Postgres read these: what each has to be told in its own words is in the file of its name. Names after
-- a colon stand for numbers. In a UNION the type of a column is that of its first statement.

-- name: states
-- A task is in a state of the lifecycle table and has what that state needs, and nothing that it must not have: an owner,
-- a timer, a parent, an end, an error.
SELECT id, 'is in no state of the lifecycle' AS what, seq, status, reason, attempt FROM task
WHERE (status, coalesce(reason, -1)) NOT IN (VALUES :states)
UNION ALL
SELECT id, 'lacks what its state needs, or has what it must not', seq, status, reason, attempt FROM task
WHERE (owner IS NOT NULL) <> (status = 1 OR coalesce(reason, 0) = 4)
    OR (due_ms IS NOT NULL) <> (coalesce(reason, 0) IN (2, 3))
    OR (waits_for IS NOT NULL) <> (coalesce(reason, 0) = 1) OR (waits_at IS NOT NULL) <> (coalesce(reason, 0) = 1)
    OR (ended_ms IS NOT NULL) <> (status > 1) OR (output IS NOT NULL) <> (status = 2)
    OR (owner IS NOT NULL AND attempt < 1)
UNION ALL
SELECT id, 'completed, and has an error', seq, status, reason, attempt FROM task WHERE status = 2 AND error IS NOT NULL
UNION ALL
SELECT id, 'did not complete, and has no error that says why', seq, status, reason, attempt FROM task
WHERE status > 2 AND error IS NULL
UNION ALL
SELECT id, 'has not failed yet, and has an error', seq, status, reason, attempt FROM task
WHERE status < 2 AND error IS NOT NULL AND retry_count = 0 AND crashes = 0
UNION ALL
SELECT id, 'is tried again, and has no error that says why', seq, status, reason, attempt FROM task
WHERE status < 2 AND error IS NULL AND (retry_count > 0 OR reason = 3)
UNION ALL
SELECT id, 'was claimed before it could be', seq, status, reason, attempt FROM task
WHERE attempt < 0 OR (reason IN (1, 2) AND attempt > 0)
UNION ALL
SELECT id, 'was asked to stop and goes on, held by nobody', seq, status, reason, attempt FROM task
WHERE flags & 1 <> 0 AND owner IS NULL AND status < 2
UNION ALL
SELECT id, 'was asked to stop, and ended otherwise', seq, status, reason, attempt FROM task
WHERE flags & 1 <> 0 AND status IN (2, 3, 5)
UNION ALL
SELECT id, 'is marked to have ended as equal work did, and goes on', seq, status, reason, attempt FROM task
WHERE flags & 256 <> 0 AND status < 2
UNION ALL
SELECT id, 'is marked with flags that there are not', seq, status, reason, attempt FROM task
WHERE flags NOT BETWEEN 0 AND 2147483647
UNION ALL
SELECT id, 'says what it needs or costs, and has lost that', seq, status, reason, attempt FROM task
WHERE flags & 20480 <> 0 AND spec IS NULL
UNION ALL
SELECT id, 'has a priority that there is not', seq, priority, NULL, attempt FROM task WHERE priority NOT BETWEEN 0 AND 3
UNION ALL
SELECT task.id, 'has a dependency of a kind that there is not', child, policy, NULL, n
FROM edge LEFT JOIN task ON seq = child WHERE policy NOT BETWEEN 0 AND 2;

-- name: delays
-- What waits for a moment waits for the right one: a delayed task for its not_before, one that is tried again for what
-- follows its last attempt, by ten years at most, and not beyond its deadline.
SELECT id, 'is delayed to another moment than its not_before' AS what, seq, due_ms, not_before_ms, deadline_ms
FROM task WHERE reason = 2 AND due_ms IS DISTINCT FROM not_before_ms
UNION ALL
SELECT id, 'is to be tried again after its deadline', seq, due_ms, not_before_ms, deadline_ms
FROM task WHERE reason = 3 AND due_ms > deadline_ms
UNION ALL
SELECT id, 'is to be tried again, and its last attempt did not end so', seq, due_ms, task.attempt, outcome
FROM task LEFT JOIN attempt ON attempt.task = seq AND number = task.attempt
WHERE reason = 3 AND coalesce(outcome, 5) NOT IN (4, 6)
UNION ALL
SELECT id, 'is to be tried again before its last attempt ended, or many years after', seq, due_ms, task.attempt,
    attempt.ended_ms
FROM task JOIN attempt ON attempt.task = seq AND number = task.attempt
WHERE reason = 3 AND (due_ms < attempt.ended_ms - :slack_ms OR due_ms > attempt.ended_ms + 2 * :longest_ms)
UNION ALL
SELECT id, 'went on before its not_before', seq, ready_ms, not_before_ms, deadline_ms
FROM task WHERE (status IN (1, 2) OR reason IN (0, 3, 4, 5)) AND not_before_ms > ready_ms + :slack_ms
UNION ALL
SELECT id, 'has a moment or a time limit that can not be', seq, not_before_ms, deadline_ms, timeout_ms
FROM task WHERE timeout_ms < 1 OR not_before_ms < 0 OR deadline_ms < 0;

-- name: identity
-- A task has an id of its own, of 16 bytes that are not all zero.
SELECT NULL AS id, 'an id is of another length' AS what, seq, length(id) AS bytes FROM task WHERE length(id) <> 16
UNION ALL
SELECT id, 'has the id of no task', seq, length(id) FROM task WHERE id = :no_id
UNION ALL
SELECT id, 'is there several times', min(seq), count(*) FROM task GROUP BY id HAVING count(*) > 1;

-- name: numbers
-- Tasks have numbers from 1, and the next one gets a number that none has had.
SELECT id, 'has a number that none may have, or that the next task is to get' AS what, seq, :last_number AS last FROM task
WHERE seq < 1 OR seq > :last_number;

-- name: outcomes
-- A task that has ended did so as its last attempt says, at that moment; without an attempt where none was needed.
SELECT id, 'ended otherwise than its last attempt' AS what, seq, status, task.attempt, outcome, crashes, releases
FROM task LEFT JOIN attempt ON attempt.task = seq AND attempt.number = task.attempt
WHERE status > 1 AND flags & 256 = 0 AND NOT CASE status
    WHEN 2 THEN coalesce(outcome, 5) = 0
    WHEN 3 THEN coalesce(outcome, 5) = 1 OR (coalesce(outcome, 5) = 6 AND crashes + 1 >= :max_crashes)
        OR (coalesce(outcome, 5) = 5 AND releases >= :max_releases) OR (outcome IS NULL AND task.attempt = 0)
    WHEN 4 THEN coalesce(outcome, 3) IN (3, 4, 5, 6)
    WHEN 5 THEN coalesce(outcome, 2) IN (2, 4, 5, 6) END
UNION ALL
SELECT id, 'ended as equal work did, and has an attempt that ended it', seq, status, task.attempt, outcome, crashes, releases
FROM task JOIN attempt ON attempt.task = seq AND attempt.number = task.attempt WHERE flags & 256 <> 0 AND outcome < 4
UNION ALL
SELECT id, 'ended at another time than its last attempt', seq, status, task.attempt, outcome, task.ended_ms,
    attempt.ended_ms
FROM task JOIN attempt ON attempt.task = seq AND attempt.number = task.attempt
WHERE status > 1 AND outcome < 4 AND task.ended_ms <> attempt.ended_ms;

-- name: one_outcome
-- Only the last attempt ends a task, and a task that goes on has none that did.
SELECT id, 'has an attempt that ended it and went on' AS what, seq, status, task.attempt, number, outcome
FROM attempt JOIN task ON seq = attempt.task WHERE outcome < 4 AND (status < 2 OR number < task.attempt);

-- name: attempts
-- Attempts are numbered from 1 up to the task's own number; the one that is held has not ended. One that did not complete
-- says why, and what it cost is not less than nothing.
SELECT id, 'has an attempt that was never claimed, or is not over' AS what, seq, task.attempt, number, outcome
FROM attempt JOIN task ON seq = attempt.task
WHERE number < 1 OR number > task.attempt OR (number = task.attempt AND task.owner IS NOT NULL)
    OR outcome NOT BETWEEN 0 AND 6
UNION ALL
SELECT id, 'has an attempt that ended before it started', seq, task.attempt, number, started_ms
FROM attempt JOIN task ON seq = attempt.task WHERE started_ms > attempt.ended_ms
UNION ALL
SELECT id, 'has an attempt that completed with an error, or failed without one', seq, task.attempt, number, outcome
FROM attempt JOIN task ON seq = attempt.task
WHERE (outcome = 0 AND attempt.error IS NOT NULL) OR (outcome IN (1, 2, 4, 6) AND attempt.error IS NULL)
UNION ALL
SELECT id, 'has an attempt whose figures can not be', seq, task.attempt, number, batch
FROM attempt JOIN task ON seq = attempt.task
WHERE batch < 1 OR duration_us < 0 OR cpu_us < 0 OR memory < 0 OR network < 0 OR wait_ms < 0;

-- name: charges
-- Retries, crashes and releases stay within their limits, none is less than nothing, and what is charged is on record.
SELECT id, 'is charged beyond a limit, or what is not on record' AS what, seq, retry_count, max_retries, crashes,
    releases, retries, crashed
FROM (SELECT *, (SELECT count(*) FROM attempt WHERE task = seq AND outcome = 4) AS retries,
    (SELECT count(*) FROM attempt WHERE task = seq AND outcome = 6) AS crashed FROM task) AS charged
WHERE retry_count > max_retries OR retry_count <> retries OR crashes >= :max_crashes OR crashes > crashed
    OR releases > :max_releases OR crashes < 0 OR releases < 0;

-- name: dependencies
-- What is ready, runs or ran has parents that ended, and completed where it needs that. All parents of what is alive are
-- kept, also those that it waits for no more; those of what has ended may have been pruned.
SELECT child.id, 'went on before a parent did' AS what, child.seq, child.status, child.reason, child.attempt, parent,
    parent.status AS parent_status, policy
FROM edge JOIN task AS child ON child.seq = edge.child LEFT JOIN task AS parent ON parent.seq = edge.parent
WHERE (child.attempt > 0 OR child.status IN (1, 2) OR child.reason IN (0, 2, 3))
    AND (parent.status < 2 OR (parent.status > 2 AND policy <> 1))
UNION ALL
SELECT child.id, 'depends on a task that is not there', child.seq, child.status, child.reason, child.attempt,
    edge.parent, NULL, policy
FROM edge JOIN task AS child ON child.seq = edge.child LEFT JOIN task AS parent ON parent.seq = edge.parent
WHERE parent.seq IS NULL AND (child.status < 2 OR edge.parent < 0 OR edge.parent > :last_number)
UNION ALL
SELECT child.id, 'has lost a dependency', child.seq, child.status, child.reason, child.attempt, NULL, NULL, NULL
FROM (SELECT edge.child, min(n) AS low, max(n) AS high, count(*) AS found, max(parent.flags & 8) AS joined
    FROM edge JOIN task ON task.seq = edge.child AND task.status < 2 LEFT JOIN task AS parent ON parent.seq = edge.parent
    GROUP BY edge.child) AS counted JOIN task AS child ON child.seq = counted.child
WHERE low <> 0 OR (high - low + 1 <> found AND joined = 0)
UNION ALL
SELECT id, 'is made of the results of others and depends on none', seq, status, reason, attempt, NULL, NULL, NULL
FROM task WHERE flags & 4 <> 0 AND NOT EXISTS (SELECT 1 FROM edge WHERE child = seq);

-- name: waiting
-- A waiting child waits for an unfinished parent, past no other one, unless that parent's end is still travelling.
SELECT child.id, 'waits for nothing' AS what, child.seq, child.waits_for, child.waits_at, edge.parent,
    parent.status AS parent_status
FROM task AS child LEFT JOIN edge ON edge.child = child.seq AND edge.n = child.waits_at
    LEFT JOIN task AS parent ON parent.seq = child.waits_for
WHERE child.reason = 1 AND (edge.parent IS DISTINCT FROM child.waits_for OR parent.seq IS NULL
    OR (parent.status > 1 AND NOT EXISTS (SELECT 1 FROM cascade WHERE cascade.task = child.waits_for)))
UNION ALL
SELECT child.id, 'passed over an unfinished parent', child.seq, child.waits_for, child.waits_at, edge.parent, parent.status
FROM task AS child JOIN edge ON edge.child = child.seq AND edge.n < child.waits_at JOIN task AS parent ON parent.seq = edge.parent
WHERE child.reason = 1 AND parent.status < 2
UNION ALL
SELECT child.id, 'waits, and a parent it needs did not complete', child.seq, child.waits_for, child.waits_at, edge.parent, parent.status
FROM task AS child JOIN edge ON edge.child = child.seq JOIN task AS parent ON parent.seq = edge.parent
WHERE child.reason = 1 AND parent.status > 2 AND policy <> 1
    AND NOT EXISTS (SELECT 1 FROM cascade WHERE cascade.task = edge.parent);

-- name: unmet
-- A task that failed without an attempt had a parent that it needed and that did not complete.
SELECT id, 'failed without an attempt and without a reason' AS what, seq, crashes, releases FROM task
WHERE status = 3 AND attempt = 0 AND flags & 256 = 0 AND NOT EXISTS
    (SELECT 1 FROM edge LEFT JOIN task AS parent ON parent.seq = edge.parent
    WHERE edge.child = task.seq AND policy = 0 AND coalesce(parent.status, 3) > 2);

-- name: acyclic
-- No task waits for itself. The smallest task of a circle has a parent that is newer: the search starts only there,
-- and goes through newer tasks alone.
SELECT task.id, 'depends on itself' AS what, low.child AS seq
FROM (SELECT DISTINCT child FROM edge WHERE parent >= child) AS low LEFT JOIN task ON seq = low.child
WHERE low.child IN (
    WITH RECURSIVE above(seq) AS (
        SELECT parent FROM edge WHERE edge.child = low.child AND parent >= low.child
        UNION SELECT parent FROM above JOIN edge ON edge.child = above.seq WHERE parent >= low.child)
    SELECT seq FROM above);

-- name: stands_for
-- An output that stands for other results is there, flagged, and so are they; none stands for itself.
SELECT task.id, 'stands for what is not there, or is not flagged so' AS what, stands_for.task AS seq, ref,
    task.status, task.flags
FROM stands_for LEFT JOIN task ON task.seq = stands_for.task LEFT JOIN task AS other ON other.seq = ref
WHERE task.seq IS NULL OR other.seq IS NULL OR task.status <> 2 OR task.flags & 8 = 0
UNION ALL
SELECT id, 'is flagged to stand for others and has none', seq, NULL, status, flags FROM task
WHERE flags & 8 <> 0 AND NOT EXISTS (SELECT 1 FROM stands_for WHERE stands_for.task = seq)
UNION ALL
SELECT task.id, 'stands for itself', low.task, NULL, task.status, task.flags
FROM (SELECT DISTINCT task FROM stands_for WHERE ref >= task) AS low LEFT JOIN task ON seq = low.task
WHERE low.task IN (
    WITH RECURSIVE above(seq) AS (
        SELECT ref FROM stands_for WHERE stands_for.task = low.task AND ref >= low.task
        UNION SELECT ref FROM above JOIN stands_for ON stands_for.task = above.seq WHERE ref >= low.task)
    SELECT seq FROM above);

-- name: flights
-- Of equal work one task leads, and it is alive; whoever waits for it is of its kind, and nobody else is listed.
SELECT task.id, 'waits for equal work that nobody does' AS what, seq, status, reason, flight.leads FROM task
LEFT JOIN flight ON flight.task = seq LEFT JOIN flight AS first ON first.key = flight.key AND first.leads = 1
WHERE reason = 5 AND (flight.task IS NULL OR flight.leads <> 0 OR first.task IS NULL)
UNION ALL
SELECT task.id, 'is over, or held, and still listed for equal work', flight.task, status, reason, leads
FROM flight LEFT JOIN task ON seq = flight.task
WHERE seq IS NULL OR status > 1 OR (leads = 0 AND coalesce(reason, 0) <> 5)
UNION ALL
SELECT task.id, 'leads, and does not know', seq, status, reason, leads
FROM task JOIN flight ON flight.task = seq WHERE flags & 64 = 0 OR (leads = 1 AND status = 1 AND flags & 128 = 0)
UNION ALL
SELECT id, 'runs for equal work, and nobody knows', seq, status, reason, leads
FROM task LEFT JOIN flight ON flight.task = seq WHERE status = 1 AND flags & 128 <> 0 AND coalesce(leads, 0) <> 1
UNION ALL
SELECT task.id, 'is listed for equal work in a way that there is not', seq, status, reason, leads
FROM flight LEFT JOIN task ON seq = flight.task WHERE leads NOT IN (0, 1) OR keep_ms < 0;

-- name: cache
-- What is kept was computed before it is too old, is not negative, and names the blob that it lives in.
SELECT NULL AS id, 'keeps a result of type ' || type || ' wrongly' AS what, bytes, made_ms, expires_ms, flags
FROM cache WHERE bytes < 0 OR expires_ms < made_ms OR used_ms < made_ms OR (flags & 32 <> 0) <> (digest IS NOT NULL)
    OR (digest IS NOT NULL AND digest <> :output_text);

-- name: kept_size
-- The bytes of what is kept are counted as adding them up does.
SELECT NULL AS id, 'counts the bytes of kept results wrongly' AS what, found.counted, found.bytes
FROM (SELECT (SELECT min(bytes) FROM kept_size) AS counted,
    CAST(coalesce((SELECT sum(bytes) FROM cache), 0) AS BIGINT) AS bytes) AS found
WHERE found.counted IS DISTINCT FROM found.bytes;

-- name: owners
-- A claim is held by a worker that has not signed off; so is what a worker says of itself.
SELECT task.id, 'is held by nobody' AS what, seq, owner, worker.ended_ms FROM task LEFT JOIN worker ON worker.id = owner
WHERE owner IS NOT NULL AND (worker.id IS NULL OR worker.ended_ms IS NOT NULL)
UNION ALL
SELECT NULL, 'type ' || serves.type || ' is served by nobody', NULL, serves.worker, worker.ended_ms
FROM serves LEFT JOIN worker ON worker.id = serves.worker WHERE worker.id IS NULL OR worker.ended_ms IS NOT NULL
UNION ALL
SELECT NULL, 'worker ' || name || ' signed off before it started', NULL, id, ended_ms
FROM worker WHERE ended_ms < started_ms - :slack_ms;

-- name: tallies
-- What is kept as a count is what counting gives; status 0 stands for all that have not ended, class 0 for all classes.
-- On a server each worker keeps its own part.
WITH counted AS (
        SELECT class, CASE WHEN status < 2 THEN 0 ELSE status END AS status, count(*) AS n FROM task GROUP BY 1, 2),
    expected AS (
        SELECT class, status, n FROM counted
        UNION ALL SELECT 0, status, CAST(sum(n) AS BIGINT) FROM counted GROUP BY status),
    kept AS (SELECT class, status, CAST(sum(n) AS BIGINT) AS n FROM tally GROUP BY class, status)
SELECT NULL AS id, 'tally is not the count' AS what, class, status, kept.n AS tally, expected.n AS count
FROM expected FULL JOIN kept USING (class, status) WHERE coalesce(expected.n, 0) <> coalesce(kept.n, 0);

-- name: classes
-- Every task is of a class that is there; so is what is told of classes.
SELECT task.id, 'is of no class' AS what, seq, task.class
FROM task LEFT JOIN class ON class.id = task.class WHERE class.id IS NULL
UNION ALL
SELECT NULL, 'class ' || id || ' is of no type, or of no namespace', NULL, id FROM class WHERE type = '' OR namespace = '';

-- name: news
-- What processes are told of is a class.
SELECT NULL AS id, 'news of class ' || news.class || ', which is not there' AS what, count(*) AS rows
FROM news LEFT JOIN class ON class.id = news.class WHERE class.id IS NULL GROUP BY news.class;

-- name: keys
-- An idempotency key belongs to one task of its namespace, and a task has at most one.
SELECT task.id, 'key ' || key || ' belongs to no task of namespace ' || idempotency.namespace AS what,
    idempotency.task AS seq, task.class
FROM idempotency LEFT JOIN task ON seq = idempotency.task LEFT JOIN class ON class.id = task.class
WHERE class.namespace IS DISTINCT FROM idempotency.namespace
UNION ALL
SELECT task.id, 'has ' || count(*) || ' idempotency keys', seq, task.class
FROM idempotency JOIN task ON seq = idempotency.task GROUP BY task.seq HAVING count(*) > 1;

-- name: retried
-- What was retried ended without completing, and what it became is there, newer, of its class, and of it alone.
SELECT old.id, 'was retried as what is not there, or did not end' AS what, retried.task AS seq, again, old.status
FROM retried LEFT JOIN task AS old ON old.seq = retried.task LEFT JOIN task AS fresh ON fresh.seq = again
WHERE old.seq IS NULL OR fresh.seq IS NULL OR old.status < 3 OR again <= retried.task
UNION ALL
SELECT old.id, 'was retried as another kind of task, or as what another one was retried as', retried.task, again, old.status
FROM retried JOIN task AS old ON old.seq = retried.task JOIN task AS fresh ON fresh.seq = again
WHERE fresh.class <> old.class OR EXISTS
    (SELECT 1 FROM retried AS other WHERE other.again = retried.again AND other.task <> retried.task);

-- name: orphans
-- No row speaks of a task that is not there.
SELECT task.id, 'progress without its attempt' AS what, progress.task AS seq, progress.attempt AS n
FROM progress LEFT JOIN task ON seq = progress.task WHERE seq IS NULL OR progress.attempt > task.attempt
UNION ALL
SELECT task.id, 'has an end to pass on and has not ended', seq, status FROM cascade JOIN task ON seq = cascade.task
WHERE status < 2
UNION ALL
SELECT NULL, 'attempt without its task', task, count(*) FROM attempt
WHERE NOT EXISTS (SELECT 1 FROM task WHERE seq = attempt.task) GROUP BY task
UNION ALL
SELECT NULL, 'dependency without its task', child, count(*) FROM edge
WHERE NOT EXISTS (SELECT 1 FROM task WHERE seq = edge.child) GROUP BY child
UNION ALL
SELECT NULL, 'blob without its task', task, count(*) FROM payload_blob
WHERE NOT EXISTS (SELECT 1 FROM task WHERE seq = payload_blob.task) GROUP BY task;

-- name: tombstones
-- What was pruned had ended, and is gone.
SELECT tombstone.id, 'was pruned and had not ended, or is back' AS what, tombstone.status, task.status AS again
FROM tombstone LEFT JOIN task ON task.id = tombstone.id WHERE tombstone.status NOT BETWEEN 2 AND 5 OR seq IS NOT NULL OR length(tombstone.id) <> 16;

-- name: times
-- Nothing started before its time or after its deadline, give or take what two clocks may differ; what ran out of time
-- did not complete.
SELECT id, 'started before not_before or after its deadline' AS what, seq, number, started_ms, not_before_ms,
    deadline_ms
FROM task JOIN attempt ON attempt.task = seq
WHERE started_ms < not_before_ms - :slack_ms OR started_ms > deadline_ms + :slack_ms
UNION ALL
SELECT id, 'completed after its timeout', seq, number, duration_us, timeout_ms, NULL
FROM task JOIN attempt ON attempt.task = seq WHERE outcome = 0 AND duration_us > timeout_ms * 1000
UNION ALL
SELECT id, 'ended before it was submitted', seq, attempt, ended_ms, submitted_ms, NULL
FROM task WHERE ended_ms < submitted_ms - :slack_ms
UNION ALL
SELECT id, 'became ready before it was submitted', seq, attempt, ready_ms, submitted_ms, ended_ms
FROM task WHERE ready_ms < submitted_ms - :slack_ms OR (reason IN (1, 2) AND ready_ms <> submitted_ms);

-- name: ranks
-- A task's place in the order is no later than it came, or than it may start: what is behind that might starve. Nor is it
-- before what may be had: four ageing steps, which whoever submits sets (ten years at most), before it came, or before
-- those came that wait for it, as long ago as that again.
SELECT id, 'stands behind where it can be' AS what, seq, rank, submitted_ms, not_before_ms FROM task
WHERE status < 2 AND rank > submitted_ms AND rank > coalesce(not_before_ms, 0)
UNION ALL
SELECT id, 'stands before where it can be', seq, rank, submitted_ms, not_before_ms FROM task
WHERE status < 2 AND rank < submitted_ms - 5 * :longest_ms;

-- name: groups
-- A task of a group is marked so: limits count only those.
SELECT task.id, 'is marked wrongly as one of a group' AS what, seq, flags, grp
FROM task JOIN class ON class.id = task.class WHERE status < 2 AND (flags & 512 <> 0) <> (grp <> '');

-- name: limits
-- No more tasks of a group are held than its limit allows, or than were when it was set.
SELECT NULL AS id, 'group ' || grp || ' holds more than its limit' AS what, held, concurrency, held_then
FROM (SELECT group_limit.grp, concurrency, held_then, count(*) AS held
    FROM group_limit JOIN class ON class.grp = group_limit.grp AND group_limit.namespace IN ('', class.namespace)
    JOIN task ON task.class = class.id AND owner IS NOT NULL
    GROUP BY group_limit.id, group_limit.grp, concurrency, held_then) AS counted
WHERE held > concurrency AND held > held_then;

-- name: limit_values
-- What a group may do is more than nothing, in a time that is told; what is counted for it is not less than nothing.
SELECT NULL AS id, 'group ' || grp || ' has a limit that can not be' AS what, concurrency, rate, rate_ms, full_us, weight,
    held_then, cost_rate, cost_ms, cost_used, cost_at_ms
FROM group_limit WHERE concurrency < 1 OR rate < 1 OR rate_ms < 1 OR weight <= 0 OR cost_rate < 1 OR cost_ms < 1
    OR (rate IS NULL) <> (rate_ms IS NULL) OR (cost_rate IS NULL) <> (cost_ms IS NULL)
    OR full_us < 0 OR held_then < 0 OR cost_used < 0 OR cost_at_ms < 0;
