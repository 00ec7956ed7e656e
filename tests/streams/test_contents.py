"""What an example holds, whatever lies around it."""

import io
import tarfile

import numpy as np
import pytest

from perdure.data.webdataset import Part
from perdure.streams.contents import digest
from perdure.types import Example


def test_the_same_bytes_are_the_same_example_in_a_file_in_memory_and_in_any_place_of_any_shard(tmp_path):
    (tmp_path / "a.png").write_bytes(b"pixels")
    places = [tmp_path / "a.png", b"pixels"]
    for name, before in (("one.tar", ()), ("two.tar", ("first",))):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member in (*before, "wanted"):
                info = tarfile.TarInfo(member)
                info.size = 6
                tar.addfile(info, io.BytesIO(b"pixels" if member == "wanted" else b"others"))
        with tarfile.open(tmp_path / name) as tar:
            places.append(Part(tmp_path / name, tar.getmember("wanted").offset_data, 6))
    assert len({digest(Example(id=str(i), inputs={"image": place})) for i, place in enumerate(places)}) == 1


def test_what_cannot_be_read_as_bytes_numbers_or_text_is_no_content():
    assert digest(Example(id="a", inputs={"x": [1, None, "b", np.float32(2)]}))
    with pytest.raises(TypeError, match="a: what this object holds is not known"):
        digest(Example(id="a", inputs={"x": object()}))
