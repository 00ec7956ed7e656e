"""Captions -> words as the COCO evaluation compares them: Stanford's tokenizer, or a fallback that needs no Java.

Knows `pycocoevalcap`'s three Java tools (tokenizer, METEOR, SPICE), what each needs, and how to say that it is not
there. Does not know scores or records. Words come back lower-cased, without punctuation, with single spaces.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from perdure.errors import DataError, MissingExtra
from perdure.files.text_files import lines

Tokenizer = Literal["ptb", "fallback"]
SECONDS = 600.0
"""Time that a Java program has, and a tenth of a second more a caption."""
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
_CONTRACTIONS = re.compile(r"(?i)(?<=\w)(n't|'s|'re|'ve|'ll|'d|'m)(?!\w)")
_JOINED = re.compile(r"(?i)\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(gim|lem)(me)\b")
_WRITTEN = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "“": "``", "”": "''"}
)
"""Brackets and quotes as words."""
_REPLACED = str.maketrans(
    {"‘": "`", "’": "'", "–": "--", "—": "--", "…": "...", "€": "$", "£": " # ", '"': " "}
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
)
_WORD = re.compile(
    r"""
      https?://\S+ | [\w.+-]+@\w[\w-]*(?:\.\w+)+           # addresses
    | </?[A-Za-z][^<>\s]*>                                 # tags of markup
    | \#[^\W\d_]+ | @[A-Za-z_]\w*                          # hashtags, names of accounts
    | n't | '(?:[sSdDmM]|re|ve|ll|RE|VE|LL)(?!\w) | '[nN](?:'|\b) | '\d0s
    | o'clock | \d+(?:[.,:/]\d+)*(?:\w+)?(?:-[^\W\d_]+)*   # numbers, "3d", "7-eleven"
    | (?:mrs?|ms|dr|st|etc|vs|jr|sr|prof)\. | no\.(?=\s*\d)
    | (?-i:[A-Z]+(?:[&+][A-Z]+)+) | [^\W\d_]+[!?][^\W\d_]+ | \w\+\+
    | [^\W_]+(?:(?:[-/.@]|_+)[^\W_]+)*(?:(?<=\.[^\W\d_])\.)?
    | \.\.\. | -- | `` | '' | [!?]{2,} | ([*<>@\#“”])\1+ | [^\w\s] | _+
    """,
    re.VERBOSE | re.IGNORECASE,
)


def has_java() -> bool:
    """Whether `java` can be started."""
    return shutil.which("java") is not None


def default_tokenizer() -> Tokenizer:
    """Stanford's where pycocoevalcap and Java are there, else the fallback."""
    from importlib.util import find_spec

    return "ptb" if find_spec("pycocoevalcap") is not None and has_java() else "fallback"


def tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Each text's words."""
    if tokenizer == "fallback":
        return [fallback(text) for text in texts]
    require("tokenizer")
    from pycocoevalcap.tokenizer import ptbtokenizer

    # The tool reads a line a text, so that a line break within one would shift all that follow.
    flat = [" ".join(text.split()) for text in texts]
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    found = _java(command, flat, tool="Stanford's tokenizer", todo="Set PERDURE_TOKENIZER=fallback.")
    if len(found) < len(flat):
        raise DataError(f"Stanford's tokenizer gave {len(found)} lines for {len(flat)} captions")
    return [" ".join(w for w in line.rstrip().split(" ") if w and w not in PUNCTUATION) for line in found[: len(flat)]]


def fallback(text: str) -> str:
    """Words by regular expressions, as the Penn Treebank's rules give them for captions: brackets are written out
    (``-lrb-``), quotes and sentence marks go. It differs on rare symbols (smileys, runs of several marks)."""
    text = _JOINED.sub(lambda m: " ".join(g for g in m.groups() if g), text.translate(_REPLACED))
    found = (match[0].translate(_WRITTEN) for match in _WORD.finditer(_CONTRACTIONS.sub(r" \1", text)))
    return " ".join(word.lower() for word in found if word not in PUNCTUATION)


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5 of the set and of each caption, by its Java program, on tokenised text."""
    require("METEOR")
    from pycocoevalcap.meteor import meteor as module

    jar = Path(module.__file__).with_name(module.METEOR_JAR)
    command = ["-jar", "-Xmx2G", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    rows = ([*r, c] for c, r in zip(candidates, references, strict=True))
    pairs = [" ||| ".join(["SCORE", *(text.replace("|||", "") for text in row)]) for row in rows]
    with _asking(command, len(pairs), tool="METEOR") as ask:  # one process: its tables take longer than its answers
        counts = [ask(pair, 1)[0] for pair in pairs]
        numbers = [float(line) for line in ask(" ||| ".join(["EVAL", *counts]), len(pairs) + 1)]
    return numbers[-1], numbers[:-1]


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """SPICE of the set."""
    require("SPICE")
    from pycocoevalcap.spice import spice as module

    libraries = Path(module.__file__).with_name("lib")
    if not any(libraries.glob("stanford-corenlp-3.6.0*.jar")):
        raise MissingExtra(
            "SPICE needs Stanford CoreNLP 3.6.0, which is not there",
            where=str(libraries),
            todo="Download stanford-corenlp-full-2015-12-09.zip from nlp.stanford.edu/software and put "
            "stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar into that folder.",
        )
    truth: dict[int, list[Any]] = {i: list(r) for i, r in enumerate(references)}
    with _english():
        score, _ = module.Spice().compute_score(truth, {i: [c] for i, c in enumerate(candidates)})
    return float(score)


def _java(arguments: Sequence[str], given: Sequence[str], *, tool: str, todo: str = "") -> list[str]:
    """The lines that a Java program prints for these lines.

    Raises:
        DataError: it fails, or gives no answer within its time.
    """
    limit = SECONDS + 0.1 * len(given)
    text = "".join(f"{line}\n" for line in given).encode()
    environment = {**os.environ, **_environment()}
    try:
        made = subprocess.run(
            ["java", *arguments], input=text, capture_output=True, check=False, timeout=limit, env=environment
        )
    except subprocess.TimeoutExpired:
        raise _late(tool, limit, todo) from None
    if made.returncode:
        raise _failed(tool, made.stderr, todo)
    return lines(made.stdout.decode())


@contextmanager
def _asking(arguments: Sequence[str], texts: int, *, tool: str) -> Iterator[Callable[[str, int], list[str]]]:
    """A Java program that answers line by line: ``ask(line, n)`` gives the n lines that it answers.

    Raises:
        DataError: it ends before it has answered, or has not done so within the time for so many texts.
    """
    limit, late = SECONDS + 0.1 * texts, threading.Event()
    pipe, environment = subprocess.PIPE, {**os.environ, **_environment()}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(["java", *arguments], stdin=pipe, stdout=pipe, stderr=said, env=environment) as program,
    ):
        assert program.stdin and program.stdout
        given, answered = program.stdin, program.stdout

        def ask(line: str, count: int) -> list[str]:
            with suppress(BrokenPipeError):  # then it has ended, and answers nothing
                given.write(f"{line}\n".encode())
                given.flush()
            found = [answered.readline().decode().strip() for _ in range(count)]
            if all(found):
                return found
            said.seek(0)
            raise _late(tool, limit) if late.is_set() else _failed(tool, said.read())

        def end() -> None:
            late.set()
            program.kill()

        clock = threading.Timer(limit, end)
        clock.start()
        try:
            yield ask
        finally:
            clock.cancel()
            program.kill()
            with suppress(BrokenPipeError):
                given.close()


def _late(tool: str, limit: float, todo: str = "") -> DataError:
    return DataError(f"{tool} gave no answer within {limit:.0f} seconds", todo=todo)


def _failed(tool: str, said: bytes, todo: str = "") -> DataError:
    last = said.decode(errors="replace").strip().split("\n")[-1]
    return DataError(f"{tool} failed ({last})", todo=todo)


@contextmanager
def _english() -> Iterator[None]:
    """The environment of `_environment` for programs that others start."""
    before = dict(os.environ)
    os.environ.update(_environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _environment() -> dict[str, str]:
    """English numbers and letters whatever the user's locale: these options have the last word in Java."""
    own = os.environ.get("_JAVA_OPTIONS", "")
    return {"_JAVA_OPTIONS": f"{own} -Duser.language=en -Duser.country=US".strip(), "LC_ALL": "C.UTF-8"}


def require(tool: str) -> None:
    """MissingExtra with what to install if a tool of pycocoevalcap cannot run."""
    from importlib.util import find_spec

    if find_spec("pycocoevalcap") is None:
        raise MissingExtra(f"{tool} needs pycocoevalcap", todo='Type: pip install "perdure[caption]"')
    if not has_java():
        raise MissingExtra(
            f"{tool} needs Java, and there is no `java`",
            todo="Install a Java runtime (apt install default-jre-headless), or leave this metric out.",
        )


def chosen_tokenizer() -> Tokenizer:
    """What the environment variable PERDURE_TOKENIZER says (`ptb`, `fallback`), else the best that is there."""
    said = os.environ.get("PERDURE_TOKENIZER", "")
    if said not in ("", "ptb", "fallback"):
        raise DataError(f"PERDURE_TOKENIZER is {said!r}", expected="ptb or fallback")
    return said or default_tokenizer()  # type: ignore[return-value]
