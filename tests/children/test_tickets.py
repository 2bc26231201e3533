"""Leave to begin, given to one of two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mainspring.children.tickets import Holder, Issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


def test_each_goes_to_one_of_both(issuer: Issuer) -> None:
    """What was begun is not taken back, and what was taken back is not begun."""
    holder = Holder(issuer.descriptor)
    assert [issuer.issue() for _ in range(4)] == [1, 2, 3, 4]
    issuer.give()
    assert holder.may_begin(1)
    assert issuer.take_back() == [2, 3, 4]
    assert issuer.take_back() == []
    assert not any(holder.may_begin(number) for number in (2, 3, 4))
    assert issuer.issue() == 5
    issuer.give()
    assert holder.may_begin(5)


def test_work_that_was_taken_back_uses_up_nothing(issuer: Issuer) -> None:
    """The child hears late of what was sent: by then there is leave for what came after it."""
    holder = Holder(issuer.descriptor)
    issuer.issue()
    assert issuer.take_back() == [1]  # also where it was not given yet
    issuer.issue()
    issuer.give()
    assert not holder.may_begin(1)
    assert holder.may_begin(2)


def test_leave_without_work_is_passed_over(issuer: Issuer) -> None:
    """The work may have been too large to send."""
    holder = Holder(issuer.descriptor)
    issuer.issue()
    issuer.issue()
    issuer.give()
    assert holder.may_begin(2)
