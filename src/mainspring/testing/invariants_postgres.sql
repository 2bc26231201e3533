-- What must hold, where Postgres has to be told in its own words.

-- name: payloads
-- A payload that lives in a blob keeps that blob.
SELECT id, 'does not keep the blob of its input' AS what, seq, encode(input, 'escape') AS digest FROM task
WHERE flags & 16 <> 0 AND NOT EXISTS (SELECT 1 FROM payload_blob WHERE digest = encode(input, 'escape') AND task = seq)
UNION ALL
SELECT id, 'does not keep the blob of its output', seq, encode(output, 'escape') FROM task
WHERE flags & 32 <> 0 AND NOT EXISTS (SELECT 1 FROM payload_blob WHERE digest = encode(output, 'escape') AND task = seq);

-- name: vectors
-- A collection counts its records; they have its dimension.
SELECT NULL AS id, 'collection ' || name || ' counts other records than it has' AS what, records, found.n AS found
FROM vector_collection, LATERAL (SELECT count(*) AS n FROM vector_record WHERE collection = vector_collection.id) AS found
WHERE records <> found.n
UNION ALL
SELECT NULL, 'record ' || encode(vector_record.id, 'escape') || ' has no collection, or not its dimension', n,
    :extension.vector_dims(vector)
FROM vector_record LEFT JOIN vector_collection ON vector_collection.id = collection
WHERE dim IS NULL OR :extension.vector_dims(vector) <> dim;
