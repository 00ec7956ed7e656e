"""`perdure chat`: a conversation with a run that answers questions, about pictures or a video, turn by turn.

Knows what is typed and what a conversation has come to. Does not know how a method answers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside

EXAMPLES = """
perdure chat runs/sefe-coin_qwen/seed_0 before.jpg after.jpg
perdure chat runs/sefe-coin_qwen/seed_0 clip.mp4
printf 'What is it?\\nWhich color has it?\\n' | perdure chat runs/sefe-coin_qwen/seed_0 cat.jpg
"""
HELP = "/image FILE shows another picture, /reset begins anew, an empty line ends."


def command(
    run: Annotated[
        Path, typer.Argument(help="folder of a run, or RUN@3", metavar="RUN", autocompletion=_complete.runs)
    ],
    files: Annotated[list[Path] | None, typer.Argument(help="pictures, or a video", metavar="FILE...")] = None,
    task: Annotated[str, typer.Option("--task", help="of a run whose tasks ask different things: which")] = "",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
) -> None:
    """Talk with a vision-language model (`vlm`): each answer knows all that was said before.

    One line is one turn; a line `/image FILE` shows another picture, `/reset` begins anew, an empty line ends.
    Answers are greedy, as in the run's tests.
    """
    from perdure.errors import PerdureError, RecipeError, printable

    with libraries_aside():
        from perdure import prediction

        loaded = prediction.load(run, device=device)
    if (kind := loaded.query(task).kind) != "instruct":
        raise RecipeError(f"its tasks are of kind {kind}", where=str(run), expected="a run that answers questions")
    if not loaded.converses:
        todo = "Ask them: perdure predict RUN FILE."
        raise RecipeError("it answers single questions", where=str(run), expected="a run of a `vlm`", todo=todo)
    talk = Talk(list(files or []))
    if sys.stdin.isatty():
        print(f"{loaded.opened.folder}: {HELP}", file=sys.stderr)
    while line := sys.stdin.readline().strip():
        try:
            if line == "/reset":
                talk = Talk(list(files or []))
            elif line.startswith("/image "):
                talk.show(Path(line.removeprefix("/image ").strip()))
            else:
                with libraries_aside():
                    (row,) = loaded.predict([talk.question(line)], task=task)
                talk.answered(line, row["answer"])
                print(row["answer"], flush=True)
        except PerdureError as fault:
            if not talk.said and not sys.stdin.isatty():
                raise
            print(printable(str(fault)), file=sys.stderr)


@dataclass
class Talk:
    """What has been shown and said."""

    new: list[Path] = field(default_factory=list)
    """Files that the next turn shows."""
    shown: list[Path] = field(default_factory=list)
    """Files of earlier turns."""
    said: list[dict[str, str]] = field(default_factory=list)
    """Earlier turns, as records have them."""

    def show(self, file: Path) -> None:
        """Show a picture or a video with the next turn. DataError if it is not there."""
        from perdure.errors import DataError

        if not file.exists():
            raise DataError("there is no such file", where=str(file))
        self.new.append(file)

    def question(self, text: str) -> dict[str, Any]:
        """The next turn with all before it, as `Loaded.predict` takes it. DataError where pictures and videos mix."""
        from perdure.errors import DataError
        from perdure.videos import is_video

        files = [*self.shown, *self.new]
        films = [file for file in files if is_video(file)]
        if films and len(files) > 1:
            raise DataError("a conversation shows pictures, or one video", where=str(films[0]), todo="Type /reset.")
        about: dict[str, Any] = {"video": films[0]} if films else {"image": files} if files else {}
        return {**about, "text": self._marked(text), "said": self.said, "name": text}

    def answered(self, text: str, answer: str) -> None:
        """Keep a turn and its answer."""
        self.said += [{"from": "human", "value": self._marked(text)}, {"from": "gpt", "value": answer}]
        self.shown, self.new = [*self.shown, *self.new], []

    def _marked(self, text: str) -> str:
        """A turn that says where what is new is shown."""
        from perdure.videos import is_video

        marks = "".join("<video>" if is_video(file) else "<image>" for file in self.new)
        return f"{marks}\n{text}" if marks else text
