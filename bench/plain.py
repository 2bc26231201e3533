"""A client without an engine: it inserts, claims and finishes rows in batches, each with a commit that is synced.

What several of these gain over one is what a machine lets several engines gain. As a program it prepares, says `ready`,
does its share when it is told to, and says `done`; it imports nothing of ours, so that it starts quickly.
"""

from __future__ import annotations

import asyncio
import sys

import asyncpg

TABLE = """
CREATE SCHEMA {schema};
CREATE TABLE {schema}.job (n bigserial PRIMARY KEY, status smallint NOT NULL DEFAULT 0, owner integer,
    input bytea NOT NULL, output bytea);
CREATE INDEX job_ready ON {schema}.job (n) WHERE status = 0;
"""
_INSERT = "INSERT INTO {schema}.job (input) SELECT $1 FROM generate_series(1, $2)"
_CLAIM = """UPDATE {schema}.job SET status = 1, owner = $1 WHERE n = ANY (ARRAY(
    SELECT n FROM {schema}.job WHERE status = 0 ORDER BY n LIMIT $2 FOR UPDATE SKIP LOCKED)) RETURNING n, input"""
_FINISH = """UPDATE {schema}.job SET status = 2, owner = NULL, output = v.output
    FROM unnest($1::bigint[], $2::bytea[]) AS v (n, output) WHERE job.n = v.n"""
_BATCH = 128
_PAYLOAD = b"x" * 100


async def _work(url: str, schema: str, number: int, n: int) -> None:
    connection = await asyncpg.connect(url)
    insert, claim, finish = [await connection.prepare(sql.format(schema=schema)) for sql in (_INSERT, _CLAIM, _FINISH)]
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.readline)
    left = n
    while left:
        some = min(left, _BATCH)
        await insert.fetch(_PAYLOAD, some)
        rows = await claim.fetch(number, some)
        await finish.fetch([row[0] for row in rows], [row[1] for row in rows])
        left -= some
    print("done", flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
