-- What makes a schema of one version a schema of the next: run in one transaction when such a store is opened.

-- name: to_2
CREATE TABLE cache (
    key        bytea    PRIMARY KEY,
    namespace  text     NOT NULL,
    type       text     NOT NULL,
    version    text     NOT NULL,
    output     bytea    NOT NULL,
    flags      integer  NOT NULL,
    digest     text,
    bytes      bigint   NOT NULL,
    made_ms    bigint   NOT NULL,
    expires_ms bigint   NOT NULL,
    used_ms    bigint   NOT NULL
);
CREATE INDEX cache_expires ON cache (expires_ms);
CREATE INDEX cache_used ON cache (used_ms, bytes);
CREATE INDEX cache_digest ON cache (digest) WHERE digest IS NOT NULL;

CREATE TABLE flight (
    task    bigint  PRIMARY KEY,
    key     bytea    NOT NULL,
    leads   smallint NOT NULL,
    keep_ms bigint   NOT NULL
);
CREATE UNIQUE INDEX flight_leader ON flight (key) WHERE leads = 1;
CREATE INDEX flight_followers ON flight (key) WHERE leads = 0;

-- name: to_3
CREATE TABLE usage (
    worker  integer PRIMARY KEY,
    at_ms   bigint  NOT NULL,
    figures text    NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE TABLE offer (
    worker bigint PRIMARY KEY,
    at_ms  bigint NOT NULL,
    state  text   NOT NULL
);
ALTER TABLE news ADD COLUMN rank bigint NOT NULL DEFAULT -9223372036854775808;
CREATE FUNCTION inbox_of_ids(ids bytea[]) RETURNS SETOF inbox
    LANGUAGE sql STABLE SET search_path FROM CURRENT
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$SELECT * FROM inbox WHERE inbox.id = ANY (ids)$$;
CREATE FUNCTION inbox_of_keys(namespaces text[], keys text[]) RETURNS SETOF inbox LANGUAGE plpgsql STABLE
    SET search_path FROM CURRENT SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$BEGIN
        FOR at IN 1 .. cardinality(keys) LOOP
            RETURN QUERY SELECT * FROM inbox WHERE inbox.namespace = namespaces[at] AND inbox.key = keys[at];
        END LOOP;
    END$$;
CREATE INDEX class_group ON class (grp);
CREATE INDEX task_slot ON task (class) WHERE owner IS NOT NULL AND flags & 512 <> 0;
UPDATE task SET flags = flags | 512 WHERE class IN (SELECT id FROM class WHERE grp <> '');
CREATE TABLE group_limit (
    id          integer PRIMARY KEY,
    concurrency integer CHECK (concurrency > 0),
    rate        integer CHECK (rate > 0),
    rate_ms     bigint,
    full_us     bigint  NOT NULL DEFAULT 0,
    weight      double precision CHECK (weight > 0),
    held_then   integer NOT NULL,
    changed     bigint  NOT NULL UNIQUE,
    namespace   text    NOT NULL,
    grp         text    NOT NULL,
    UNIQUE (grp, namespace),
    CHECK ((rate IS NULL) = (rate_ms IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX attempt_ended ON attempt (ended_ms);
ALTER TABLE pause ADD COLUMN who text NOT NULL DEFAULT '';
ALTER TABLE worker ADD COLUMN slots text;

-- name: to_4
CREATE TABLE kept_size (
    bytes    bigint NOT NULL,
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
INSERT INTO kept_size (bytes) SELECT coalesce(sum(bytes), 0) FROM cache;
CREATE FUNCTION count_cache() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$BEGIN
        IF TG_OP = 'INSERT' THEN
            UPDATE kept_size SET bytes = kept_size.bytes + (SELECT coalesce(sum(came.bytes), 0) FROM came);
        ELSIF TG_OP = 'DELETE' THEN
            UPDATE kept_size SET bytes = kept_size.bytes - (SELECT coalesce(sum(went.bytes), 0) FROM went);
        ELSE
            UPDATE kept_size SET bytes = kept_size.bytes + new.bytes - old.bytes;
        END IF;
        RETURN NULL;
    END$$;
CREATE TRIGGER cache_came AFTER INSERT ON cache REFERENCING NEW TABLE AS came EXECUTE FUNCTION count_cache();
CREATE TRIGGER cache_went AFTER DELETE ON cache REFERENCING OLD TABLE AS went EXECUTE FUNCTION count_cache();
CREATE TRIGGER cache_changed AFTER UPDATE OF bytes ON cache FOR EACH ROW EXECUTE FUNCTION count_cache();
ALTER TABLE group_limit ADD COLUMN cost_rate bigint CHECK (cost_rate > 0);
ALTER TABLE group_limit ADD COLUMN cost_ms bigint;
ALTER TABLE group_limit ADD COLUMN cost_used double precision NOT NULL DEFAULT 0;
ALTER TABLE group_limit ADD COLUMN cost_at_ms bigint NOT NULL DEFAULT 0;
ALTER TABLE group_limit ADD CHECK ((cost_rate IS NULL) = (cost_ms IS NULL));
