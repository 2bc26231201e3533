"""Submitting, looking, waiting and acting, while a worker runs in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import apsw
import numpy as np
import pytest
from tests.cli.conftest import Answer, Worker, finished, started
from tests.engine.support import LIMIT_S, engine_on

from mainspring import Engine, Resources, TaskId
from mainspring.cli.submit import submit
from mainspring.processors.custom import SubmitOptions

Run = Callable[..., Answer]


@pytest.fixture
def here(shop: Worker, call) -> Run:
    """Run a command in this process, in the worker's folder."""
    return partial(call, folder=shop.folder)


def submitted(here: Run, *arguments: str) -> str:
    answer = here("submit", *arguments)
    assert answer.code == 0, answer.err
    return answer.out.strip()


@pytest.fixture
def held(here: Run, shop: Worker) -> Iterator[str]:
    """A task that runs until it is cancelled."""
    id = submitted(here, "custom:hold", json.dumps({"until": str(shop.folder / "never")}))
    while here("ps", "--status", "running", "--json").json == []:
        pass
    yield id
    here("cancel", id)
    here("wait", id)


def test_submit_and_wait_print_the_value_alone(run, shop: Worker) -> None:
    """From one process to another and back: stdout has the handler's value, stderr the id."""
    answer = run("submit", "custom:resize", '{"width": 3}', "--priority", "high", "--wait", folder=shop.folder)
    assert (answer.code, answer.json) == (0, {"area": 9})
    assert answer.err.startswith("mainspring: task ")
    assert shop.ready["store"] == str(shop.folder / "mainspring.db")


@pytest.mark.anyio
async def test_submit_obeys_the_queue_of_those_who_work(run: Run, tmp_path: Path) -> None:
    """A command has no `queue_size` of its own."""
    engine = engine_on(tmp_path / "mainspring.db", queue_size=1)

    @engine.task
    async def idle() -> None: ...

    async with engine:
        await engine.manager.pause()
        async with asyncio.timeout(LIMIT_S):
            while not await engine.manager.store.usages():  # noqa: ASYNC110 - the store has no event for it
                await asyncio.sleep(0.02)
        answers = [await asyncio.to_thread(run, "submit", "custom:idle", folder=tmp_path) for _ in range(2)]
    assert [answer.code for answer in answers] == [0, 4]
    assert "more than queue_size = 1 of those who work" in answers[1].err


def test_submit_prints_the_id_and_takes_the_handlers_options(here: Run) -> None:
    """The handler's code is not here: its declared timeout and retries come from the store, ours go first."""
    id = submitted(here, "custom:resize", '{"width": 1}', "--max-retries", "2", "--metadata", "team=search")
    assert str(TaskId(id)) == id
    shown = here("show", id, "--json").json
    assert (shown["timeout"], shown["max_retries"], shown["metadata"]) == (3600.0, 2, {"team": "search"})


def test_submit_says_what_a_task_needs(here: Run) -> None:
    """Sizes as they are printed elsewhere; what is not said is as in `Resources`, and said again it replaces all."""
    options = ["--cpu", "2", "--memory", "1.5GiB", "--gpu", "0.5", "--custom", "seat=1", "--custom", "license=0.5"]
    id = submitted(here, "custom:resize", '{"width": 1}', "--delay", "1h", *options)
    needs = {"cpu": 2.0, "memory": 3 << 29, "gpu": 0.5, "custom": {"seat": 1.0, "license": 0.5}}
    assert here("show", id, "--json").json["resources"] == needs
    plain = submitted(here, "custom:resize", '{"width": 1}', "--delay", "1h", "--memory", "4096")
    assert here("show", plain, "--json").json["resources"] == {"cpu": 1.0, "memory": 4096, "gpu": 0.0, "custom": {}}


def test_submit_has_every_option_of_the_call(here: Run) -> None:
    """Under the names that the call has; what a task needs is said kind by kind."""
    taken = get_type_hints(submit, include_extras=True)
    named = {word for name, hint in taken.items() for word in (name, *_words(hint))}
    asked = {*SubmitOptions.__struct_fields__, *Resources.__struct_fields__, "model_id", "wait_for_room"}
    asked.remove("resources")
    assert asked <= {name.removeprefix("--").replace("-", "_") for name in named}
    key = ("--idempotency-key", "by-the-name-of-the-call", "--delay", "1h")
    id = submitted(here, "custom:resize", '{"width": 1}', *key)
    assert here("show", id, "--json").json["idempotency_key"] == "by-the-name-of-the-call"
    refused = here("submit", "model_inference", "--text", "one", "--model-id", "nosuch")
    assert (refused.code, "nosuch" in refused.err) == (2, True)


def _words(hint: Any) -> Iterable[str]:
    return [word for option in getattr(hint, "__metadata__", ()) for word in option.param_decls or ()]


def test_a_submit_may_keep_its_result(here: Run) -> None:
    """For as long as it says, though its handler keeps none; 0 computes anew."""
    hits = []
    for keep in ("1h", "1h", "0"):
        id = submitted(here, "custom:resize", '{"width": 271}', "--cache", keep)
        assert here("wait", id).code == 0
        hits.append(here("show", id, "--json").json["metrics"]["cache_hit"])
    assert hits == [False, True, False]
    assert here("cache", "purge", "--type", "resize", "--json").json == {"purged": 1}


def test_submit_waits_for_room(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it was told to, or for ever; without the option it waits for nothing."""
    asked: list[Any] = []
    entered = Engine.submit

    def submit(engine: Engine, *args: Any, wait_for_room: Any = 0, **options: Any) -> Any:
        asked.append(wait_for_room)
        return entered(engine, *args, wait_for_room=wait_for_room, **options)

    monkeypatch.setattr(Engine, "submit", submit)
    for option in ((), ("--wait-for-room", "2m"), ("--wait-for-room", "forever")):
        submitted(here, "custom:resize", '{"width": 1}', *option)
    assert asked == [0, 120.0, None]


def test_a_key_stores_one_task(here: Run) -> None:
    """The same key and payload give the same task, and both say so; another payload is a conflict."""
    first = here("submit", "custom:resize", '{"width": 4}', "--key", "k", "--json", "--wait").lines
    second = here("submit", "custom:resize", '{"width": 4}', "--key", "k", "--json", "--wait").lines
    assert [first[0]["existed"], second[0]["existed"]] == [False, True]
    assert first[1] == second[1]
    assert (first[1]["status"], first[1]["value"]) == ("completed", {"area": 12})
    other = here("submit", "custom:resize", '{"width": 5}', "--key", "k")
    assert (other.code, other.out) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"widht": 3}', "mainspring: widht = 3: is no parameter of resize; resize takes (width, height)\n"),
        (
            '{"width": "a"}',
            "mainspring: width = 'a': width is no integer; pass what resize is annotated with\n",
        ),
        ("{}", "mainspring: resize misses width; resize takes (width, height)\n"),
    ],
)
def test_arguments_are_checked_without_the_code(here: Run, arguments: str, why: str) -> None:
    """What a handler does not take is refused before anything is stored."""
    assert here("submit", "custom:resize", arguments) == Answer(2, "", why)


def test_bytes_are_base64_in_json(here: Run) -> None:
    """A handler that wants bytes gets those that stand in the JSON."""
    assert here("submit", "custom:size", '{"data": "AP8B"}', "--wait").out == "3\n"
    assert "data is no bytes" in here("submit", "custom:size", '{"data": "?"}').err


def test_an_unknown_handler_is_refused_with_those_there_are(here: Run) -> None:
    """Exit code 2, and the names to choose from."""
    answer = here("submit", "custom:nope", "{}")
    assert answer.code == 2
    assert "custom:resize" in answer.err


def test_built_in_types_take_text_files_and_json(here: Run, shop: Worker) -> None:
    """The three ways to give an input, with options of the type."""
    (shop.folder / "page.html").write_text("<p>Hello <b>you</b></p>")
    text = here("submit", "text_processing", "--text", "one   two", "--wait")
    file = here(
        *("submit", "text_processing", "--file", "page.html", "--wait"),
        *("--params", '{"steps": [{"step": "extract", "kind": "html"}]}'),
    )
    stored = here("submit", "data_storage", '{"kind": "text", "text": "kept"}', "--params", '{"key": "a"}', "--wait")
    found = here("submit", "data_retrieval", "--text", "a", "--params", '{"as": "text"}', "--wait")
    assert [answer.code for answer in (text, file, stored, found)] == [0, 0, 0, 0], file.err
    assert (text.out, file.out.strip(), found.out) == ("one two\n", "Hello you", "kept\n")
    assert stored.json["key"] == "a"


def test_a_failing_task_fails_the_wait(run, here: Run, shop: Worker) -> None:
    """Exit code 1 with the error in one line; control characters of a task do not reach the terminal."""
    answer = run("submit", "custom:refuse", '{"why": "no\\n\\u001b[31mway"}', "--wait", folder=shop.folder)
    assert (answer.code, answer.out) == (1, "")
    id, error = answer.err.splitlines()
    assert error == "mainspring: Permanent: no \\x1b[31mway"
    waited = here("wait", id[-12:], "--json")
    assert (waited.code, waited.err) == (1, "")
    assert [(line["status"], line["error"]["type"]) for line in waited.lines] == [("failed", "Permanent")]
    result = here("result", id[-12:], "--json")
    assert (result.code, result.out) == (1, "")
    told = json.loads(result.err)["error"]
    assert (told["type"], told["attempts"], told["exit_code"]) == ("ProcessingFailed", 1, 1)


def test_wait_tells_of_each_task_and_fails_for_one(here: Run) -> None:
    """One line a task, each once; 0 only when all completed."""
    good = [submitted(here, "custom:resize", '{"width": 1}'), submitted(here, "custom:in_child", '{"n": 1}')]
    assert here("wait", *good, good[0], "--json").code == 0
    bad = submitted(here, "custom:refuse", '{"why": "no"}')
    answer = here("wait", *good, bad, "--json")
    assert answer.code == 1
    assert {line["id"]: line["status"] for line in answer.lines} == {
        good[0]: "completed",
        good[1]: "completed",
        bad: "failed",
    }


def test_a_wait_ends_when_its_time_is_over(here: Run, held: str) -> None:
    """Exit code 5; the task goes on."""
    answer = here("wait", held, "--timeout", "50ms", "--json")
    assert (answer.code, answer.out) == (5, "")
    assert json.loads(answer.err)["error"]["type"] == "TaskTimeout"
    assert here("show", held, "--json").json["status"] == "running"


def test_a_wait_without_time_looks_once(here: Run, held: str) -> None:
    """What has ended is told; exit code 5 only where something has not."""
    id = here("submit", "custom:resize", '{"width": 9}', "--json", "--wait").lines[0]["id"]
    for limit in ("0", "1ms"):
        answer = here("wait", id, "--timeout", limit, "--json")
        assert (answer.code, answer.err, [line["status"] for line in answer.lines]) == (0, "", ["completed"])
        answer = here("wait", id, held, "--timeout", limit, "--json")
        assert (answer.code, [line["id"] for line in answer.lines]) == (5, [id])
        assert "1 of 2 tasks have not ended" in answer.err
    assert here("wait", str(TaskId.new()), "--timeout", "0").code == 3


def test_ctrl_c_ends_a_wait_and_not_the_task(here: Run, held: str, shop: Worker) -> None:
    """Exit code 130, without a traceback."""
    waiting = started("wait", held, folder=shop.folder)
    while waiting.pid not in _opened_by(shop.folder):
        pass
    waiting.send_signal(signal.SIGINT)
    assert finished(waiting) == Answer(130, "", "")
    assert here("show", held, "--json").json["status"] == "running"


def _opened_by(folder: Path) -> set[int]:
    """The processes that have the store open."""
    with closing(apsw.Connection(str(folder / "mainspring.db"), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return {pid for (pid,) in connection.execute("SELECT pid FROM worker WHERE ended_ms IS NULL")}


def test_result_writes_what_the_value_is(here: Run, shop: Worker) -> None:
    """Bytes and text as they are, arrays as .npy; JSON on stdout."""
    ids = {kind: submitted(here, "custom:give", json.dumps({"kind": kind})) for kind in ("bytes", "array", "text")}
    assert here("wait", *ids.values()).code == 0
    for kind, id in ids.items():
        assert here("result", id, "--out", kind, "--json").json["out"] == kind
    assert (shop.folder / "bytes").read_bytes() == b"\x00\xff"
    assert np.load(shop.folder / "array").tolist() == [0, 1, 2]
    assert (shop.folder / "text").read_text() == "plain"
    assert here("result", ids["array"]).json == [0.0, 1.0, 2.0]
    assert here("result", ids["text"]).out == "plain\n"
    assert here("result", ids["bytes"], "--json").json == "AP8="
    refused = here("result", ids["text"], "--out", "nofolder/x")
    assert (refused.code, refused.out) == (2, "")


def test_bytes_go_through_a_pipe_untouched(here: Run, shop: Worker) -> None:
    """Without --out the bytes are on stdout, and nothing else."""
    id = submitted(here, "custom:give", '{"kind": "bytes"}')
    assert here("wait", id).code == 0
    with (shop.folder / "piped").open("wb") as piped:
        assert finished(started("result", id, folder=shop.folder, stdout=piped.fileno())).code == 0
    assert (shop.folder / "piped").read_bytes() == b"\x00\xff"


def test_a_result_that_is_not_there_yet_is_not_waited_for(here: Run, held: str) -> None:
    """Exit code 1, and how to wait."""
    answer = here("result", held)
    assert (answer.code, answer.out) == (1, "")
    assert "`mainspring wait` waits for it" in answer.err


def test_ids_may_be_cut_to_their_end(here: Run) -> None:
    """Six characters are enough where they are unique; too few, several and none are told apart."""
    ids = [f"0197a000-0000-7000-8000-{n}aaaa{tail}" for n, tail in ((1, "bbbbbbb"), (2, "bbbbbbb"), (3, "ccccccc"))]
    for id in ids:
        assert submitted(here, "custom:resize", '{"width": 1}', "--task-id", id) == id
    assert here("show", "CCCCCC", "--json").json["id"] == ids[2]
    assert here("show", ids[2].replace("-", ""), "--json").json["id"] == ids[2]
    several = here("why", "bbbbbb")
    assert several.code == 2
    assert ids[0] in several.err
    assert ids[1] in several.err
    assert [here("why", text).code for text in ("ccccc", "no-such-id", "dddddd", ids[2][:-1] + "d")] == [2, 2, 3, 3]


def test_nothing_is_done_when_one_id_is_wrong(here: Run, held: str) -> None:
    """All ids are looked up before the first is acted on."""
    answer = here("cancel", held, "dddddd")
    assert (answer.code, answer.out) == (3, "")
    assert here("show", held, "--json").json["cancel_requested"] is False


def test_cancel_says_what_became_of_it(here: Run, shop: Worker, held: str) -> None:
    """Between processes: what had not begun never runs, what runs is asked, what had ended stays as it ended."""
    waiting = submitted(here, "custom:resize", '{"width": 1}', "--delay", "1h")
    done = submitted(here, "custom:resize", '{"width": 1}')
    assert here("wait", done).code == 0
    early = here("cancel", waiting, held, "--json")
    assert early.code == 0
    assert [line["answer"] for line in early.lines] == ["cancelled", "requested"]
    assert [line["status"] for line in here("wait", waiting, held, "--json").lines] == ["cancelled", "cancelled"]
    late = here("cancel", waiting, done, "--json")
    assert late.code == 1
    assert [line["answer"] for line in late.lines] == ["already(cancelled)", "already(completed)"]
    assert here("result", done).json == {"area": 3}


def test_retry_makes_a_new_task_once(here: Run) -> None:
    """The old one names the new one; what did not fail can't be retried."""
    id = submitted(here, "custom:refuse", '{"why": "no"}')
    assert here("wait", id).code == 1
    (line,) = here("retry", id, "--json").lines
    assert here("show", line["retried_as"], "--json").json["retry_of"] == id
    assert here("show", id, "--json").json["retried_as"] == line["retried_as"]
    assert here("retry", id).code == 2
    done = submitted(here, "custom:resize", '{"width": 1}')
    assert here("wait", done).code == 0
    assert here("retry", done).code == 2


def test_a_pause_holds_in_every_process_until_it_is_taken_back(here: Run) -> None:
    """Only what is named waits, `why` names the pause, and only the same words take it back."""
    assert here("pause", "--type", "custom:resize", "--json").json["pauses"][0]["type"] == "custom:resize"
    id = submitted(here, "custom:resize", '{"width": 1}')
    other = submitted(here, "custom:in_child", '{"n": 1}')
    assert here("wait", other).code == 0
    assert "paused (type custom:resize)" in here("why", id).out
    wrong = here("resume")
    assert (wrong.code, wrong.out) == (3, "paused: type custom:resize\n")
    assert here("stats", "--json").json["pauses"][0]["type"] == "custom:resize"
    assert here("resume", "--type", "custom:resize").code == 0
    assert here("wait", id).code == 0


def test_a_pause_of_what_is_not_there_is_told(here: Run) -> None:
    """It holds for what comes; a name that is mistyped is seen, and one that can't be is refused."""
    for option, name in (("--type", "custom:resise"), ("--namespace", "prodd"), ("--group", "redd")):
        answer = here("pause", option, name)
        assert answer.code == 0
        assert "there is no such task yet" in answer.err
        assert here("resume", option, name).code == 0
    assert here("wait", submitted(here, "custom:in_child", '{"n": 1}')).code == 0
    for option, name in (("--type", "custom:in_child"), ("--namespace", "default"), ("--type", "custom:resize")):
        answer = here("pause", option, name)
        assert (answer.code, answer.err) == (0, "")
        assert here("resume", option, name).code == 0
    for command in ("pause", "resume"):
        answer = here(command, "--type", "resise")
        assert (answer.code, answer.out, "is no task type" in answer.err) == (2, "", True)
        assert "custom:NAME" in answer.err
        answer = here(command, "--group", "x" * 1000)
        assert answer.code == 2
        assert "group" in answer.err


def test_a_type_goes_by_the_name_of_its_handler(here: Run) -> None:
    """Wherever one is named; one that nobody knows is told as such where it only looks."""
    id = submitted(here, "custom:resize", '{"width": 31}')
    assert here("wait", id).code == 0
    for name in ("resize", "custom:resize"):
        assert id in [row["id"] for row in here("ps", "--type", name, "--json").json]
        assert here("pause", "--type", name, "--json").json["pauses"][0]["type"] == "custom:resize"
        assert here("resume", "--type", name, "--json").json == {"pauses": []}
    assert here("pause", "--type", "custom:to_come").code == 0
    assert here("resume", "--type", "to_come").code == 0
    assert here("ps", "--type", "resize").err == ""
    unknown = here("ps", "--type", "nope")
    assert (unknown.code, "this store knows no type nope; it knows custom:" in unknown.err) == (0, True)
    assert here("ps", "--type", "text_processing").err == ""


def test_a_limit_holds_until_it_is_removed(here: Run) -> None:
    """It is listed with what it counts, `why` knows of it, and mistakes are told."""
    (set_,) = here("limit", "set", "red", "--concurrency", "1", "--json").json["limits"]
    assert (set_["group"], set_["namespace"], set_["concurrency"], set_["held"]) == ("red", None, 1, 0)
    here("limit", "set", "red", "--namespace", "other", "--concurrency", "2", "--rate", "60/m")
    assert [line.split() for line in here("limit").out.splitlines()[1:]] == [
        ["red", "all", "together", "0/1"],
        ["red", "other", "0/2", "60/m", "60"],
    ]
    assert here("wait", submitted(here, "custom:resize", '{"width": 1}', "--group", "red")).code == 0
    assert here("limit", "set", "red", "--concurrency", "0").code == 2
    assert here("limit", "set", "red", "--rate", "often").code == 2
    assert here("limit", "set", "red", "--cost-rate", "often").code == 2
    here("limit", "set", "gold", "--cost-rate", "1,000/d")
    assert here("submit", "custom:resize", '{"width": 1}', "--group", "gold", "--cost", "1001").code == 2
    assert here("submit", "custom:resize", '{"width": 1}', "--group", "gold", "--cost", "400", "--wait").code == 0
    assert here("limit").out.splitlines()[1].split() == ["gold", "all", "together", "0", "1000/d", "600"]
    assert here("limit", "remove", "gold").code == 0
    here("limit", "set", "gold", "--cost-rate", "1,000/d")  # it is a new one
    assert here("limit").out.splitlines()[1].split() == ["gold", "all", "together", "0", "1000/d", "1,000"]
    assert here("limit", "remove", "gold").code == 0
    assert here("limit", "remove", "blue").code == 3
    assert here("limit", "remove", "red", "--namespace", "other").code == 0
    assert here("limit", "share", "2", "--namespace", "other", "--json").json["limits"][0]["share"] == 2.0
    assert here("limit", "share").code == 2
    assert here("limit", "share", "--namespace", "other").code == 0
    assert here("limit", "remove", "red").out == "no group is limited\n"


def test_show_tells_everything(here: Run) -> None:
    """Options, parents, attempts and the error with the end of its traceback."""
    parent = submitted(here, "custom:resize", '{"width": 1}')
    id = submitted(
        *(here, "custom:refuse", '{"why": "no\\u001b[31m"}', "--after", parent[-12:], "--group", "red"),
        *("--on-dependency-failure", "allow_failure", "--priority", "low", "--namespace", "else"),
    )
    assert here("wait", id).code == 1
    told = here("show", id[-8:], "--json").json
    assert (told["dependencies"], told["group"], told["priority"]) == ([parent], "red", "low")
    assert (told["namespace"], told["on_dependency_failure"], told["output"]) == ("else", "allow_failure", None)
    assert [item["outcome"] for item in told["attempts"]] == ["failed"]
    assert "raise Permanent(why)" in told["error"]["traceback"]
    assert told["submitted"].endswith("Z")
    shown = here("show", id).out
    assert all(part in shown for part in (id, parent, "Permanent: no", "raise Permanent(why)", "allow_failure"))
    assert "\x1b" not in shown


def test_why_tells_of_parents_workers_and_times(here: Run, held: str) -> None:
    """The cause for each kind of waiting, and the end of what has ended."""
    child = submitted(here, "custom:resize", '{"width": 1}', "--after", held)
    later = submitted(here, "custom:resize", '{"width": 1}', "--not-before", "2100-01-01T00:00+00:00")
    assert held in here("why", child).out
    assert here("why", later, "--json").json["reason"] == "delayed"
    assert "2100-01-01 00:00:00" in here("why", later).out
    assert here("why", held).out.startswith("It runs")
    assert here("cancel", child, later).code == 0
    assert "cancelled" in here("why", child).out


def test_failures_are_listed_with_their_errors(here: Run) -> None:
    """Failed and timed out ones, the newest first, and no others."""
    id = submitted(here, "custom:refuse", '{"why": "first line\\nsecond"}')
    slow = submitted(here, "custom:hold", '{"until": "never"}', "--timeout", "50ms", "--max-retries", "0")
    assert here("wait", id, slow).code == 1
    newest = here("failures", "--limit", "2", "--json").json
    assert [(row["id"], row["status"]) for row in newest] == [(slow, "timeout"), (id, "failed")]
    assert "Permanent: first line second" in here("failures").out


def test_stats_count_tasks_and_living_workers(here: Run, shop: Worker) -> None:
    """The worker stands there with its process and what it serves; this command's own process does not."""
    stats = here("stats", "--json").json
    assert [(row["name"], row["pid"]) for row in stats["workers"]] == [(shop.ready["worker"], shop.ready["pid"])]
    assert stats["workers"][0]["types"] == shop.ready["types"]
    assert set(stats["tasks"]) == {"pending", "running", "completed", "failed", "cancelled", "timeout"}
    assert f" {shop.ready['pid']} " in here("stats").out


def test_stats_sum_up_costs(here: Run, shop: Worker) -> None:
    """By what is asked for, for people and for programs, and from a moment on."""
    for width in (1, 2):
        here("wait", submitted(here, "custom:resize", json.dumps({"width": width}), "--group", "blue"))
    told = here("stats", "--by", "group", "--by", "type", "--json").json
    assert (told["by"], told["since"], told["pruned"]) == (["type", "group"], None, 0)
    row = next(row for row in told["rows"] if row["group"] == "blue")
    assert (row["type"], row["attempts"], row["outcomes"]) == ("custom:resize", 2, {"completed": 2})
    assert row["cpu_time"]["known"] == 2
    assert "day" not in row
    days = here("stats", "--by", "day", "--since", "1h", "--json").json
    assert len(days["rows"]) in (1, 2)
    shown = here("stats", "--by", "group").out
    assert "group" in shown
    assert "blue" in shown
    assert here("stats", "--by", "group", "--since", "0s", "--json").json["rows"] == []
    for options, why in {
        ("--since", "1h"): "goes with --by",
        ("--by", "day", "--since", "nope"): '"24h" for a day back',
        ("--by", "day", "--since", "2100-01-01"): "is still to come",
    }.items():
        wrong = here("stats", *options)
        assert (wrong.code, why in wrong.err) == (2, True)


def test_watch_shows_progress_on_a_terminal_until_ctrl_c(shop: Worker, held: str) -> None:
    """On a terminal the table may have colours; Ctrl-C gives the terminal back."""
    ours, theirs = pty.openpty()
    watching = started(
        "ps", "--watch", "--status", "running", folder=shop.folder, stdout=theirs, environment={"TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while b"75%" not in seen:
        seen += os.read(ours, 4096)
    watching.send_signal(signal.SIGINT)
    while watching.poll() is None:
        os.set_blocking(ours, False)
        with suppress(BlockingIOError, OSError):
            os.read(ours, 4096)
    os.close(ours)
    assert finished(watching).code == 130
    assert held[-12:].encode() in seen
    assert b"\x1b[1mid" in seen


def test_watch_gives_a_line_a_look_to_programs(shop: Worker, held: str) -> None:
    """With --json each look is one document on a line."""
    watching = started("ps", "--watch", "--status", "running", "--json", folder=shop.folder)
    assert watching.stdout is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(2)]
    watching.send_signal(signal.SIGINT)
    assert finished(watching).code == 130
    assert [[row["id"] for row in look] for look in looks] == [[held], [held]]
    assert looks[0][0]["progress"] == [3.0, 4.0]


def test_lists_follow_pages_and_filters(call, tmp_path: Path) -> None:
    """More than one page of the store's, the newest first, each once; no worker is needed to look."""

    async def fill() -> list[str]:
        async with Engine(tmp_path / "many.db", worker=False) as engine:
            tasks = [engine.build(engine.text, (f"text {n}",), {"namespace": f"n{n % 2}"}) for n in range(450)]
            return [str(handle.id) for handle in await engine.submit_all(tasks)]

    ids = asyncio.run(fill())
    look = partial(call, "ps", "--store", "many.db", "--json")
    assert [row["id"] for row in look("--limit", "430").json] == ids[:-431:-1]
    assert [row["id"] for row in look("--limit", "1000").json] == ids[::-1]
    assert [row["id"] for row in look("--namespace", "n1", "--limit", "210").json] == ids[:29:-2]
    assert len(look("--status", "pending", "--type", "text_processing").json) == 50
    assert look("--type", "custom:x").json == look("--status", "failed").json == []
    assert "no living worker" not in call("why", ids[0], "--store", "many.db").err
    assert "No living worker serves text_processing" in call("why", ids[0], "--store", "many.db").out
    rows = call("ps", "--store", "many.db", "--limit", "3").out.splitlines()
    assert [row.split()[0] for row in rows] == ["id", *(id[-12:] for id in ids[:-4:-1])]


def test_collections_are_listed(call, tmp_path: Path) -> None:
    """Name, size and time of change, in UTC for programs."""

    async def fill() -> None:
        async with Engine(tmp_path / "mainspring.db") as engine:
            await engine.upsert("books", np.eye(3, dtype="float32"), ids=["a", "b", "c"], model_id="none")

    asyncio.run(fill())
    (found,) = call("collections", "--json").json
    assert (found["name"], found["count"], found["dim"], found["model_id"]) == ("books", 3, 3, "none")
    assert found["updated"].endswith("Z")
    assert "books" in call("collections").out


def test_models_are_listed_without_a_store(call) -> None:
    """The default model with its digest, and whether it is here."""
    found = {row["model_id"]: row for row in call("models", "--json").json}
    assert len(found["all-MiniLM-L6-v2"]["digest"]) == 64
    assert isinstance(found["all-MiniLM-L6-v2"]["on_this_machine"], bool)
    assert "all-MiniLM-L6-v2" in call("models").out
    unknown = call("models", "pull", "no-such-model")
    assert (unknown.code, unknown.out) == (2, "")


def test_submit_says_when_nobody_would_run_it(call, tmp_path: Path) -> None:
    """A new store is made by a submit, which says so, and that a worker is missing; with --json it is silent."""
    answer = call("submit", "text_processing", "--text", "a")
    assert answer.code == 0
    assert answer.err.splitlines() == [
        f"mainspring: makes a new store at {tmp_path}/mainspring.db",
        "mainspring: no living worker serves text_processing yet; `mainspring worker` starts one",
    ]
    assert call("submit", "text_processing", "--text", "a", "--json").err == ""


def test_what_is_kept_is_listed_and_forgotten(here: Run) -> None:
    """By type and version of the code; a submitter without it takes part."""
    for _ in range(2):
        assert here("submit", "custom:shout", '{"text": "so"}', "--wait").out == "SO\n"
    (kept,) = here("cache", "--json").json["kept"]
    assert (kept["type"], kept["version"], kept["entries"]) == ("custom:shout", "v2", 1)
    assert kept["age_s"] >= 0
    assert "custom:shout" in here("cache").out
    assert here("cache", "purge", "--type", "custom:shout", "--version", "v1", "--json").json == {"purged": 0}
    unknown = here("cache", "purge", "--type", "shouts")
    assert unknown.code == 2
    assert "type = 'shouts': nobody has registered it; known are custom:" in unknown.err
    assert here("cache", "purge", "--type", "shout").out == "1 kept results are forgotten\n"
    assert "no result is kept" in here("cache").out
    assert here("cache", "purge", "--type", "custom:shout").out == "0 kept results are forgotten\n"
