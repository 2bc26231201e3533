"""Whether more tasks can come to a batch: told by the groups of those that came lately."""

from __future__ import annotations

from collections.abc import Iterable

from tests.conformance.kit import WORK

from mainspring.dispatch.arrivals import Arrivals
from mainspring.store.base import Claimed


def claim(group: str, *, is_last: bool = True) -> Claimed:
    """A task of this group, which may have no more of them held where it is the last."""
    return Claimed(bytes(16), 1, WORK, b"", seq=1, owner=1, class_key=("default", WORK, group), is_last=is_last)


def came(*groups: str, at: Iterable[float]) -> Arrivals:
    arrivals = Arrivals(1.0)
    for group, now in zip(groups, at, strict=True):
        arrivals.came(claim(group), now)
    return arrivals


def test_what_came_long_ago_is_not_waited_for() -> None:
    """Lately is for as long as a batch waits: up to then a task of no group has others wait."""
    arrivals = Arrivals(1.0)
    arrivals.came(claim("", is_last=False), 0.0)
    arrivals.came(claim("a"), 0.5)
    assert not arrivals.are_all(1.0, [])
    assert arrivals.are_all(1.25, [])


def test_who_comes_again_came_lately() -> None:
    """Also where others came in between, and no more: they neither hide it nor are taken for it."""
    assert came("a", "b", "a", at=(0.0, 0.5, 0.9)).are_all(1.75, [])
    arrivals = Arrivals(1.0)
    for now, group in enumerate(("", "a", "b", "")):
        arrivals.came(claim(group, is_last=group != ""), now / 4)
    assert not arrivals.are_all(1.4, [])


def test_what_ends_leaves_a_place() -> None:
    """Until another has taken it; that is no arrival, and its group is waited for no longer than before."""
    arrivals = came("a", "b", "d", at=(0.0, 5.0, 5.25))
    arrivals.ended([claim("a"), claim("c")])
    assert arrivals.are_all(5.5, [])
    arrivals.ended([claim("b")])
    assert not arrivals.are_all(5.5, [])
    arrivals.came(claim("b"), 5.75)
    assert arrivals.are_all(5.75, [])


def test_who_runs_will_leave_a_place() -> None:
    arrivals = came("a", "b", at=(0.0, 0.0))
    assert not arrivals.are_all(0.5, [claim("c"), claim("b")])
    assert arrivals.are_all(0.5, [claim("c")])


def test_where_nobody_came_lately_all_may_come() -> None:
    assert not came("a", at=(0.0,)).are_all(2.0, [])
    assert not Arrivals(1.0).are_all(0.0, [])


def test_of_very_many_groups_those_that_came_first_are_forgotten() -> None:
    """What is kept does not grow with the number of tenants."""
    arrivals = came(*map(str, range(10_000)), at=[0.0] * 10_000)
    assert arrivals.are_all(0.5, [claim("1")])
    assert not arrivals.are_all(0.5, [claim("9999")])
