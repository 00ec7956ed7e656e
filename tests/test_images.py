import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from perdure.errors import UnreadableExample
from perdure.images import CHANGES, changes, image_size, is_image, open_image


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def one(color, mode="RGB"):
    return Image.new(mode, (2, 3), color)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_path_bytes_and_array_give_the_same_pixels(tmp_path, form):
    data = encoded(one((255, 0, 0)), form, **({"lossless": True} if form == "WEBP" else {}))
    path = tmp_path / "a"
    path.write_bytes(data)
    array = np.zeros((3, 2, 3), np.uint8)
    array[..., 0] = 255
    for value in (path, str(path), data, array, Image.open(path)):
        image = open_image(value)
        assert image.mode == "RGB" and image.size == (2, 3)
        assert np.array_equal(np.asarray(image), array)


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (one(100, "L"), "PNG", (100, 100, 100)),
        (one(1, "1"), "PNG", (255, 255, 255)),
        (one((10, 20, 30, 0), "RGBA"), "PNG", (10, 20, 30)),  # alpha is dropped, not blended
        (one((100, 0), "LA"), "PNG", (100, 100, 100)),
        (one((10, 20, 30)).quantize(4), "PNG", (10, 20, 30)),
        (one((0, 255, 255, 0), "CMYK"), "TIFF", (255, 0, 0)),
        (Image.fromarray(np.full((3, 2), 256 * 7, np.uint16)), "PNG", (7, 7, 7)),
        (Image.fromarray(np.full((3, 2), 65535, np.uint16)), "TIFF", (255, 255, 255)),
        (Image.fromarray(np.full((3, 2), 40_000, np.int32)), "TIFF", (156, 156, 156)),
    ],
)
def test_every_mode_becomes_rgb(image, form, expected):
    assert open_image(encoded(image, form)).getpixel((1, 1)) == expected


def test_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert open_image(encoded(one((1, 2, 3)), "JPEG", exif=exif)).size == (2, 3)


def turned(mark):
    exif = Image.Exif()
    exif[0x0112] = mark
    return exif


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(one((1, 2, 3)), "JPEG", exif=turned(6)), ["orientation"]),
        (encoded(one((1, 2, 3)), "JPEG", exif=turned(1)), []),
        (encoded(one((1, 2, 3)), "TIFF", exif=turned(3)), ["orientation"]),
        (encoded(one((0, 255, 255, 0), "CMYK"), "JPEG"), ["cmyk"]),
        (encoded(Image.fromarray(np.full((3, 2), 256 * 7, np.uint16)), "PNG"), ["16 bit"]),
        (encoded(one((10, 20, 30)).quantize(4), "PNG"), ["palette"]),
        (encoded(one((10, 20, 30, 0), "RGBA"), "PNG"), ["alpha"]),
        (encoded(one((1, 2, 3)), "GIF", save_all=True, append_images=[one((0, 255, 0))]), ["frames"]),
        (encoded(one((1, 2, 3)), "TIFF", save_all=True, append_images=[one((0, 255, 0))]), ["frames"]),
        (encoded(one((1, 2, 3)), "PNG"), []),
    ],
)
def test_what_befalls_an_image_is_known_from_its_header(tmp_path, data, expected):
    (tmp_path / "a").write_bytes(data)
    for value in (data, tmp_path / "a"):
        assert changes(value) == (expected, (2, 3))
    assert set(expected) <= set(CHANGES)


def test_heic_is_read_where_a_library_is_there_and_refused_by_name_where_not(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded(Image.new("RGB", (64, 48), (200, 10, 10)), "HEIF")
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(data)
    assert is_image(path) and open_image(path).size == (64, 48)
    assert open_image(path).getpixel((20, 20))[0] > 150
    with monkeypatch.context() as without:
        without.setattr(Image, "OPEN", {name: how for name, how in Image.OPEN.items() if name != "HEIF"})
        without.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
        for value in (path, data):
            with pytest.raises(UnreadableExample, match=r"this is HEIC, and pillow-heif is not installed.*heic"):
                open_image(value)


def test_of_an_animation_the_first_frame_is_taken():
    data = encoded(one((255, 0, 0)), "GIF", save_all=True, append_images=[one((0, 255, 0))])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def noise(form):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), form)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_one_clear_error(form, share):
    data = noise(form)
    with pytest.raises(UnreadableExample, match=r"truncated|damaged|not an image"):
        open_image(data[: int(len(data) * share)], where="train/cat/1")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_flipped_bytes_are_read_or_refused_but_never_crash(form):
    clean = noise(form)
    for seed in range(40):
        data = bytearray(clean)
        for place in np.random.default_rng(seed).integers(0, len(data), 12):
            data[place] ^= 0xFF
        try:
            assert open_image(bytes(data)).mode == "RGB"
        except UnreadableExample as error:
            assert str(error).startswith("image of")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "none.png", "there is no such file"),
        (lambda p: (p / "empty.png").write_bytes(b"") or p / "empty.png", "empty"),
        (lambda p: (p / "page.jpg").write_text("<html>") and p / "page.jpg", "not an image"),
        (lambda p: p, "this is a folder"),
        (lambda p: str(p) + "/a\0b.png", "cannot be reached"),
    ],
)
def test_a_bad_path_is_named(tmp_path, make, said):
    with pytest.raises(UnreadableExample, match=said) as error:
        open_image(make(tmp_path))
    assert str(tmp_path) in str(error.value)


def bomb(width, height):
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(UnreadableExample, match="at most 89,478,485 pixels"):
        open_image(bomb(side, side))


def test_the_pixel_limit_is_a_setting():
    assert open_image(encoded(one(0), "PNG"), pixel_limit=6).size == (2, 3)
    with pytest.raises(UnreadableExample, match="2 x 3 pixels"):
        open_image(encoded(one(0), "PNG"), pixel_limit=5)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros(4, np.uint8),
        None,
        3.5,
    ],
)
def test_what_is_no_image_is_refused_with_what_would_be(value):
    with pytest.raises(UnreadableExample, match=r"uint8 array \[height, width, 3\]"):
        open_image(value, where="example 7")


def test_grey_arrays_and_alpha_are_accepted():
    assert open_image(np.full((2, 2), 9, np.uint8)).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(np.full((2, 2, 1), 9, np.uint8)).getpixel((0, 0)) == (9, 9, 9)
    assert open_image(np.full((2, 2, 4), 9, np.uint8)).getpixel((0, 0)) == (9, 9, 9)


def test_the_size_comes_from_the_header_alone():
    data = noise("PNG")
    assert image_size(data[:200]) == (40, 40)
    with pytest.raises(UnreadableExample, match="not an image"):
        image_size(b"no")


def test_the_error_travels_between_processes():
    with pytest.raises(UnreadableExample) as error:
        open_image(b"", where="here")
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
