"""Write the pages of docs/ that are made from the code. Run it after changing what they show."""

from __future__ import annotations

from pathlib import Path

from mainspring.tasks import lifecycle
from mainspring.tasks.identity import TaskStatus

DOCS = Path(__file__).resolve().parent.parent / "docs"

LIFECYCLE = """\
# Life of a task

What may become what. The store refuses every other change. {final} are final: nothing leaves them. This page
is made from `mainspring.tasks.lifecycle` by `python scripts/generate_docs.py`.

{table}
"""


def pages() -> dict[str, str]:
    """Return each generated page's text by its file name."""
    final = [status.name for status in TaskStatus if status.is_final]
    names = f"{', '.join(final[:-1])} and {final[-1]}"
    return {"lifecycle.md": LIFECYCLE.format(final=names, table=lifecycle.as_markdown())}


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)


if __name__ == "__main__":
    main()
