-- What runs on connections of users, in their transactions. STORE stands for the schema. Each value is in a CAST where its
-- type is not plain (`::` means something else to SQLAlchemy).

-- name: look
-- Where this connection leads, and what it may do there. It reads catalogs alone, so that it fails nowhere: an error would
-- undo what the user has done so far.
SELECT CAST(current_database() AS text), CAST(store.oid AS bigint), current_setting('transaction_read_only') = 'on',
    has_schema_privilege(space.oid, 'USAGE') AND has_table_privilege(inbox.oid, 'SELECT')
    AND has_table_privilege(inbox.oid, 'INSERT') AND has_table_privilege(store.oid, 'SELECT')
    AND (SELECT bool_and(has_function_privilege(ours.oid, 'EXECUTE')) FROM pg_catalog.pg_proc AS ours
        WHERE ours.pronamespace = space.oid AND ours.proname IN ('inbox_of_ids', 'inbox_of_keys'))
FROM (VALUES (1)) AS one
LEFT JOIN pg_catalog.pg_namespace AS space ON space.nspname = 'STORE'
LEFT JOIN pg_catalog.pg_class AS inbox ON inbox.relnamespace = space.oid AND inbox.relname = 'inbox'
LEFT JOIN pg_catalog.pg_class AS store ON store.relnamespace = space.oid AND store.relname = 'store';

-- All others find no row where the identity is another store's: on two servers the rest may be alike.

-- name: put
-- New tasks, in their order, and a word to the processes that becomes theirs to hear with the commit.
WITH here AS (SELECT 1 FROM STORE.store WHERE CAST(identity AS text) = $1),
    put AS (
        INSERT INTO STORE.inbox (id, namespace, key, task)
        SELECT v.id, v.namespace, v.key, v.task
        FROM unnest(CAST($2 AS bytea[]), CAST($3 AS text[]), CAST($4 AS text[]), CAST($5 AS bytea[]))
            WITH ORDINALITY AS v (id, namespace, key, task, at)
        WHERE EXISTS (SELECT 1 FROM here) ORDER BY v.at
        ON CONFLICT (id) DO NOTHING
        RETURNING 1)
SELECT (SELECT count(*) FROM put), CAST(pg_current_xact_id() AS text), CAST(pg_notify($6, $7) AS text) FROM here;

-- name: of_ids
-- One row without a task where there is none.
SELECT found.id, found.task, CAST(found.xid AS text)
FROM STORE.store LEFT JOIN STORE.inbox_of_ids(CAST($2 AS bytea[])) AS found ON true
WHERE CAST(store.identity AS text) = $1;

-- name: of_keys
-- One row without a task where there is none.
SELECT found.namespace, found.key, found.task, CAST(found.xid AS text)
FROM STORE.store LEFT JOIN STORE.inbox_of_keys(CAST($2 AS text[]), CAST($3 AS text[])) AS found ON true
WHERE CAST(store.identity AS text) = $1 ORDER BY found.n;
