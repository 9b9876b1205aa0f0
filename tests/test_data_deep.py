"""Pictures of more than 8 bits show what they show of the scene, whatever their numbers mean."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from cae.data import read_image
from cae.data.deep import in_8_bits, value_range
from cae.data.images import ImageError, image_size


def scene(height=48, width=64) -> np.ndarray:
    """Shades in [0, 1], all of them, with an edge."""
    y, x = np.mgrid[:height, :width]
    shades = (x + y) / (height + width - 2)
    shades[:, : width // 4] *= 0.5
    return shades


GREY = scene()
NO_DATA = GREY > 0.9
DEEP = {
    "16 bits": (GREY * 65535).astype(np.uint16),
    "14 bits": (GREY * 16383).astype(np.uint16),
    "12 bits": (GREY * 4095).astype(np.uint16),
    "10 bits": (GREY * 1023).astype(np.uint16),
    "9 bits": (GREY * 400).astype(np.uint16),
    "one over 8 bits": (GREY * 256).round().astype(np.uint16),
    "8 bits in 16": (GREY * 255).astype(np.uint16),
    "6 bits in 16": (GREY * 63).astype(np.uint16),
    "millimetres": (500 + GREY * 3500).astype(np.uint16),
    "hundredths of a kelvin": (29_000 + GREY * 2000).astype(np.uint16),
    "Hounsfield units": (GREY * 2000 - 1000).astype(np.int16),
    "31 bits": (GREY * 2**31 * 0.999).astype(np.int32),
    "12 bits in 32": (GREY * 4095).astype(np.int32),
    "32 bits around zero": (GREY * 1000 - 500).astype(np.int32),
    "32 bits far from zero": (2**30 + GREY * 200).astype(np.int32),
    "floats to 1": GREY.astype(np.float32),
    "floats around zero": (GREY * 2 - 1).astype(np.float32),
    "floats to 255": (GREY * 255).astype(np.float32),
    "small floats": (GREY * 1e-6).astype(np.float32),
    "heights": (1200 + GREY * 300).astype(np.float32),
}
HOLES = {
    "no number": np.where(NO_DATA, np.nan, GREY * 300).astype(np.float32),
    "infinity": np.where(NO_DATA, np.inf, GREY * 300).astype(np.float32),
    "-9999": np.where(NO_DATA, -9999, GREY * 300).astype(np.float32),
    "-32768": np.where(NO_DATA, -32768, GREY * 300).astype(np.int32),
    "the least float": np.where(NO_DATA, np.finfo(np.float32).min, GREY * 300).astype(np.float32),
    "the largest number of 16 bits": np.where(NO_DATA, 65535, GREY * 300).astype(np.uint16),
    "one at either end": np.where(NO_DATA, np.where(GREY > 0.95, -9999, 1e6), GREY * 300).astype(np.float32),
    "hot and dead pixels": np.where(
        np.arange(GREY.size).reshape(GREY.shape) % 1500 == 5, 1e6, np.minimum(GREY, 0.9) * 300
    ),
}


def shades(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(float)[..., 0] / 255


@pytest.mark.parametrize(
    ("name", "ending"),
    [*((name, "tiff") for name in DEEP), *((name, "png") for name in DEEP if DEEP[name].dtype == np.uint16)],
)
def test_the_scene_is_seen_from_black_to_white(tmp_path, name, ending):
    Image.fromarray(DEEP[name]).save(tmp_path / f"deep.{ending}")
    found = shades(read_image(tmp_path / f"deep.{ending}"))
    assert np.corrcoef(found.ravel(), GREY.ravel())[0, 1] > 0.995
    assert found.max() == 1
    assert found.mean() == pytest.approx(GREY.mean(), abs=0.12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOLES)
def test_what_stands_for_no_value_leaves_the_scene_its_range(tmp_path, name):
    Image.fromarray(HOLES[name].astype(np.float32)).save(tmp_path / "holes.tiff")
    found = shades(read_image(tmp_path / "holes.tiff"))
    there = ~NO_DATA & (HOLES[name] < 400)
    assert np.corrcoef(found[there], GREY[there])[0, 1] > 0.995
    assert found[there].max() > 0.98
    assert found[there].mean() == pytest.approx(GREY[there].mean() / GREY[there].max(), abs=0.05)
    assert not found[~np.isfinite(HOLES[name])].any()


@pytest.mark.parametrize(
    ("values", "shade"),
    [
        (np.zeros((4, 4), np.uint16), 0),
        (np.full((4, 4), 65535, np.uint16), 255),
        (np.full((4, 4), 0.5, np.float32), 127),
        (np.full((4, 4), np.nan, np.float32), 0),
        (np.full((4, 4), -7, np.int32), 0),
        (np.zeros((0, 4), np.float32), None),
    ],
)
def test_a_picture_that_is_all_alike_has_a_shade(values, shade):
    assert set(in_8_bits(values).ravel().tolist()) == (set() if shade is None else {shade})


def test_two_values_are_black_and_white():
    mask = np.array([[0, 1000], [1000, 0]], dtype=np.uint16)
    assert in_8_bits(mask).tolist() == [[0, 255], [255, 0]]
    assert value_range(mask) == (0, 1000)


def test_values_of_32_bits_without_a_sign_are_read_as_such(tmp_path):
    values = (GREY * (2**32 - 1)).astype(np.uint32)
    Image.fromarray(values.view(np.int32)).save(tmp_path / "wide.tiff")
    content = (tmp_path / "wide.tiff").read_bytes()
    signed = struct.pack("<HHII", 339, 3, 1, 2)
    assert signed in content
    (tmp_path / "wide.tiff").write_bytes(content.replace(signed, struct.pack("<HHII", 339, 3, 1, 1)))
    assert np.corrcoef(shades(read_image(tmp_path / "wide.tiff")).ravel(), GREY.ravel())[0, 1] > 0.999


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colours, (H, W, 3) or with alpha."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, endian: str = "<", deflate: bool = False) -> bytes:
    """A TIFF of 16-bit colours, (H, W, 3) or with alpha."""
    height, width, channels = values.shape
    data = values.astype(f"{endian}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    bits = struct.pack(f"{endian}{channels}H", *[16] * channels)
    tags = [
        (256, width),
        (257, height),
        (258, None),
        (259, 8 if deflate else 1),
        (262, 2),
        (273, None),
        (277, channels),
    ]
    tags += [(278, height), (279, len(data)), *([(338, 2)] if channels == 4 else [])]
    base = 8 + 2 + 12 * len(tags) + 4
    places = {258: base, 273: base + len(bits)}
    entries = b"".join(
        struct.pack(f"{endian}HHII", tag, 4, 1, places[tag] if value is None else value)
        if tag != 258
        else struct.pack(f"{endian}HHII", tag, 3, channels, base)
        for tag, value in tags
    )
    head = (b"II" if endian == "<" else b"MM") + struct.pack(f"{endian}HIH", 42, 8, len(tags))
    return head + entries + struct.pack(f"{endian}I", 0) + bits + data


COLOURS = {
    "PNG": png16,
    "TIFF": tiff16,
    "TIFF, big-endian": lambda values: tiff16(values, ">"),
    "TIFF, compressed": lambda values: tiff16(values, deflate=True),
    "TIFF, compressed and big-endian": lambda values: tiff16(values, ">", deflate=True),
}


@pytest.mark.parametrize("top", [65535, 4095, 255])
@pytest.mark.parametrize("kind", COLOURS)
def test_colours_of_16_bits_share_one_range(kind, top):
    colours = np.stack([GREY, GREY**2, 0.5 * GREY], axis=2)
    found = np.asarray(read_image(io.BytesIO(COLOURS[kind]((colours * top).astype(np.uint16))))).astype(float)
    np.testing.assert_allclose(found, 255 * colours, atol=8)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colours_of_16_bits_may_be_transparent(kind):
    colours = np.stack([GREY, GREY, GREY, np.ones_like(GREY)], axis=2)
    colours[:5, :, 3] = 0
    values = (colours * [4095, 4095, 4095, 65535]).astype(np.uint16)
    found = np.asarray(read_image(io.BytesIO(COLOURS[kind](values)))).astype(float)
    assert (found[:5] == 255).all()
    np.testing.assert_allclose(found[5:, :, 0], 255 * GREY[5:], atol=8)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_ordinary_pictures_are_as_they_are_to_the_bit(tmp_path, mode):
    dim = Image.fromarray((40 + 30 * GREY).astype(np.uint8)).convert(mode)
    dim.save(tmp_path / "dim.tiff")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "dim.tiff")), np.asarray(dim.convert("RGB")))


def test_small_pictures_with_one_hot_pixel_keep_their_range():
    values = np.linspace(0, 200, 100).reshape(10, 10)
    values[3, 3] = 1e6
    assert value_range(values) == (0, 200)


@pytest.mark.parametrize(("maximum", "bits"), [(65535, 12), (65535, 16), (4095, 12)])
def test_ppm_of_more_than_8_bits_is_brought_to_its_range(maximum, bits):
    colours = np.stack([GREY, GREY[::-1], 1 - GREY], axis=2)
    data = (colours * (2**bits - 1)).astype(">u2").tobytes()
    header = b"P6\n%d %d\n%d\n" % (GREY.shape[1], GREY.shape[0], maximum)
    found = np.asarray(read_image(io.BytesIO(header + data))) / 255
    np.testing.assert_allclose(found, colours, atol=0.03)


@pytest.mark.parametrize("values", [(GREY * 255 - 128).astype(np.int8), (GREY * 100 - 50).astype(np.int8)])
def test_bytes_with_a_sign_are_read_as_such(tmp_path, values):
    tifffile.imwrite(tmp_path / "signed.tiff", values)
    assert np.corrcoef(shades(read_image(tmp_path / "signed.tiff")).ravel(), GREY.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_where_white_is_zero_the_scene_is_turned_over(tmp_path, dtype):
    values = (GREY * (255 if dtype != np.uint16 else 65535)).astype(dtype)
    tifffile.imwrite(tmp_path / "negative.tiff", values, photometric="miniswhite")
    assert np.corrcoef(shades(read_image(tmp_path / "negative.tiff")).ravel(), GREY.ravel())[0, 1] < -0.995


BEYOND_PILLOW = {
    "floats of 16 bits": GREY.astype(np.float16),
    "floats of 64 bits": GREY * 1e-9,
    "heights of 64 bits": 1200 + GREY * 300,
    "whole numbers of 64 bits": (GREY * 1e18).astype(np.uint64),
    "64 bits with a sign": (GREY * 1000 - 500).astype(np.int64),
    "two bands": np.stack([GREY, 1 - GREY], axis=-1).astype(np.float32),
    "four bands of 16 bits": (np.stack([GREY] * 4, axis=-1) * 4095).astype(np.uint16),
    "nine bands": (np.stack([GREY] * 9, axis=-1) * 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", BEYOND_PILLOW)
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"tile": (16, 16)}, {"compression": 8}])
def test_tiffs_that_pillow_does_not_read(tmp_path, name, options):
    tifffile.imwrite(tmp_path / "deep.tiff", BEYOND_PILLOW[name], photometric="minisblack", planarconfig=1, **options)
    found = shades(read_image(tmp_path / "deep.tiff"))
    assert np.corrcoef(found.ravel(), GREY.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint32])
@pytest.mark.parametrize("planar", [1, 2])
def test_colours_of_more_than_16_bits(tmp_path, dtype, planar):
    colours = np.stack([GREY, GREY[::-1], 1 - GREY])
    values = (colours * (2**32 - 1 if dtype == np.uint32 else 1)).astype(dtype)
    values = values if planar == 2 else np.ascontiguousarray(np.moveaxis(values, 0, -1))
    tifffile.imwrite(tmp_path / "colours.tiff", values, photometric="rgb", planarconfig=planar)
    np.testing.assert_allclose(
        np.asarray(read_image(tmp_path / "colours.tiff")) / 255, np.moveaxis(colours, 0, -1), atol=0.01
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_such_tiffs_are_turned_as_all_others(tmp_path, orientation):
    tag = (274, 3, 1, orientation, False)
    tifffile.imwrite(tmp_path / "deep.tiff", GREY, extratags=[tag])
    tifffile.imwrite(tmp_path / "plain.tiff", (GREY * 255).astype(np.uint8), extratags=[tag])
    found, plain = (np.asarray(read_image(tmp_path / f"{name}.tiff")).astype(int) for name in ("deep", "plain"))
    assert found.shape == plain.shape
    assert abs(found - plain).max() <= 5  # the highest thousandth is white


def test_values_that_are_no_shades_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "phases.tiff", GREY.astype(np.complex64))
    with pytest.raises(ImageError, match="a TIFF of complex64"):
        read_image(tmp_path / "phases.tiff")


def test_the_memory_that_many_bands_take_is_told_before_it_is_taken(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "bands.tiff", np.zeros((64, 64, 200)), photometric="minisblack", planarconfig=1)
    monkeypatch.setattr("cae.data.images.most_memory", lambda: 64 * 64 * 200 * 8)
    with pytest.raises(ImageError, match="GB of memory"):
        read_image(tmp_path / "bands.tiff")
    assert image_size(tmp_path / "bands.tiff") == (64, 64)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("bands", [1, 3])
def test_of_a_volume_the_first_slice_is_read(tmp_path, planar, bands):
    volume = np.stack([GREY, 100 * GREY[::-1]])
    values = np.stack([volume] * bands, axis=0 if planar == 2 else -1) if bands > 1 else volume
    options = {"photometric": "rgb" if bands > 1 else "minisblack", "planarconfig": planar if bands > 1 else None}
    tifffile.imwrite(tmp_path / "volume.tiff", values, volumetric=True, tile=(16, 16, 16), **options)
    found = shades(read_image(tmp_path / "volume.tiff"))
    assert np.corrcoef(found.ravel(), GREY.ravel())[0, 1] > 0.995


def test_the_memory_that_a_volume_takes_is_told_before_it_is_taken(tmp_path, monkeypatch):
    values = np.zeros((200, 64, 64))
    tifffile.imwrite(tmp_path / "volume.tiff", values, photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    monkeypatch.setattr("cae.data.images.most_memory", lambda: values.nbytes)
    with pytest.raises(ImageError, match="GB of memory"):
        read_image(tmp_path / "volume.tiff")
