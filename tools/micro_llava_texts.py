"""What micro-llava reads before it is shipped: conversations about plain scenes, and its tokenizer.

Knows sentences and tokens. Answers come in a style of their own, whole sentences; none of the prompts of microworld's
eight instruction tasks is used. Does not know pixels or training.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from perdure.data.microworld import coin, questions, scene_chat, scenes, words
from perdure.data.microworld.scenes import COLORS, FILLS, PLACES, SHAPES, SIZES, Object
from perdure.models.llava.conversation import SYSTEM
from perdure.prepare import styles

Round = tuple[str, str]
Ask = Callable[[Object, Sequence[Object], random.Random], Round]
"""A question about one of some objects, and its answer."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
ROOM = 512
"""Most tokens of a text."""
_CHARACTERS = [chr(c) for c in range(33, 127)]


def conversation(
    objects: Sequence[Object],
    boxes: Sequence[Sequence[float]],
    said: Sequence[str],
    draw: random.Random,
    rounds: int,
    asked: Sequence[Ask] | None = None,
) -> list[Round]:
    """So many different questions and answers about a scene, of `ABOUT` or those `asked`; `said` are its captions.

    Captions come last: what is said first is not seen in the picture again, but read.
    """
    found: list[Round] = []
    for _ in range(rounds):
        thing = draw.randrange(len(objects))
        about = draw.choice(asked or ABOUT)
        if about is caption:
            found.append((draw.choice(_ASK_CAPTION), draw.choice(list(said))))
        elif about is box:
            found.append(box(objects[thing], objects, boxes[thing]))
        else:
            found.append(about(objects[thing], objects, draw))
    found = list(dict.fromkeys(found))
    return sorted(found, key=lambda one: one[0] in _ASK_CAPTION)


def echo(vocabulary: Sequence[str], draw: random.Random) -> Round:
    """Words to be repeated: so that each word has been read and said, the prompts' too."""
    listed = " ".join(draw.choice(list(vocabulary)) for _ in range(draw.randrange(3, 12)))
    return f"Repeat: {listed}", listed


def _color(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    who = questions.named(thing, objects, "color")
    return f"Tell me the color of {who}.", f"{who.capitalize()} is {thing.color}."


def _fill(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    who = questions.named(thing, objects, "fill")
    return f"Tell me the pattern of {who}.", f"{who.capitalize()} is {thing.fill}."


def _size(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    who = questions.named(thing, objects, "size")
    return f"Tell me the size of {who}.", f"{who.capitalize()} is {thing.size}."


def _place(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    who = questions.named(thing, objects, "place")
    return f"Where does {who} lie?", f"{who.capitalize()} lies at the {thing.place}."


def _shape(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    alone = sum(o.color == thing.color for o in objects) == 1
    where = f"that is {thing.color}" if alone and draw.random() < 0.5 else f"at the {thing.place}"
    return f"Name the thing {where}.", f"It is {questions.article(thing.shape)}."


def _class(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    return (
        f"Name the {thing.color} thing with its pattern.",
        f"It is {questions.article(f'{thing.fill} {thing.shape}')}.",
    )


def _count(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    n = len(objects)
    return "Count the things.", f"There {'is' if n == 1 else 'are'} {n} thing{'s' * (n > 1)}."


def _exists(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    if draw.random() < 0.5:
        return f"Do you see {questions.article(thing.shape)}?", f"Yes, there is {questions.article(thing.shape)}."
    absent = draw.choice([s for s in SHAPES if s not in {o.shape for o in objects}])
    return f"Do you see {questions.article(absent)}?", f"No, there is no {absent}."


def _colored(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    asked = thing.color if draw.random() < 0.5 else draw.choice([c for c in COLORS if c != thing.color])
    who = questions.named(thing, objects, "color")
    same = asked == thing.color
    return f"True or not: {who} is {asked}.", f"{'Yes' if same else 'No'}, {who} is {'' if same else 'not '}{asked}."


def _relation(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    others = [o for o in objects if o is not thing]
    if not others:
        return _place(thing, objects, draw)
    other = draw.choice(others)
    one, two = questions.named(thing, objects), questions.named(other, objects)
    return f"How does {one} lie to {two}?", f"{one.capitalize()} is {scenes.relation(thing, other)} {two}."


def _choice(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    shapes = [s for s in SHAPES if s not in {o.shape for o in objects}]
    colors = [c for c in COLORS if c != thing.color]
    who = questions.named(thing, objects, "color")
    kind, right, pool = draw.choice((("kind of thing", thing.shape, shapes), (f"color of {who}", thing.color, colors)))
    options = [right, *draw.sample(pool, draw.randrange(1, 4))]
    draw.shuffle(options)
    return f"Choose the {kind}: {_listed(options)}", f"It is {right}, choice {'ABCD'[options.index(right)]}."


def _letter(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """A choice whose letter comes before what it stands for."""
    shown = {o.shape for o in objects}
    others: dict[str, Sequence[str]] = {
        "color": COLORS,
        "place": PLACES,
        "shape": [s for s in SHAPES if s not in shown],
    }
    trait = draw.choice(sorted(others))
    right = getattr(thing, trait)
    who = "kind of thing that is seen" if trait == "shape" else f"{trait} of {questions.named(thing, objects, trait)}"
    return _lettered(f"Pick the {who}", right, [o for o in others[trait] if o != right], draw)


def _sort(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """What sort of thing a word names; nothing need be seen."""
    sorts: dict[str, Sequence[str]] = {"color": COLORS, "shape": SHAPES, "size": SIZES, "pattern": FILLS}
    sort = draw.choice(sorted(sorts))
    others = [w for other, words in sorts.items() if other != sort for w in words]
    return _lettered(f"Pick the word for a {sort}", draw.choice(list(sorts[sort])), others, draw)


def _told(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """A relation that is told, asked for as it is or the other way round; nothing need be seen."""
    one, two = (f"{draw.choice(COLORS)} {shape}" for shape in draw.sample(SHAPES, 2))
    way = draw.choice(scenes.RELATIONS)
    asked, right, wrong = draw.choice(((way, one, two), (_OPPOSITE[way], two, one)))
    said = f"Say that {questions.article(one)} is {way} {questions.article(two)}."
    return _lettered(f"{said} Pick what is {asked} the rest", right, [wrong], draw)


def _lookup(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """The letter of an option, or the option of a letter; nothing need be seen."""
    options = draw.sample([*COLORS, *SHAPES, *PLACES, *FILLS, *SIZES], draw.randrange(2, 5))
    letter, right = draw.choice(list(zip("ABCD", options)))
    if draw.random() < 0.5:
        return f"Pick {right}: {_listed(options)}", f"Choice {letter}, it is {right}."
    return f"Read choice {letter}: {_listed(options)}", f"It is {right}, choice {letter}."


def _same(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """Whether two words are one; nothing need be seen."""
    words = draw.choice((COLORS, SHAPES, PLACES, FILLS, SIZES))
    said = draw.choice(list(words))
    asked = said if draw.random() < 0.5 else draw.choice([w for w in words if w != said])
    same = asked == said
    return f"Say that it is {said}. True or not: it is {asked}.", f"{'Yes' if same else 'No'}, it is {said}."


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _lettered(stem: str, right: str, pool: Sequence[str], draw: random.Random) -> Round:
    options = [right, *draw.sample(list(pool), min(draw.randrange(1, 4), len(pool)))]
    draw.shuffle(options)
    return f"{stem}: {_listed(options)}", f"Choice {'ABCD'[options.index(right)]}, it is {right}."


def _listed(options: Sequence[str]) -> str:
    return ", ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options))


def _absent(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """A question about what is not there."""
    absent = draw.choice([s for s in SHAPES if s not in {o.shape for o in objects}])
    asked = ("Tell me the color of the {}.", "Where does the {} lie?", "Tell me the size of the {}.")
    return draw.choice(asked).format(absent), f"There is no {absent}."


def _toward(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """What lies on one side of an object."""
    if len(objects) != 2:
        return _place(thing, objects, draw)
    (other,) = (o for o in objects if o is not thing)
    who = questions.named(other, objects)
    return f"Name the thing {scenes.relation(thing, other)} {who}.", f"It is {questions.article(thing.shape)}."


def _row(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """All things from left to right."""
    ordered = sorted(objects, key=lambda o: o.x)
    listed = ", then ".join(questions.article(f"{o.color} {o.shape}") for o in ordered)
    return "List the things from left to right.", f"Seen are {listed}."


def box(thing: Object, objects: Sequence[Object], edges: Sequence[float]) -> Round:
    """Where an object reaches, in numbers."""
    who = questions.named(thing, objects)
    x1, y1, x2, y2 = (f"{v:.2f}" for v in edges)
    return f"How far does {who} reach?", f"From {x1}, {y1} to {x2}, {y2}."


def caption(thing: Object, objects: Sequence[Object], draw: random.Random) -> Round:
    """Stands for one of the scene's captions, which `conversation` puts in."""
    raise AssertionError("captions come from the scene")


_ASK_CAPTION = ("Describe the picture.", "Say what is seen.", "Give a caption.")
ABOUT: tuple[Ask, ...] = (
    *(caption, _color, _color, _fill, _size, _place, _shape, _shape, _class, _class, _count, _exists, _exists, _absent),
    *(_colored, _relation, _toward, _row, _row, _choice, _letter, _letter, _letter, _sort, _told, box, box, box, box),
)
"""What a question is about; what stands twice comes twice as often."""
DRILLS: tuple[Ask, ...] = (_lookup, _lookup, _sort, _told, _same)
"""Questions without a picture. Asked for a letter about a picture, a model of this size is at chance for thousands of
steps; it learns to look a letter up within two hundred, and then to do so with what it sees."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One id a word of microworld, one a number of two decimals; other words in characters.

    The standard system prompt is one token, to keep texts short. As in Llama, a space at the end of a text is a token.
    """
    listed = [*SPECIAL, SYSTEM, " ", "\n", *vocabulary(), *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS)]
    ids = {text: i for i, text in enumerate(dict.fromkeys(listed))}
    inner = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=100))
    inner.normalizer = normalizers.NFC()
    split = Regex(r"[01]\.\d\d(?!\d)|[A-Za-z]+|\d|[^\w\s]|\n| $")
    inner.pre_tokenizer = pre_tokenizers.Split(split, "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", ids["<s>"])])
    joined = [decoders.Replace(f" {mark}", mark) for mark in ".,?:;]'"]
    parts = [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), *joined, decoders.Replace("[ ", "[")]
    inner.decoder = decoders.Sequence([*parts, decoders.Replace("\n ", "\n"), decoders.Replace(" \n", "\n")])
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    inner.add_tokens([AddedToken(SYSTEM, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=ROOM,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


@lru_cache
def vocabulary() -> list[str]:
    """Every word that conversations, the eight tasks and their five styles say, and the numbers 0.00 to 1.00."""
    world = scenes.of_anything(0, "vocabulary", np.arange(3000), shares=coin.SHARES)
    draw = random.Random(0)
    texts = [SYSTEM, "USER ASSISTANT Yes No yes no unanswerable A B C D E", *styles.REQUESTS.values()]
    texts += [*styles.DESCRIBE.values(), "Is the answer", *words.vocabulary(), "0 1 2 3 4 5 6 7 8 9"]
    for i in range(len(world)):
        objects = world.objects(i)
        seen = {"objects": [{**vars(o), "box": [0.0, 0.0, 1.0, 1.0]} for o in objects]}
        asked = [task.ask(objects, draw) for task in questions.TASKS]
        texts += [q.text for q in asked] + [q.answer for q in asked]
        texts += [scene_chat.explanation("", seen, long=long) for long in (False, True)]
        texts += [scene_chat.described("[0.00, 0.00, 1.00, 1.00]", seen, long) for long in (False, True)]
        texts += [t for pair in conversation(objects, [[0.0] * 4] * 3, ["a"], draw, 10) for t in pair]
    texts += [scene_chat.explanation("", None, long=long) for long in (False, True)] + ["Repeat"]
    found = {word for text in texts for word in re.findall(r"[A-Za-z]+|\d|[^\w\s]", text.replace("{box}", ""))}
    return [*sorted(found), *(f"{n / 100:.2f}" for n in range(101))]


def save_tokenizer(out: Path) -> None:
    """The tokenizer's files."""
    tokenizer().save_pretrained(out)
    # transformers 5 writes a class name that older versions do not know; this one is known to all.
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n")
