"""What ``preprocessor_config.json`` of a CLAP says: each field is used, changes nothing here, or is refused by name.

Knows the fields of Hugging Face's ClapFeatureExtractor. Does not know samples or models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.models.clap.mel import FrontEnd
from perdure.models.clip.preprocessor import refuse
from perdure.models.clip.transform import read_json

FILE = "preprocessor_config.json"
_NO_EFFECT = {
    "feature_extractor_type",
    "processor_class",
    "padding_side",  # each segment is repeated until it is full
    "padding_value",
    "return_attention_mask",
    "truncation",  # segments are cut before; HTSAT runs without the fusion of long clips
    "nb_frequency_bins",  # follows from fft_window_size
    "nb_max_samples",  # follows from max_length_s
}
_USED = {"feature_size", "sampling_rate", "hop_length", "fft_window_size", "frequency_min", "frequency_max"}
_USED |= {"max_length_s", "top_db", "padding"}


def front_end(folder: Path, *, mels: int) -> dict[str, Any]:
    """Settings of a `FrontEnd` at 32 kHz for a model of so many mel bands. Hugging Face's own values, which are for
    48 kHz, mean what the defaults do: 480 samples from frame to frame are 320.

    Raises:
        WeightsError: a field says what cannot be done here.
    """
    file = folder / FILE
    if not file.is_file():
        return {}
    said, where = read_json(file), str(file)
    unknown = sorted(said.keys() - _NO_EFFECT - _USED)
    refuse(bool(unknown), f"the field {unknown[:1]} is unknown here", ", ".join(sorted(_NO_EFFECT | _USED)), where)
    rate = said.get("sampling_rate", 48_000)
    refuse(rate not in (32_000, 48_000), f"sampling_rate is {rate}", "32000 or 48000", where)
    for name, value in (("feature_size", mels), ("fft_window_size", FrontEnd.window)):
        refuse(said.get(name, value) != value, f"{name} is {said.get(name)}", str(value), where)
    refuse(said.get("top_db") is not None, f"top_db is {said.get('top_db')}", "null", where)
    refuse(said.get("padding", "repeatpad") != "repeatpad", f"padding is {said.get('padding')!r}", "'repeatpad'", where)
    names = (("lowest", "frequency_min"), ("highest", "frequency_max"), ("longest", "max_length_s"))
    found: dict[str, Any] = {ours: float(said[theirs]) for ours, theirs in names if theirs in said}
    if "hop_length" in said:
        found["hop"] = round(said["hop_length"] * FrontEnd.rate / rate)
    return found
