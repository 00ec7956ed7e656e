"""Local chat models, read from folders: a tiny random Llama, LLaVA and Qwen2-VL, and a LLaVA that knows one reply."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_instruction import byte_tokenizer, tiny_parts

from perdure.cli import main
from perdure.models.llava.assemble import put_together
from perdure.prepare.chat import EndpointError, Journal, Request, ask_all
from perdure.prepare.local import LocalChat, picture_prompt

REPLY = '{"explanation": "it is seen at once", "distractor_option": "cow", "distractor_options": ["cow", "owl", "ant"]}'
QWEN_MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_TEMPLATE = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}\
{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NO_SYSTEM = """{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}\
{{ bos_token }}U:{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}\
{% endfor %}A:{% endfor %}"""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    decoder, _ = tiny_parts()
    decoder.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def make_llava(path, *, template=None, change=lambda model, tokenizer: None):
    """A tiny LLaVA with its processor."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_tokens([REPLY])
    torch.manual_seed(0)
    model = put_together(*tiny_parts())
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    change(model, tokenizer)
    pixels = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    marks = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    model.save_pretrained(path)
    LlavaProcessor(pixels, tokenizer, chat_template=template, **marks).save_pretrained(path)
    return path


def make_qwen(path):
    """A tiny Qwen2-VL: pictures of any size, a chat template, positions in three directions."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        Qwen2Tokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    tokenizer.add_tokens(list(QWEN_MARKS), special_tokens=True)
    start, end, image, video = (tokenizer.convert_tokens_to_ids(m) for m in QWEN_MARKS[2:])
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>")
    own = {"vocab_size": len(tokenizer), "rope_parameters": rope, "bos_token_id": None, "eos_token_id": eos}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={**sizes, **heads, **own},
            vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
        )
    )
    louder(model, tokenizer)
    pixels = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=56 * 56)
    model.save_pretrained(path)
    Qwen2VLProcessor(pixels, tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE).save_pretrained(path)
    return path


def louder(model, tokenizer):
    """Weights so large that answers depend on what is read."""
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 8


def one_reply(model, tokenizer):
    """After the colon that ends a prompt comes REPLY, and then the end: no layer changes what a token says."""
    ids = [tokenizer(":").input_ids[-1], tokenizer.convert_tokens_to_ids(REPLY), tokenizer.eos_token_id]
    with torch.no_grad():
        for block in model.model.language_model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        words = model.get_input_embeddings().weight
        model.lm_head.weight.zero_()
        for now, after in pairwise(ids):
            model.lm_head.weight[after] = words[now]


@pytest.fixture(scope="module", params=["llava", "llava with a template", "qwen2-vl"])
def sighted(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("sighted")
    if request.param == "qwen2-vl":
        return make_qwen(path)
    template = None if request.param == "llava" else NO_SYSTEM
    return make_llava(path, template=template, change=louder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 255, (40 + 30 * i, 60, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def answers(folder, requests, **settings):
    return ask_all(LocalChat(name=str(folder), max_new_tokens=6, **settings), requests, Journal())


def test_answers_do_not_depend_on_what_is_asked_with_them(llama):
    requests = [Request(system="s", user="u" * n) for n in (3, 30, 11)]
    one, all_at_once = (answers(llama, requests, batch_size=size) for size in (1, 3))
    assert one == all_at_once and all(isinstance(text, str) for text, _ in one)


def test_answers_about_pictures_do_not_depend_on_what_is_asked_with_them(sighted, pictures):
    shown = [pictures / f"{i}.png" for i in range(3)]
    requests = [Request(system="s", user="u" * n, image=image) for n, image in zip((3, 30, 11, 7), [*shown, None])]
    one, all_at_once = (answers(sighted, requests, batch_size=size) for size in (1, 4))
    assert one == all_at_once and all(isinstance(text, str) for text, _ in one)


def test_a_picture_changes_the_answer(sighted, pictures):
    requests = [Request(system="s", user="what?", image=pictures / f"{i}.png") for i in range(3)]
    chat = LocalChat(name=str(sighted))
    batch = [(i, request, chat._picture(request)) for i, request in enumerate(requests)]
    _, model = chat._load()
    logits = model(**chat._inputs(batch)).logits[:, -1]
    assert chat.sees and not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])


def test_a_picture_that_cannot_be_read_fails_its_one_request(sighted, pictures):
    names = ("0.png", "broken.png", "absent.png", "1.png")
    found = answers(sighted, [Request(system="s", user="u", image=pictures / name) for name in names])
    assert [text is None for text, _ in found] == [False, True, True, False]
    assert "broken.png" in found[1][1] and "absent.png: there is no such file" in found[2][1]


def test_a_picture_that_the_processor_refuses_fails_its_one_request(tmp_path, pictures):
    Image.fromarray(np.zeros((1, 300, 3), np.uint8)).save(tmp_path / "line.png")
    images = [pictures / "0.png", tmp_path / "line.png"]
    found = answers(make_qwen(tmp_path), [Request(system="s", user="u", image=image) for image in images])
    assert found[0][0] is not None and found[1][0] is None and "aspect ratio" in found[1][1]


def test_without_a_chat_template_the_prompt_is_llavas(tmp_path):
    processor = LocalChat(name=str(make_llava(tmp_path)))._load()[0]
    shown = Request(system="A chat.", user="Is <image> a word?", image=tmp_path / "a.png")
    assert picture_prompt(processor, shown) == "A chat. USER: <image>\nIs  a word? ASSISTANT:"
    assert picture_prompt(processor, Request(system="A chat.", user="Why?")) == "A chat. USER: Why? ASSISTANT:"


def test_a_template_that_refuses_a_system_part_gets_it_with_the_question(tmp_path):
    chat = LocalChat(name=str(make_llava(tmp_path, template=NO_SYSTEM)))
    request = Request(system="Be brief.", user="Why?", image=tmp_path / "a.png")
    assert picture_prompt(chat._load()[0], request) == "<s>U:<image>Be brief.\n\nWhy?A:"
    ids = chat._inputs([(0, request, Image.new("RGB", (8, 8)))])["input_ids"][0].tolist()
    assert ids.count(1) == 1 and ids.count(260) == 4  # one start, four patches


def test_a_model_that_reads_texts_only_is_not_asked_about_a_picture(llama, pictures):
    requests = [Request(system="s", user="u", image=pictures / "0.png"), Request(system="s", user="u")]
    found = answers(llama, requests)
    assert not LocalChat(name=str(llama)).sees
    assert found[0][0] is None and "reads texts only" in found[0][1] and found[1][0] is not None


def test_folder_without_a_model_or_a_processor_is_refused(tmp_path):
    with pytest.raises(EndpointError, match="no chat model can be read"):
        ask_all(LocalChat(name=str(tmp_path)), [Request(system="s", user="u")], Journal())
    (make_llava(tmp_path) / "processor_config.json").unlink()
    with pytest.raises(EndpointError, match="image processor"):
        ask_all(LocalChat(name=str(tmp_path)), [Request(system="s", user="u")], Journal())


def make_task(root, pictures):
    """40 questions about three pictures; the first one's is broken."""
    rows = []
    for i in range(40):
        said = [{"from": "human", "value": f"<image>\nWhat {i}?"}, {"from": "gpt", "value": f"t{i}"}]
        rows.append({"id": i, "image": f"{i % 3}.png", "conversations": said})
    for i in range(3):
        (root / f"{i}.png").write_bytes((pictures / ("broken.png" if i == 0 else f"{i}.png")).read_bytes())
    (root / "train.json").write_text(json.dumps(rows))
    return rows


def prepare(root, *more):
    with pytest.raises(SystemExit) as left:
        main(["prepare", "asd", str(root / "train.json"), "--kind", "question", "--share", "40", *more])
    return left.value.code, json.loads((root / "train_x40.manifest.json").read_text())


def test_the_command_rewrites_records_with_a_local_model_that_sees_their_pictures(tmp_path, pictures):
    rows = make_task(tmp_path, pictures)
    model = make_llava(tmp_path / "model", change=one_reply)
    code, manifest = prepare(tmp_path, "--local", str(model))
    failed, changed = ({entry["record"] for entry in manifest[key]} for key in ("failed", "changed"))
    assert len(failed | changed) == 16 and failed and changed and code == 1
    assert {rows[i]["image"] for i in failed} == {"0.png"} and "0.png" not in {rows[i]["image"] for i in changed}
    assert all("0.png: " in entry["why"] for entry in manifest["failed"])
    assert manifest["by_model"] == len(changed) and manifest["by_model_unseen"] == 0
    written = {r["id"]: r["conversations"][1]["value"] for r in json.loads((tmp_path / "train_x40.json").read_text())}
    brief = [entry["record"] for entry in manifest["changed"] if entry["style"] in ("brief", "detail")]
    assert brief and all("it is seen at once" in written[i] for i in brief)


def test_the_command_says_that_pictures_were_not_shown(tmp_path, pictures, capsys):
    make_task(tmp_path, pictures)
    model = make_llava(tmp_path / "model", change=one_reply)
    code, manifest = prepare(tmp_path, "--local", str(model), "--text-only")
    assert code == 0 and manifest["by_model_unseen"] == manifest["by_model"] == 16
    assert "16 records with an image were rewritten by a model that was not shown it" in capsys.readouterr().out
