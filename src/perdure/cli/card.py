"""`perdure card`: result cards beside each other.

Knows arguments and how differences are laid out. Imports no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import SETTINGS, _complete, epilog
from perdure.cli._layout import columns, width

EXAMPLES = """
perdure card diff runs/a/seed_0 runs/b/seed_0
perdure card diff card.json runs/b/seed_0 --measured
"""
app = typer.Typer(
    help="Result cards: what a number was made of.",
    epilog=epilog(EXAMPLES),
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings=SETTINGS,
)


@app.callback()
def _cards() -> None:
    """Result cards: what a number was made of."""


@app.command("diff", epilog=epilog(EXAMPLES), context_settings=SETTINGS)
def diff(
    a: Annotated[Path, typer.Argument(help="a run, or a card.json", metavar="A", autocompletion=_complete.runs)],
    b: Annotated[Path, typer.Argument(help="another", metavar="B", autocompletion=_complete.runs)],
    measured: Annotated[
        bool, typer.Option("--measured", help="also what was measured: scores, times, versions")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> int:
    """List every field in which two cards differ: settings, weights, data, code, seeds.

    The exit code is 1 if any does.
    """
    from perdure.files.text_files import to_json
    from perdure.reporting.card import compare_cards
    from perdure.run_folder import run_files

    found = compare_cards(run_files.card_of(a)[0], run_files.card_of(b)[0], measured=measured)
    if as_json:
        print(to_json([each._asdict() for each in found], indent=1))
    elif found:
        rows = [[each.field, f"{_said(each.a)} | {_said(each.b)}"] for each in found]
        print("\n".join(columns([["field", f"{a} | {b}"], *rows], total=width())))
    else:
        print("no difference")
    return int(bool(found))


def _said(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
