"""A page for an export: a Gradio app of a few lines, and what it needs.

Knows ``app.py`` and ``requirements.txt`` of a Hugging Face space. Starts no server.
"""

from __future__ import annotations

from pathlib import Path

from perdure.api import Opened
from perdure.errors import DataError
from perdure.files.written_whole import write_text

_HEAD = '''"""A page that asks the model in this folder. Start it: python app.py"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


'''
_CLASSES = '''def answer(image):
    """Classes and their probabilities for a picture."""
    from answer import classify

    return classify(image)
'''
_PREDICT = '''def answer(image):
    """Classes and their probabilities (scores, where there are none), or the caption, for a picture."""
    import perdure

    found = perdure.predict(HERE, [image], device="cpu")[0]
    return found.get("caption") or {one["class"]: one.get("probability", one.get("score")) for one in found["answers"]}
'''
_ASKED = '''def answer(image, question):
    """The answer to a question about a picture."""
    from transformers import pipeline

    ask = pipeline("image-text-to-text", model=str(HERE))
    parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return ask(text=[{"role": "user", "content": parts}], return_full_text=False)[0]["generated_text"]
'''
_TAIL = '''

def page():
    """The page; gradio is needed here alone."""
    import gradio as gr

    return gr.Interface(answer, INPUTS, OUTPUT, title=TITLE)


if __name__ == "__main__":
    page().launch()
'''
_NEEDS = ["gradio", "torch", "torchvision", "transformers", "safetensors", "pillow"]


def require(opened: Opened) -> None:
    """Raise a DataError unless a page can ask such a model."""
    kind = opened.query.kind
    if kind not in ("classify", "caption", "instruct"):
        what, expected = f"no page is made for tasks of kind {kind}", "classify, caption or instruct"
        raise DataError(what, where=str(opened.folder), expected=expected, todo="Drop --space.")


def write(opened: Opened, out: Path) -> None:
    """``app.py``, whose `answer` does what the printed lines do, and ``requirements.txt``."""
    kind, needs = opened.query.kind, _NEEDS
    inputs, output = 'gr.Image(type="pil")', "gr.Label(num_top_classes=5)" if kind == "classify" else '"text"'
    if kind == "instruct":
        body, inputs = _ASKED, f'[{inputs}, gr.Textbox(label="Question")]'
    elif (out / "answer.py").is_file():
        body, needs = _CLASSES, [*needs, "peft"] if (out / "adapter").is_dir() else needs
    else:
        body, needs = _PREDICT, ["gradio", "perdure"]
    tail = _TAIL.replace("INPUTS", inputs).replace("OUTPUT", output).replace("TITLE", repr(opened.recipe.method.name))
    write_text(out / "app.py", _HEAD + body + tail)
    write_text(out / "requirements.txt", "\n".join(needs) + "\n")
