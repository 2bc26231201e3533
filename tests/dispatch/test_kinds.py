"""Which of many batches may begin, and which of them goes first."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.kit import WORK

from mainspring.dispatch.joined import Group, Key, Member
from mainspring.dispatch.kinds import Kinds
from mainspring.store.base import Claimed
from mainspring.tasks import TaskPriority

NORMAL, HIGH = TaskPriority.NORMAL, TaskPriority.HIGH
KEYS = [Key((kind,), size) for kind in range(4) for size in (1, 8)]


def member(rank: int, until: float, priority: TaskPriority = NORMAL, cost: float = 1.0) -> Member:
    claim = Claimed(bytes(16), 1, WORK, b"", seq=1, owner=1, priority=priority, class_key=("default", WORK, ""))
    return Member((rank, 0), claim, cost, until)


def adds_up(group: Group) -> None:
    """What is known of a group is known of its members."""
    members: Any = group.members
    assert members == sorted(members, key=attrgetter("place"))
    assert group.place == members[0].place
    assert group.until == min(one.until for one in members)
    assert group.cost == sum(one.cost for one in members)
    assert bool(group.urgent) == any(one.claim.priority is HIGH for one in members)


@settings(deadline=None)
@given(st.data())
def test_it_is_what_a_look_at_each_would_find(data: st.DataObject) -> None:
    """However members come and go, whatever becomes of the size of calls, and in whatever steps time passes."""
    full = {key.kind: 3 for key in KEYS}
    kinds = Kinds(lambda group: len(group.members) >= full[group.key.kind])
    now, places = 0.0, data.draw(st.permutations(range(20)))
    while places:
        match data.draw(st.sampled_from(["add", "add", "keep", "take", "learn", "look"])):
            case "add":
                until, priority = data.draw(st.sampled_from([0, 1, 2, 5])), data.draw(st.sampled_from([NORMAL, HIGH]))
                one = member(places.pop(), now + until, priority, data.draw(st.sampled_from([1.0, 2.0])))
                key = data.draw(st.sampled_from(KEYS))
                is_first = not any(group.key == key for group in kinds)
                assert kinds.add(key, one) is is_first
            case "keep" if len(kinds):
                group = data.draw(st.sampled_from(list(kinds)))
                kinds.keep(group, [one for one in group.members if data.draw(st.booleans())])
            case "take" if len(kinds):
                group = data.draw(st.sampled_from(list(kinds)))
                before = group.members
                n = data.draw(st.integers(1, len(before)))
                taken = kinds.take(group, n)
                assert taken == before[:n]
                assert [one for now_in in kinds if now_in is group for one in now_in.members] == before[n:]
            case "learn":
                kind = data.draw(st.sampled_from(KEYS)).kind
                full[kind] = data.draw(st.integers(1, 4))
                kinds.look_again(kind)
            case _:
                now += data.draw(st.integers(0, 2))
                kinds.look(now)
                best_first = sorted(kinds, key=attrgetter("place"))
                ready = [one for one in best_first if one.until <= now or len(one.members) >= full[one.key.kind]]
                assert list(kinds.ready()) == ready
                assert list(kinds.ready(are_all=True)) == best_first
                if len(ready) < len(kinds):
                    assert kinds.next.until == min(one.until for one in best_first if one not in ready)
        for group in kinds:
            adds_up(group)
        assert kinds.queued == sum(len(group.members) for group in kinds)


def test_a_look_costs_what_has_changed() -> None:
    """However many kinds wait, and whether they may begin."""
    asked: list[Group] = []

    def is_closed(group: Group) -> bool:
        asked.append(group)
        return len(group.members) > 1

    kinds = Kinds(is_closed)
    for number in range(3_000):
        kinds.add(Key((number,), 2), member(number, 1.0))
    kinds.look(0.0)
    asked.clear()
    kinds.add(Key((2_000,), 2), member(9_000, 2.0))
    kinds.look(0.5)
    assert [group.key.kind for group in asked] == [(2_000,)]
    assert list(kinds.ready()) == asked
