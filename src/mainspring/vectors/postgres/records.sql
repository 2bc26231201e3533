-- Made with the first collection. {vector} is the schema of the extension.
-- One table for all collections: the type of `vector` leaves the dimension open, and each collection may have an HNSW
-- index of its own over the rows that are its (see hnsw.py). A table for each collection would need a statement text
-- for each, and rights to make tables for whoever writes the first record.
CREATE TABLE vector_record (
    n          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    collection integer NOT NULL,
    id         bytea NOT NULL,             -- UTF-8, as `text`: a value of type text can't hold the character 0
    labels     uuid[] NOT NULL,            -- hashes of collection, key and value of the metadata: filters ask for them
    metadata   text NOT NULL,              -- JSON, as it was given
    vector     {vector}.vector NOT NULL,   -- float32, unit length
    text       bytea,
    UNIQUE (collection, id)
);
-- Within the row where it can be: a search reads all vectors and the texts of a few.
ALTER TABLE vector_record ALTER COLUMN vector SET STORAGE MAIN;
CREATE INDEX vector_record_labels ON vector_record USING gin (labels);
