"""A chat model that knows the scenes of microworld's CoIN tree, behind an OpenAI-compatible address.

    python -m perdure.data.microworld.scene_chat DIR --port 8000

It stands in for the multimodal model that `perdure prepare asd` asks, so that the real path (requests, images, network,
parser) runs with nothing downloaded. It is no model: an image is looked up by its bytes, and sentences are filled in.

Knows what pictures show and the JSON that `prepare asd` asks for. Does not know training records or styles.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from perdure.data.microworld.coin import SCENES_FILE
from perdure.data.microworld.questions import NUMBERS, article, title
from perdure.data.microworld.scenes import CLASSES, COLORS, FILLS, PLACES, SHAPES, SIZES, Object, relation
from perdure.errors import DataError


class SceneChat:
    """Answers requests about the pictures below `root`."""

    def __init__(self, root: Path) -> None:
        path = root / SCENES_FILE
        if not path.is_file():
            raise DataError("there is no such file", where=str(path), todo="perdure data make microworld --as coin")
        self.scenes: dict[str, Mapping[str, Any]] = {}
        """What a picture shows, by the sha256 of its file."""
        for image, seen in json.loads(path.read_text("utf-8")).items():
            self.scenes[hashlib.sha256((root / image).read_bytes()).hexdigest()] = seen

    def reply(self, user: str, image: bytes | None) -> str:
        """The JSON text that answers one request."""
        seen = self.scenes.get(hashlib.sha256(image).hexdigest()) if image is not None else None
        draw = random.Random(hashlib.sha256(user.encode()).hexdigest())
        long = "about 50 words" in user
        if "target_index" in user:
            boxes = re.findall(r"^\d+\. (\[.*\])$", user, re.M)
            rows = [{"target_index": i, "description": described(b, seen, long)} for i, b in enumerate(boxes, 1)]
            return json.dumps(rows)
        if "question_index" in user:
            pairs = re.findall(r"^\d+\. Question: (.*?)\n   Answer: (.*?)$", user, re.M | re.S)
            return json.dumps(
                [{"question_index": i, **_said(user, q, a, seen, long, draw)} for i, (q, a) in enumerate(pairs, 1)]
            )
        found = re.search(r"Question: (.*?)\nCorrect answer: (.*?)\n\n", user, re.S)
        question, answer = found.groups() if found else ("", _category(user))
        return json.dumps(_said(user, question, answer, seen, long, draw))


def serve(root: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine alone, ready for ``serve_forever``; port 0 takes a free one (``server_port``)."""
    chat = SceneChat(root)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = chat.reply(*_request(body["messages"]))
            said = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def explanation(answer: str, seen: Mapping[str, Any] | None, *, long: bool) -> str:
    """Why the answer is right: about 20 words, or about 50."""
    if seen is None:
        brief = f"All that is needed is in the question, and the other choices do not fit, so the answer is {answer}."
        more = "No picture is needed here. The words of the question say how things are, or what they are called. "
        rest = "Each of the other choices says something else, which is not what was asked."
        return f"{more}{brief} {rest}" if long else brief
    objects = _objects(seen)
    if not long:
        return f"The picture shows {' and '.join(phrase(o) for o in objects)}, so the answer is {answer}."
    return f"{account(objects)} From what is seen, the answer to the question is {answer}."


def described(box: str, seen: Mapping[str, Any] | None, long: bool) -> str:
    """The object in a box: about 20 words, or about 50."""
    objects = _objects(seen) if seen else []
    boxes = [", ".join(f"{v:.2f}" for v in o["box"]) for o in (seen or {}).get("objects", [])]
    inside = [o for o, own in zip(objects, boxes) if own == box.strip("[]")]
    if not inside:
        return "Nothing that is known lies in this part of the picture."
    thing = inside[0]
    brief = f"In this part of the picture is {article(thing.size)} {thing.color} {thing.shape}."
    brief += f" Its pattern is {thing.fill}."
    return f"{brief} {account(objects)}" if long else brief


def account(objects: Sequence[Object]) -> str:
    """Every object with its place, and how each lies to the first."""
    said = [f"There is {phrase(o)} at the {o.place}." for o in objects]
    first, *others = objects
    said += [f"The {o.color} {o.shape} is {relation(o, first)} the {first.color} {first.shape}." for o in others]
    return " ".join([*said, "Nothing else is in the picture."])


def phrase(thing: Object) -> str:
    """``a small striped red star``."""
    return article(f"{thing.size} {thing.fill} {thing.color} {thing.shape}")


def wrong_answers(question: str, answer: str, seen: Mapping[str, Any] | None, draw: random.Random) -> list[str]:
    """Three that are of the answer's sort."""
    if "Reference OCR token" in question:
        listed = question.split("Reference OCR token: ")[1].split("\n")[0].split(", ")
        pool = [t for t in dict.fromkeys(listed) if t != answer] + [s for s in SHAPES if s not in listed]
        return pool[:3]
    if answer.startswith("The "):
        names = [f"The {c} {s}".title() for c in COLORS for s in SHAPES]
        objects = _objects(seen) if seen else []
        swapped = [title([_recolored(o, draw) for o in objects]) for _ in range(12)] if objects else names
        pool = list(dict.fromkeys(n for n in swapped if n != answer)) + [n for n in names if n != answer]
        return pool[:3]
    sorts: tuple[Sequence[str], ...] = (SHAPES, COLORS, PLACES, NUMBERS, CLASSES, FILLS)
    own = next((words for words in sorts if answer in words), COLORS if "color" in question else (*SIZES, *FILLS))
    return draw.sample([w for w in own if w != answer], 3)


def _said(
    user: str, question: str, answer: str, seen: Mapping[str, Any] | None, long: bool, draw: random.Random
) -> dict[str, Any]:
    if '"explanation"' in user:
        return {"explanation": explanation(re.sub(r"^[A-E]\. ", "", answer), seen, long=long)}
    wrong = wrong_answers(question, answer, seen, draw)
    if '"distractor_options"' in user:
        return {"distractor_options": wrong}
    return {"distractor_option": wrong[0]}


def _category(user: str) -> str:
    found = re.search(r"category: (.*)", user)
    return found[1].strip() if found else ""


def _recolored(thing: Object, draw: random.Random) -> Object:
    return replace(thing, color=draw.choice([c for c in COLORS if c != thing.color]))


def _objects(seen: Mapping[str, Any]) -> list[Object]:
    return [Object(**{k: v for k, v in o.items() if k != "box"}) for o in seen["objects"]]


def _request(messages: Sequence[Mapping[str, Any]]) -> tuple[str, bytes | None]:
    """The user's text and picture."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content, None
    text = " ".join(part["text"] for part in content if part["type"] == "text")
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return text, base64.b64decode(urls[0].split(",", 1)[1]) if urls else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("root", type=Path, help="what `perdure data make microworld --as coin` wrote")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    server = serve(given.root, given.port)
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
