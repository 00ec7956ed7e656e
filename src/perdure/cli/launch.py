"""`perdure launch`: where the configurations of accelerate lie, by which a run is started in several processes.

Knows their names and first lines. Starts nothing and imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FOLDER = Path(__file__).parent.parent / "runtime" / "launch"
EXAMPLES = """
perdure launch
perdure launch fsdp
accelerate launch --config_file $(perdure launch fsdp) -m perdure run sefe/coin stream.root=/data/CoIN
"""


def configurations() -> dict[str, Path]:
    """Files by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def command(
    name: Annotated[
        str, typer.Argument(help="one of those listed", autocompletion=lambda: list(configurations()))
    ] = "",
) -> None:
    """Print the path of a configuration for `accelerate launch`, or list them."""
    from perdure.cli._layout import columns, width
    from perdure.errors import RecipeError

    found = configurations()
    if not name:
        heads = [[n, f.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")] for n, f in found.items()]
        print("\n".join(columns(heads, total=width())))
    elif name in found:
        print(found[name])
    else:
        raise RecipeError(f"there is no configuration `{name}`", expected="one of " + ", ".join(found))
