"""The command `perdure`: one file of this folder is one command.

Knows how a command is found, and how an error becomes one message and an exit code. Does not know what
any command does. Only the file of the command that is asked for is imported, and none imports torch
before it works: help answers at once.

A file holds `command`, a function for typer, or `app`, a typer of several; and `EXAMPLES`, shown in its help.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

if TYPE_CHECKING:
    from perdure.errors import PerdureError

ORDER = ("demo", "run", "list", "show", "cp", "check", "data", "predict", "chat", "serve", "score", "report", "export")
ORDER += ("update", "versions", "promote", "rollback", "audit", "repro", "card")
"""Commands as they are listed; others follow by name."""
EXAMPLES = """
perdure run mg_clip/microworld
perdure check my.yaml method.lr=1e-4
"""
INTERNAL = 70
"""Exit code of a bug of ours (EX_SOFTWARE)."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: 0 done, 1 found faults in data, 2 wrong input, 3 an update that its gate refused,
    70 a bug, 130 stopped."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    given = [a for a in given if a != "--debug"]
    if not debug:
        _quieten()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII locale loses nothing and ends nothing
    plain, sys.stdout = sys.stdout, Escaping(sys.stdout) if sys.stdout.isatty() else sys.stdout
    try:
        code = _run(given, debug=debug)
    finally:
        sys.stdout = plain
    sys.exit(code)


class Escaping(io.TextIOBase):
    """Standard output on a terminal, which obeys control characters in names and in what files hold: shown escaped."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain
        """For what draws on the terminal itself."""

    def write(self, text: str) -> int:
        from perdure.errors import printable

        if not isinstance(text, str):  # so that who tries bytes, as click does, learns that this is for text
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.plain.write(printable(text))
        return len(text)

    def flush(self) -> None:
        self.plain.flush()

    def isatty(self) -> bool:
        return self.plain.isatty()

    def fileno(self) -> int:
        return self.plain.fileno()

    @property
    def encoding(self) -> str:
        return self.plain.encoding


def _run(given: list[str], *, debug: bool) -> int:
    from perdure.errors import PerdureError, RecipeError, printable, refused_by_system, too_little_memory

    try:
        code = application(given[:1])(args=given, prog_name="perdure", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PerdureError as error:
        if debug:
            traceback.print_exc()
        _say(str(_with_what_goes_on(error, given)), alike=isinstance(error, RecipeError))
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except BrokenPipeError:  # `perdure list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except Exception as error:
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is not None and isinstance(code, int):  # typer's own: usage
            show(said := io.StringIO())
            print(printable(said.getvalue()), file=sys.stderr, end="")
            return code
        refused = refused_by_system(error) if isinstance(error, OSError) else too_little_memory(error)
        if refused is None:
            return _bug(error, debug=debug)
        if debug:
            traceback.print_exc()
        _say(str(refused))
        return refused.exit_code


def _with_what_goes_on(error: PerdureError, given: Sequence[str]) -> PerdureError:
    """A stop says what to type to go on: the same again, but for `--again`."""
    from perdure.errors import Interrupted

    if not isinstance(error, Interrupted) or error.todo:
        return error
    words = ["perdure", *(word for word in given if word != "--again")]
    return Interrupted(error.what, where=error.where, expected=error.expected, todo=f"To go on: {shlex.join(words)}")


def _quieten() -> None:
    """What libraries have to say to programmers is not for users: warnings of what will change, and advice."""
    import logging
    import warnings

    for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.filterwarnings("ignore", category=kind)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # where it is installed, peft loads it in every run, and it says that an optional kernel is missing
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _say(text: str, *, alike: bool = False, then: Callable[[], str] = str) -> None:
    """A message on standard error; of several processes of a run, one says it, and who that is if it is not the first.

    Args:
        alike: settings are the same in every process, so the first is to say what is wrong with them.
        then: gives the end of the message, which may differ from process to process.
    """
    from perdure.errors import printable

    rank = os.environ.get("RANK", "0")
    if (alike and rank != "0") or not _first_to_say(text):
        return
    print(printable(f"{'' if rank == '0' else f'process {rank}: '}{text}{then()}"), file=sys.stderr)


def _first_to_say(text: str) -> bool:
    """Whether no other process that the same launcher started has said it in the last minute: an empty file tells."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    started = f"{os.getppid()} {os.environ.get('MASTER_PORT', '')} {text}"
    digest = hashlib.sha256(started.encode(errors="backslashreplace")).hexdigest()[:24]
    mark = Path(tempfile.gettempdir()) / f"perdure-said-{digest}"
    try:
        if mark.exists() and time.time() - mark.stat().st_mtime > 60:
            mark.unlink(missing_ok=True)
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # no place for the file: better twice than never
    return True


def _bug(error: Exception, *, debug: bool) -> int:
    """One line and the path of the trace."""
    if debug:
        traceback.print_exc()
    text = "".join(traceback.format_exception(error))
    said = f"internal error: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    _say(said, then=lambda: f"; trace: {_trace(text)}")
    return INTERNAL


def _trace(text: str) -> str:
    """The path of a file that holds the trace; how to see it where no file can be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="perdure-trace-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(f"{' '.join(sys.argv)}\n\n{text}")
    except OSError:
        return "add --debug"
    return file.name


def application(wanted: list[str]):
    """The typer command: with the one that is wanted, else with all."""
    app = typer.Typer(
        help="Adapt pretrained models to a changing world without losing what they know.",
        epilog=epilog(EXAMPLES) + "\n\nWith --debug, any command shows the traceback of an error.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        invoke_without_command=True,
        context_settings=SETTINGS,
    )
    app.callback()(_top)
    names = commands()
    completing = any(name.endswith("_COMPLETE") for name in os.environ if name.startswith("_PERDURE"))
    for name in wanted if wanted and wanted[0] in names and not completing else names:
        module = import_module(f"perdure.cli.{name}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name, epilog=epilog(module.EXAMPLES), context_settings=SETTINGS)(module.command)
    return typer.main.get_command(app)


SETTINGS = {"help_option_names": ["-h", "--help"]}


def commands() -> list[str]:
    """Names of all commands: the files of this folder."""
    found = {f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_")}
    return [n for n in ORDER if n in found] + sorted(found - set(ORDER))


def epilog(examples: str) -> str:
    """Examples at the foot of a help text."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines())


def _top(version: Annotated[bool, Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from perdure import __version__

        print(f"perdure {__version__}")
        raise SystemExit(0)
