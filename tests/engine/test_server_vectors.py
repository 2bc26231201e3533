"""Vectors of an engine on a server: the built-in operations, and one transaction with the task that wrote them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import postgres
from tests.engine.programs import Programs
from tests.engine.support import engine_on, until, value

from mainspring.errors import StoreRefused
from mainspring.processors.operations import upsert_task
from mainspring.tasks import VectorRecord

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    yield postgres.address_of(tmp_path)
    postgres.drop(postgres.schema_of(tmp_path))


class Lengths:
    def embed(self, texts: list[str]) -> Any:
        return np.array([[len(text), 1.0] for text in texts], np.float32)


async def test_the_built_in_operations(store: str) -> None:
    """Embed, upsert, search, get, delete: values and handles, filters, collections of different dimensions."""
    async with engine_on(store) as engine:
        engine.models.register("lengths", Lengths())
        texts = ["a", "bb", "ccccc"]
        vectors = await engine.submit(engine.embed, texts, model_id="lengths")
        stored = await engine.submit(
            engine.upsert, "docs", vectors, ids=texts, texts=texts, model_id="lengths",
            metadata=[{"even": len(text) % 2 == 0} for text in texts],
        )  # fmt: skip
        assert (await value(stored)).count == 3
        await engine.upsert("other", [[1.0, 0.0, 0.0]], ids=["x"])
        found = await engine.search("ccccc", collection="docs", top_k=2)
        assert [(hit.id, hit.text) for hit in found] == [("ccccc", "ccccc"), ("bb", "bb")]
        assert found[0].score == pytest.approx(1)
        assert [hit.id for hit in await engine.search("bb", collection="docs", filter={"even": True})] == ["bb"]
        assert [hit.id for hit in await engine.search([1.0, 0.0, 0.0], collection="other")] == ["x"]
        assert [(c.name, c.dim, c.count, c.model_id) for c in engine.vectors.collections()] == [
            ("docs", 2, 3, "lengths"), ("other", 3, 1, None),
        ]  # fmt: skip
        await asyncio.to_thread(engine.vectors.delete, "docs", filter={"even": False})
        assert [hit.id for hit in await engine.search("a", collection="docs")] == ["bb"]


FALLS = """
SET search_path = {schema};
CREATE TABLE falling (is_on boolean NOT NULL);
INSERT INTO falling VALUES (true);
CREATE SEQUENCE falls;
CREATE FUNCTION fall() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM nextval('falls'), pg_terminate_backend(pg_backend_pid()) FROM falling;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER falls AFTER INSERT ON vector_record DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION fall()
"""
"""Kills the writer's backend within its commit, when all is written, as long as there is a row."""


async def test_records_are_there_if_and_only_if_the_task_completed(store: str, tmp_path: Path) -> None:
    """Killed between the writes and the commit there is neither; afterwards both, once."""
    schema = postgres.schema_of(tmp_path)
    async with engine_on(store) as engine:
        await engine.upsert("docs", [[1.0, 0.0]], ids=["first"])
        postgres.command(FALLS.format(schema=schema))
        handle = await engine.submit(engine.upsert, "docs", [[0.0, 1.0]], ids=["second"])
        await until(lambda: postgres.ask(f"SELECT last_value FROM {schema}.falls")[0][0] > 1)
        assert [record.id for record in engine.vectors.get("docs", ["first", "second"])] == ["first"]
        assert not (await handle.info()).status.is_final
        postgres.command(f"DELETE FROM {schema}.falling")
        assert (await value(handle)).count == 1
        assert [record.id for record in engine.vectors.get("docs", ["first", "second"])] == ["first", "second"]
        assert [collection.count for collection in engine.vectors.collections()] == [2]
        assert [attempt.outcome for attempt in (await handle.info()).attempts] == ["completed"]


ODD_ONES = """
WITH done AS (SELECT key FROM {schema}.idempotency JOIN {schema}.task ON seq = idempotency.task WHERE status = 2),
    written AS (SELECT convert_from(id, 'UTF8') AS key FROM {schema}.vector_record)
(SELECT key FROM done EXCEPT SELECT key FROM written) UNION ALL (SELECT key FROM written EXCEPT SELECT key FROM done)
"""
"""Tasks that completed without their record, and records without theirs, at one moment."""


async def test_workers_that_are_killed_leave_no_record_without_its_task(store: str, tmp_path: Path) -> None:
    """Looked at all the time while one worker after the other dies: each record appears with the end of its task."""
    programs, schema = Programs(tmp_path, store), postgres.schema_of(tmp_path)
    many = 400
    try:
        async with programs.looking() as client:
            await asyncio.to_thread(client.vectors.upsert, "docs", [VectorRecord("0", [1.0, 0.0])])
            await asyncio.to_thread(client.vectors.delete, "docs", ["0"])
            tasks = [upsert_task("docs", [[1.0, n]], ids=[str(n)], idempotency_key=str(n)) for n in range(many)]
            handles = await client.submit_all(tasks)
            for share in (0.1, 0.3, 0.5, 0.7):
                program = await programs.running()
                while (await client.manager.stats()).get("completed", 0) < share * many:
                    assert postgres.ask(ODD_ONES.format(schema=schema)) == []
                program.kill()
                assert postgres.ask(ODD_ONES.format(schema=schema)) == []
            await programs.running()
            for handle in handles:
                await value(handle)
            assert postgres.ask(ODD_ONES.format(schema=schema)) == []
            assert [collection.count for collection in client.vectors.collections()] == [many]
    finally:
        programs.end()


async def test_a_refused_write_fails_its_task_and_no_other(store: str, tmp_path: Path) -> None:
    """Without the extension a task that writes vectors fails with what to do; the tasks beside it complete."""
    with postgres.own_database(tmp_path, "t_engine_guest") as address:
        engine = engine_on(address)

        @engine.task
        async def same(n: int) -> int:
            return n

        async with engine:
            bad = await engine.submit(engine.upsert, "docs", [[1.0, 0.0]], ids=["a"], max_retries=0)
            good = await engine.map(same, range(50))
            with pytest.raises(StoreRefused, match="CREATE EXTENSION vector"):
                await value(bad)
            assert [await value(handle) for handle in good] == list(range(50))
            assert engine.vectors.collections() == []
