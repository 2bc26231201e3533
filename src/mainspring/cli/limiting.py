"""`limit`: what groups may do at once, and how to change it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.exits import NOT_FOUND, OK
from mainspring.cli.opening import opened, run
from mainspring.cli.options import DEFAULT_STORE, AsJson, StorePath
from mainspring.cli.screen import Screen, table

if TYPE_CHECKING:
    from mainspring.engine import Engine
    from mainspring.tasks import GroupLimit

limit = typer.Typer()

_Group = Annotated[str, typer.Argument(metavar="GROUP", help="As tasks name it.")]
_Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only its tasks in this namespace; default: those in all together.")
]


@limit.callback(invoke_without_command=True)
def list_limits(context: typer.Context, store: StorePath = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List limits and shares, with what they count now."""
    if context.invoked_subcommand is None:
        run(_list(store, Screen(as_json)))


async def _list(store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        await _show(engine, screen)


@limit.command("set")
def set_limit(
    group: _Group,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="How many may be claimed or run at once; default: any number.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/TIME", help='How many may begin in a time, as "60/m" or "5/30s".')
    ] = None,
    cost_rate: Annotated[
        str | None,
        typer.Option(metavar="N/TIME", help='What those that begin may cost in a time, such as tokens: "90000/m".'),
    ] = None,
    namespace: _Namespace = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Set the limits of a group: those that are not given are taken off. Running tasks go on.

    A cost rate that is taken off is forgotten, with what is used of it: set again it begins anew, without a debt.
    """
    run(_set(group, concurrency, rate, cost_rate, namespace, store, Screen(as_json)))


async def _set(
    group: str, concurrency: int | None, rate: str | None, cost_rate: str | None, namespace: str | None, store: str,
    screen: Screen,
) -> None:  # fmt: skip
    async with opened(store) as engine:
        await engine.limit(group, namespace=namespace, concurrency=concurrency, rate=rate, cost_rate=cost_rate)
        await _show(engine, screen)


@limit.command()
def remove(
    group: _Group, namespace: _Namespace = None, store: StorePath = DEFAULT_STORE, as_json: AsJson = False
) -> int:
    """Take the limits of a group off, and forget what is used of its rates, debts of costs as well."""
    return run(_remove(group, namespace, store, Screen(as_json)))


async def _remove(group: str, namespace: str | None, store: str, screen: Screen) -> int:
    async with opened(store) as engine:
        is_there = any((one.group, one.namespace) == (group, namespace) for one in await engine.limits())
        if is_there:
            await engine.limit(group, namespace=namespace)
        else:
            screen.note("there is no such limit")
        await _show(engine, screen)
    return OK if is_there else NOT_FOUND


@limit.command()
def share(
    weight: Annotated[
        float | None, typer.Argument(metavar="[WEIGHT]", help="Turns for each one of weight 1; none: no share.")
    ] = None,
    group: Annotated[str | None, typer.Option(metavar="NAME", help="The share of this group.")] = None,
    namespace: _Namespace = None,
    store: StorePath = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Give a group or a namespace a share of the lanes by weight, or take it away."""
    run(_share(weight, group, namespace, store, Screen(as_json)))


async def _share(weight: float | None, group: str | None, namespace: str | None, store: str, screen: Screen) -> None:
    async with opened(store) as engine:
        await engine.share(weight, group=group, namespace=namespace)
        await _show(engine, screen)


async def _show(engine: Engine, screen: Screen) -> None:
    found = await engine.limits()
    if screen.as_json:
        screen.document({"limits": found})
    elif found:
        right = ("running", "rate", "may begin now", "cost rate", "left", "share")
        screen.draw(table(("group", "namespace", *right), [_row(one) for one in found], right=right))
    else:
        screen.text("no group is limited")


def _row(one: GroupLimit) -> tuple[str, ...]:
    running = f"{one.held:,}" if one.concurrency is None else f"{one.held:,}/{one.concurrency:,}"
    left = "" if one.left is None else f"{one.left:,}"
    share = "" if one.share is None else f"{one.share:g}"
    cost_left = "" if one.cost_left is None else f"{math.floor(one.cost_left):,}"
    where = one.namespace or "all together"
    return one.group or "all", where, running, one.rate or "", left, one.cost_rate or "", cost_left, share
