"""Small lists that ship with perdure: class names, published class orders, splits.

Knows JSON files beside this one, plain or gzipped. Does not know what they are used for.

| file | what |
|---|---|
| `class_names.json` | names by label; `<set>__wnid` holds the folder of each, in the same order |
| `class_orders.json` | published class orders, `<set>__<who used it>` |
| `audio_visual.json` | classes of AVE and LLP, answers and words of MUSIC-AVQA, domains of AVE and LLP |
| `imagenet_wnids.json` | the 1000 folders of ImageNet-1k, by label |
| `imagenet100_wnid_to_label.json` | the 100 folders of ImageNet-100 |
| `imagenet_r_split.json.gz` | ImageNet-R: 24,000 training and 6,000 test images |
| `test_time_classes.json` | names of fine-grained sets by label; `imagenet_{a,r}__index`: labels in ImageNet |
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def load(name: str) -> Any:
    """The content of a shipped list, by file name. Shared between callers: do not change it."""
    data = resources.files(__name__).joinpath(name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
