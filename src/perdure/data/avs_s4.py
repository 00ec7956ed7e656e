"""AVSBench-S4: 4,932 five-second videos with masks of the one thing that sounds.

Needs: 6 GB.

Zhou et al., Audio-Visual Segmentation, ECCV 2022. Below `root`: ``s4_meta_data.csv`` and, by split, class and video,
``visual_frames``, ``gt_masks`` (``<name>_1.png`` ... ``_5.png``) and ``wave``. Training videos have a mask of
their first frame. Waves are ``wave/<split>/<class>/<name>.npy`` (160,000 samples), or all of a class in ``AVS.npy``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.types import Dataset

SEGMENTS = 5
TODO = "Set `root` to the folder that holds s4_meta_data.csv."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of AVSBench-S4."""

    root: Path = Path("data/AVSBench/Single-source/s4_data")
    """Folder with `s4_meta_data.csv`, `visual_frames`, `gt_masks` and `wave` (`.../Single-source/s4_data`)."""
    size: Annotated[int, Field(ge=2)] = 224
    """Side of frames and masks in pixels."""
    on_missing: Literal["stop", "skip"] = "stop"
    """What to do with annotated videos that lack frames, sound or masks: stop with a list, or leave them out."""


def files(config: Config):
    """Annotation files of a complete copy."""
    return [config.root / "s4_meta_data.csv"]


def read(config: Config) -> Dataset:
    """Masks as targets: paths, one a frame (training: of the first frame)."""
    from perdure.data import clips
    from perdure.types import Examples

    root = config.root.expanduser()
    rows = clips.read_table(root / "s4_meta_data.csv", ("name", "category", "split"), separator=",", todo=TODO)
    classes = tuple(dict.fromkeys(row["category"] for row in rows))
    parts, left_out = {}, {}
    for split, word in (("train", "train"), ("validation", "val"), ("test", "test")):
        wanted = [row for row in rows if row["split"] == word]
        items = [(f"{row['category']}/{row['name']}", f"{word}/{row['category']}", row["name"]) for row in wanted]
        make = _Make(str(root), items, masks=1 if split == "train" else SEGMENTS)
        missing = [i for i in range(len(items)) if not make.complete(i)]
        if missing and config.on_missing == "stop":
            where = f"AVSBench-S4 below {root}"
            raise clips.missing_clips([items[i][0] for i in missing], len(items), where=where)
        absent = set(missing)
        kept = [i for i in range(len(items)) if i not in absent]
        parts[split] = Examples(make, [make.masks_of(i) for i in kept], indices=kept)
        left_out[split] = len(missing)
    facts = {"segments": SEGMENTS, "clip_seconds": 5.0, "mask_size": config.size, "left_out": left_out}
    return Dataset(name="AVS", kind="segment", candidates=classes, facts={**facts, "source": "AVSBench-S4"}, **parts)


@dataclass(frozen=True)
class _Make:
    """Makes Examples (a class, so that loader workers can receive it)."""

    root: str
    items: list[tuple[str, str, str]]
    """Id, folder below each kind of data, name."""
    masks: int

    def __call__(self, index: int, target: Any):
        from perdure.types import Example

        identity, folder, name = self.items[index]
        frames = [self._numbered("visual_frames", folder, name, i) for i in range(SEGMENTS)]
        return Example(id=identity, inputs={"frames": frames, "wave": self.wave(folder, name)}, target=target)

    def masks_of(self, index: int) -> list[Path]:
        _, folder, name = self.items[index]
        return [self._numbered("gt_masks", folder, name, i) for i in range(self.masks)]

    def wave(self, folder: str, name: str) -> Any:
        from perdure.data.clips import PackedWave

        single = Path(self.root, "wave", folder, f"{name}.npy")
        packed = single.with_name("AVS.npy")
        return single if single.is_file() or not packed.is_file() else PackedWave(packed, f"{name}.wav")

    def complete(self, index: int) -> bool:
        _, folder, name = self.items[index]
        waves = Path(self.root, "wave", folder)
        sound = (waves / f"{name}.npy").is_file() or (waves / "AVS.npy").is_file()
        return (
            sound and self._numbered("visual_frames", folder, name, 0).is_file() and self.masks_of(index)[0].is_file()
        )

    def _numbered(self, kind: str, folder: str, name: str, i: int) -> Path:
        return Path(self.root, kind, folder, name, f"{name}_{i + 1}.png")
