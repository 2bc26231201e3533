-- What must hold, where SQLite has to be told in its own words.

-- name: payloads
-- A payload that lives in a blob keeps that blob.
SELECT id, 'does not keep the blob of its input' AS what, seq,
    CASE WHEN CAST(input AS TEXT) GLOB '*[^0-9a-f]*' THEN hex(input) ELSE CAST(input AS TEXT) END AS digest FROM task
WHERE flags & 16 <> 0 AND NOT EXISTS (SELECT 1 FROM payload_blob WHERE digest = CAST(input AS TEXT) AND task = seq)
UNION ALL
SELECT id, 'does not keep the blob of its output', seq,
    CASE WHEN CAST(output AS TEXT) GLOB '*[^0-9a-f]*' THEN hex(output) ELSE CAST(output AS TEXT) END FROM task
WHERE flags & 32 <> 0 AND NOT EXISTS (SELECT 1 FROM payload_blob WHERE digest = CAST(output AS TEXT) AND task = seq);

-- name: vectors
-- A collection counts its records; they have its dimension, their labels, and no tombstone.
SELECT NULL AS id, 'collection ' || name || ' counts other records than it has' AS what, records,
    (SELECT count(*) FROM vector_record WHERE collection = vector_collection.id) AS found
FROM vector_collection WHERE records <> found
UNION ALL
SELECT NULL, 'record ' || vector_record.id || ' has no collection, or not its dimension', row, length(vector) / 4
FROM vector_record LEFT JOIN vector_collection ON vector_collection.id = collection
WHERE dim IS NULL OR length(vector) <> 4 * dim
UNION ALL
SELECT NULL, 'label ' || key || ' without its record', vector_label.row, vector_label.collection
FROM vector_label LEFT JOIN vector_record ON vector_record.row = vector_label.row
    AND vector_record.collection = vector_label.collection WHERE vector_record.row IS NULL
UNION ALL
SELECT NULL, 'record ' || vector_record.id || ' has other labels than metadata', vector_record.row, coalesce(labelled.n, 0)
FROM vector_record LEFT JOIN (SELECT collection, row, count(*) AS n FROM vector_label GROUP BY collection, row) AS labelled
    ON labelled.row = vector_record.row AND labelled.collection = vector_record.collection
WHERE coalesce(labelled.n, 0) <> CASE WHEN json_valid(metadata) THEN (SELECT count(*) FROM json_each(metadata)) ELSE -1 END
UNION ALL
SELECT NULL, 'record deleted and still there, or after the newest version', vector_tombstone.row, vector_tombstone.version
FROM vector_tombstone JOIN vector_collection ON vector_collection.id = vector_tombstone.collection
    LEFT JOIN vector_record ON vector_record.row = vector_tombstone.row
WHERE vector_record.row IS NOT NULL OR vector_tombstone.version > vector_collection.version;
