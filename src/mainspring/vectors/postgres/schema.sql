-- Made with the tasks' tables: it needs no extension.
CREATE TABLE vector_collection (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text COLLATE "C" NOT NULL UNIQUE,
    dim        integer NOT NULL CHECK (dim > 0),
    model_id   text,
    records    bigint NOT NULL DEFAULT 0 CHECK (records >= 0),
    updated_ms bigint NOT NULL
);
