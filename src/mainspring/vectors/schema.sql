-- Vectors live in the file of the tasks and change in the transaction that completes a task.
-- A record's row is written once, deleted once and never updated; AUTOINCREMENT never gives its number again. Hence a
-- process that knows all rows up to n catches up by reading rows above n and the tombstones of newer versions.

CREATE TABLE IF NOT EXISTS vector_collection (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    dim        INTEGER NOT NULL CHECK (dim > 0),
    model_id   TEXT,
    metric     TEXT    NOT NULL DEFAULT 'cosine' CHECK (metric = 'cosine'),
    version    INTEGER NOT NULL DEFAULT 0,                      -- grows by one with each effect that changed something
    floor      INTEGER NOT NULL DEFAULT 0 CHECK (floor <= version), -- tombstones up to this version are gone: read all anew
    records    INTEGER NOT NULL DEFAULT 0 CHECK (records >= 0),
    updated_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS vector_record (
    row        INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL REFERENCES vector_collection (id),
    id         TEXT    NOT NULL,
    metadata   TEXT    NOT NULL CHECK (json_valid(metadata)),
    vector     BLOB    NOT NULL CHECK (length(vector) % 4 = 0), -- float32, little endian, unit length
    text       TEXT,                                            -- last: a long one is not read on the way to the vector
    UNIQUE (collection, id)
) STRICT;

CREATE INDEX IF NOT EXISTS vector_record_order ON vector_record (collection);

-- One line for each top-level key of a record's metadata: filters are looked up here.
CREATE TABLE IF NOT EXISTS vector_label (
    collection INTEGER NOT NULL,
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,                                -- a quote and a short text, else canonical JSON or its hash
    row        INTEGER NOT NULL,
    PRIMARY KEY (collection, key, value, row)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS vector_tombstone (
    collection INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    row        INTEGER NOT NULL,
    PRIMARY KEY (collection, version, row)
) STRICT, WITHOUT ROWID;
