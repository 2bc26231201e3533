"""The credibility of the tests of moves: one safeguard taken out at a time, and the test that must notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import iscoroutinefunction, signature
from typing import Any
from unittest import mock

import pytest
from tests.cli import test_migrate as arrivals
from tests.cli import test_migrate_refusals as refusals

from mainspring.cli import moving
from mainspring.config import StoreConfig
from mainspring.errors import TaskError
from mainspring.store.moving import end, tables
from mainspring.store.moving.end import End
from mainspring.store.moving.file import FileEnd
from mainspring.store.moving.marks import Mark
from mainspring.store.moving.server import ServerEnd
from mainspring.store.postgres import store as of_servers
from mainspring.store.sqlite import store as of_files
from mainspring.testing import history

Patch = AbstractContextManager[Any]


def replaced(owner: Any, name: str, by: Any) -> Patch:
    return mock.patch.object(owner, name, by)


def without(owner: Any, name: str) -> Patch:
    return replaced(owner, name, lambda *given: None)


class _Anything(dict[str, str]):
    def __contains__(self, name: object) -> bool:
        return True


_put_mark = End.put_mark


def _of_targets_alone(self: End, mark: Mark) -> None:
    if mark.role == "target":
        _put_mark(self, mark)


def _transaction_that_stays(self: Any) -> Patch:
    """What was written before an error is not taken back."""
    return nullcontext()


@contextmanager
def _no_look_at_blobs() -> Iterator[None]:
    """Neither beside those of the source, nor as part of a sound store."""
    with (
        replaced(moving, "missing_blobs", lambda *given: iter(())),
        replaced(history, "_unsound_blobs", lambda *given: []),
    ):
        yield


ABLATIONS: dict[str, tuple[Callable[[], Patch], Callable[..., Any], dict[str, Any]]] = {
    "pages without a note of their place": (
        lambda: without(End, "turn_page"),
        refusals.test_a_server_that_dies,
        {"way": ("file", "server")},
    ),
    "a page that stays without its place, in a file": (
        lambda: replaced(FileEnd, "transaction", _transaction_that_stays),
        arrivals.test_a_page_and_its_place_are_one,
        {"kind": "file"},
    ),
    "a page that stays without its place, on a server": (
        lambda: replaced(ServerEnd, "transaction", _transaction_that_stays),
        arrivals.test_a_page_and_its_place_are_one,
        {"kind": "server"},
    ),
    "a file opens that is half filled, or was moved": (
        lambda: without(of_files, "refuse_moved"),
        refusals.test_a_target_that_is_half_there_stays_closed,
        {"kind": "server"},
    ),
    "a server opens that is half filled, or was moved": (
        lambda: without(of_servers, "refuse_moved"),
        refusals.test_a_target_that_is_half_there_stays_closed,
        {"kind": "file"},
    ),
    "whoever was taken for dead joins anew": (
        lambda: without(of_servers, "refuse_moved"),
        refusals.test_who_was_taken_for_dead_learns_of_it,
        {},
    ),
    "the source is not marked": (
        lambda: replaced(End, "put_mark", _of_targets_alone),
        refusals.test_a_source_that_was_moved_says_where_to,
        {"kind": "file"},
    ),
    "a file takes writes meanwhile": (
        lambda: replaced(FileEnd, "hold", _transaction_that_stays),
        refusals.test_nobody_comes_in_meanwhile,
        {"kind": "file"},
    ),
    "users write meanwhile": (
        lambda: replaced(ServerEnd, "hold", ServerEnd.transaction),
        refusals.test_users_wait_meanwhile,
        {},
    ),
    "users write afterwards": (lambda: without(ServerEnd, "part"), refusals.test_users_wait_meanwhile, {}),
    "a file that is in use is moved": (
        lambda: without(moving, "refuse_living"),
        refusals.test_who_comes_at_the_last_moment,
        {"kind": "file"},
    ),
    "a server that is in use is moved": (
        lambda: without(moving, "refuse_living"),
        refusals.test_who_comes_at_the_last_moment,
        {"kind": "server"},
    ),
    "what comes late is left behind": (
        lambda: without(End, "refuse_coming"),
        refusals.test_what_users_submitted_comes_along,
        {},
    ),
    "a target with something in it is cleared": (
        lambda: without(End, "refuse_filled"),
        refusals.test_a_target_that_holds_something,
        {"kind": "server"},
    ),
    "a part of another store is gone on with": (
        lambda: without(moving, "_refuse_part"),
        refusals.test_a_part_of_another_store,
        {},
    ),
    "a copy that is older than the source is gone on with": (
        lambda: replaced(End, "origin", lambda self: ""),
        refusals.test_a_target_that_is_half_there_stays_closed,
        {"kind": "file"},
    ),
    "rows are not compared": (
        lambda: replaced(moving, "differences", lambda *given: iter(())),
        arrivals.test_a_difference_is_found,
        {"way": ("file", "server"), "spoil": arrivals.spoil_a_row},
    ),
    "collections are not compared": (
        lambda: replaced(End, "collections", lambda self: []),
        arrivals.test_a_difference_is_found,
        {"way": ("server", "file"), "spoil": arrivals.add_a_collection},
    ),
    "blobs are not compared": (
        _no_look_at_blobs,
        arrivals.test_a_difference_is_found,
        {"way": ("file", "server"), "spoil": arrivals.spoil_a_blob},
    ),
    "invariants are not looked at": (
        lambda: replaced(moving, "_broken", lambda *given: []),
        arrivals.test_what_was_broken_before_is_told,
        {},
    ),
    "numbers begin anew": (lambda: without(ServerEnd, "set_numbers"), arrivals.test_numbers_are_never_given_again, {}),
    "whoever settles a store prunes it": (
        lambda: replaced(moving, "_KEEP_ALL", StoreConfig()),
        arrivals.test_nothing_is_pruned_on_the_way,
        {"kind": "file"},
    ),
    "blobs of kept results are nobody's": (
        lambda: replaced(end, "_DIGESTS", ("payload_blob", "blob_key")),
        arrivals.test_blobs_of_kept_results_come_along,
        {},
    ),
    "tables that nobody knows stay behind": (
        lambda: replaced(tables, "OTHERWISE", _Anything()),
        refusals.test_tables_of_others_are_not_left_behind,
        {},
    ),
}
"""What is taken out, by what a move does without it; with the test that has to fail then."""


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_is_noticed(name: str, request: pytest.FixtureRequest) -> None:
    """The test fails without the safeguard; that it passes as it is shows elsewhere."""
    ablated, test, given = ABLATIONS[name]
    fixtures = {name: request.getfixturevalue(name) for name in signature(test).parameters if name not in given}
    with ablated(), pytest.raises((AssertionError, pytest.fail.Exception, TaskError)):
        _run(test, {**given, **fixtures})


def _run(test: Callable[..., Any], given: dict[str, Any]) -> None:
    if iscoroutinefunction(test):
        asyncio.run(test(**given))
    else:
        test(**given)
