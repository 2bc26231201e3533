"""Power cuts and failing disks, at a size for each change: `python -m proof.disk` tries every operation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from proof.disk.campaigns import KINDS, Kind, cut, forgotten, sweep
from proof.faults import ablations
from proof.faults.scenes import Scene, all_scenes, small_steps

SEED = "ci"
FEW = [KINDS[3], KINDS[10]]
"""A full disk that stays so, with half of what was asked for done; and a single error of an operation that was done."""


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_steps():
        yield


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return all_scenes()


@pytest.mark.parametrize("name", ["small", "mixed", "recovery", "upgrade", "engine"])
def test_nothing_acknowledged_is_lost_with_the_power(scenes: dict[str, Scene], name: str) -> None:
    """Whatever unsynced writes a power cut takes along or tears, the file is sound, all that was told is there, and the
    next process brings every task to its end, with nothing left to do for the one after it."""
    found = cut(scenes[name], SEED, stride=4, recover_every=12)
    assert found.violations == {}, found.first
    assert found.cases > 20
    assert found.recovered > 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_answer_is_true_while_the_disk_fails(scenes: dict[str, Scene], kind: Kind) -> None:
    """Wherever it fails: who was told that a task is stored finds it after a death or a power cut right then, who was
    told that nothing was stored finds nothing, and in the end all work is done."""
    found = sweep(scenes["small"], kind, SEED, stride=9)
    assert found.violations == {}, found.first
    assert found.refusals + found.doubts > 0


@pytest.mark.parametrize("kind", FEW, ids=str)
@pytest.mark.parametrize(("name", "stride"), [("mixed", 80), ("recovery", 45), ("engine", 15)])
def test_work_goes_on_when_the_disk_is_well(scenes: dict[str, Scene], kind: Kind, name: str, stride: int) -> None:
    """The same for all that a store does, and for a whole engine, which nobody helps."""
    found = sweep(scenes[name], kind, SEED, stride=stride)
    assert found.violations == {}, found.first
    assert found.cases > 10


@pytest.mark.parametrize("kind", FEW, ids=str)
@pytest.mark.parametrize(("name", "stride"), [("small", 40), ("recovery", 35), ("upgrade", 15)])
def test_a_store_that_could_not_be_opened_can_be_later(
    scenes: dict[str, Scene], kind: Kind, name: str, stride: int
) -> None:
    """A disk that fails while a file is made, migrated or recovered costs that opening alone."""
    found = sweep(scenes[name], kind, SEED, opening=True, stride=stride)
    assert found.violations == {}, found.first


@pytest.mark.parametrize("at", [1, 2])
def test_what_could_not_be_synced_is_written_again(at: int) -> None:
    """Where an opening failed, the system may keep what it can't save: the next one does not build on that."""
    found = forgotten(all_scenes()["recovery"], KINDS[3], at, SEED)
    assert found.violations == {}, found.first
    assert found.cases > 100


# Less safe, and so it must show


def test_a_log_taken_as_it_is_is_found() -> None:
    """Without that, what was told after it is lost, or the file is harmed: that depends on where it was cut."""
    with ablations.a_log_taken_as_it_is():
        found = forgotten(all_scenes()["recovery"], KINDS[3], 1, SEED)
    assert found.violations["lost"] + found.violations["corrupt"] > 0


def test_relaxed_durability_loses_what_it_says() -> None:
    """`durability="relaxed"` loses acknowledged tasks with the power, and never harms the file."""
    found = cut(all_scenes(durability="relaxed")["mixed"], SEED, stride=8)
    assert found.violations["lost"] > 0
    assert found.violations["corrupt"] == 0


@pytest.mark.parametrize(
    ("ablation", "kind"),
    [
        (ablations.synchronous_normal, "lost"),
        (ablations.synchronous_off, "corrupt"),
        (ablations.answers_before_the_commit, "lost"),
        (ablations.effects_in_a_transaction_of_their_own, "half"),
        (ablations.ends_that_travel_later, "broken"),
    ],
)
def test_power_cuts_find_a_missing_safeguard(scenes: dict[str, Scene], ablation: ablations.Ablation, kind: str) -> None:
    with ablation():
        found = cut(scenes["mixed"], SEED, stride=8, recover_every=1000)
    assert found.violations[kind] > 0


@pytest.mark.parametrize(
    ("ablation", "kind"),
    [
        (ablations.no_look_after_a_failed_commit, "untrue"),
        (ablations.a_look_that_writes_nothing, "untrue"),
        (ablations.forgotten_outcomes, "stuck"),
    ],
)
def test_faults_find_a_missing_safeguard(scenes: dict[str, Scene], ablation: ablations.Ablation, kind: str) -> None:
    """At the latest in the third run: what threads bring into one commit differs, and all may fail as it should."""
    with ablation():
        runs = (sweep(scenes["small"], KINDS[10], SEED, only="sync") for _ in range(3))
        assert any(found.violations[kind] for found in runs)


def test_what_is_found_after_a_failed_commit_is_made_last(scenes: dict[str, Scene]) -> None:
    """The look itself writes over what the commit has left in the log; it does not rest on what opening writes."""
    with ablations.opening_that_writes_nothing():
        found = sweep(scenes["small"], KINDS[10], SEED, only="sync")
    assert found.violations == {}, found.first


def test_an_error_means_not_stored_because_commits_only_commit(scenes: dict[str, Scene]) -> None:
    """Where SQLite moves the log into the file by itself, commits fail that are stored; none do with our own step."""
    with ablations.errors_for_stored_commits() as ours:
        sweep(scenes["small"], KINDS[6], SEED, only="sync")
    with ablations.errors_for_stored_commits() as automatic, ablations.autocheckpoint():
        sweep(scenes["small"], KINDS[6], SEED, only="sync")
    assert len(ours) == 0
    assert len(automatic) > 0
