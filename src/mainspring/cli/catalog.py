"""`models`: what tasks can compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mainspring.cli.options import AsJson
from mainspring.cli.screen import Screen, size, table

if TYPE_CHECKING:
    from mainspring.config import ModelConfig
    from mainspring.models import ModelInfo

_DIGEST_CHARS = 12
_HUB = "hf:"

models = typer.Typer()


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the models that workers find on this machine; `models pull` brings them here.

    Models that a worker's own module registers are not among them. Models belong to the machine: there is no --store.
    """
    if context.invoked_subcommand is None:
        from mainspring.models import ModelManager

        manager = ModelManager()
        _show_models(manager.info(), manager.config, Screen(as_json))


@models.command()
def pull(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="An id, or hf:ORG/NAME; default: the sentence model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a model's files onto this machine, if they are not here, and load it once to see that it works."""
    from mainspring.models import ModelManager

    screen = Screen(as_json)
    manager = ModelManager(progress=screen.note)
    model_id = model or manager.config.default_embedding
    if model_id.startswith(_HUB):
        source, model_id = model_id, model_id.removeprefix(_HUB).partition("@")[0]
        manager.register(model_id, source)
    _show_models([manager.warm(model_id)], manager.config, screen)
    manager.close()


def _show_models(found: list[ModelInfo], config: ModelConfig, screen: Screen) -> None:
    here = {info.model_id: _is_here(info, config) for info in found}
    if screen.as_json:
        screen.document(
            [
                {
                    "model_id": info.model_id,
                    "kind": info.kind,
                    "digest": info.digest,
                    "memory_bytes": info.memory_bytes,
                    "concurrency": info.concurrency,
                    "rate": info.rate,
                    "cost_rate": info.cost_rate,
                    "on_this_machine": here[info.model_id],
                }
                for info in found
            ]
        )
        return
    rows = [
        (
            info.model_id,
            info.kind,
            (info.digest or "")[:_DIGEST_CHARS],
            size(info.memory_bytes),
            _limits(info),
            "yes" if here[info.model_id] else "no",
        )
        for info in found
    ]
    screen.draw(table(("model", "kind", "digest", "memory", "limits", "here"), rows, right=("memory",)))


def _limits(info: ModelInfo) -> str:
    at_once = None if info.concurrency is None else f"{info.concurrency:,} at once"
    cost = None if info.cost_rate is None else f"cost {info.cost_rate}"
    return ", ".join(part for part in (at_once, info.rate, cost) if part)


def _is_here(info: ModelInfo, config: ModelConfig) -> bool:
    """Whether the files are on this machine: of the models known beforehand only the pinned one may be missing."""
    from mainspring.models.fetch import ALL_MINILM_L6_V2, is_complete

    return info.model_id != ALL_MINILM_L6_V2.model_id or is_complete(
        ALL_MINILM_L6_V2, config.cache_folder / info.model_id
    )
