"""Images in files: what a run gets of them, in each form and shape, and what is said of those that are broken."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutlayer.broker.errors import SettingsError
from cutlayer.broker.manifest import ImageSpec
from cutlayer.edge_agent.data_images import IMAGE_SUFFIXES, ImageReader
from cutlayer.edge_agent.data_unreadable import Unreadable

COLOUR = ImageSpec(height=8, width=8, channels=3, patch=4)
GREY = ImageSpec(height=8, width=8, channels=1, patch=4)


def halves(width: int = 32, height: int = 16) -> Image.Image:
    """Return an image whose left half is red and whose right half is blue."""
    pixels_HWC = np.zeros((height, width, 3), np.uint8)
    pixels_HWC[:, : width // 2, 0] = 255
    pixels_HWC[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels_HWC)


def saved(folder: Path, image: Image.Image, name: str = "image.png") -> Path:
    image.save(folder / name)
    return folder / name


def noise_png(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    return saved(folder, Image.fromarray(pixels))


@pytest.mark.parametrize("name", [f"image{suffix}" for suffix in IMAGE_SUFFIXES if suffix != ".npy"])
def test_each_kind_of_file_gives_its_pixels(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, Image.new("RGB", (8, 8), (200, 100, 50)), name)
    reader = ImageReader(COLOUR, "crop")
    reader.check(path)
    pixels_HWC = reader.read(path)
    assert pixels_HWC.shape == (8, 8, 3)
    assert pixels_HWC.dtype == np.uint8
    # Lossy files and palettes are near it only.
    assert np.abs(pixels_HWC.astype(int) - (200, 100, 50)).max() <= (30 if name.endswith("gif") else 4)


def test_pixels_of_the_right_shape_are_not_touched(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(ImageReader(COLOUR, "crop").read(saved(tmp_path, Image.fromarray(pixels))), pixels)


def test_crop_takes_the_middle_and_stretch_everything(tmp_path: Path) -> None:
    pixels_HWC = np.zeros((16, 32, 3), np.uint8)
    pixels_HWC[:, :8] = 255  # white at the left end, which a middle square does not reach
    path = saved(tmp_path, Image.fromarray(pixels_HWC))
    assert ImageReader(COLOUR, "crop").read(path).max() < 20
    assert (ImageReader(COLOUR, "stretch").read(path)[:, 0] > 200).all()


def test_pad_keeps_everything_and_fills_up_with_black(tmp_path: Path) -> None:
    pixels_HWC = ImageReader(COLOUR, "pad").read(saved(tmp_path, Image.new("RGB", (32, 16), (255, 255, 255))))
    assert (pixels_HWC[2:6] > 200).all()
    assert (pixels_HWC[[0, 1, 6, 7]] == 0).all()


def test_making_smaller_averages_and_does_not_pick_pixels(tmp_path: Path) -> None:
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = ImageReader(GREY, "stretch").read(saved(tmp_path, Image.fromarray(checkers)))
    assert np.abs(pixels.astype(int) - 127).max() < 10


def test_photograph_is_turned_as_the_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    halves(16, 16).save(tmp_path / "photo.jpg", exif=exif)
    pixels_HWC = ImageReader(COLOUR, "stretch").read(tmp_path / "photo.jpg")
    assert (pixels_HWC[:3, :, 0] > 150).all()  # what was left is on top
    assert (pixels_HWC[5:, :, 2] > 150).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_are_those_of_the_run(tmp_path: Path, mode: str, channels: int) -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 255)).convert("RGB").convert(mode)
    path = saved(tmp_path, image, "image.tif" if mode == "CMYK" else "image.png")
    spec = ImageSpec(height=8, width=8, channels=channels, patch=4)
    pixels_HWC = ImageReader(spec, "crop").read(path)
    assert pixels_HWC.shape == (8, 8, channels)
    assert (pixels_HWC[:, :, 0] > 250).all()


def test_grey_of_16_bits_keeps_what_8_bits_would_lose(tmp_path: Path) -> None:
    values_HW = np.full((8, 8), 1_000, np.uint16)
    values_HW[:, 4:] = 1_100  # the same level of 256
    pixels_HWC = ImageReader(GREY, "crop").read(saved(tmp_path, Image.fromarray(values_HW)))
    assert pixels_HWC.dtype == np.float32
    np.testing.assert_allclose(pixels_HWC[:, :, 0], values_HW / 65_535, rtol=1e-6)
    assert (ImageReader(COLOUR, "crop").read(tmp_path / "image.png") == pixels_HWC).all()


def test_deep_image_is_scaled_within_0_to_1(tmp_path: Path) -> None:
    values_HW = np.zeros((32, 32), np.uint16)
    values_HW[:, 16:] = 65_535  # an edge, where the filter overshoots
    pixels = ImageReader(GREY, "stretch").read(saved(tmp_path, Image.fromarray(values_HW)))
    assert pixels.min() == 0.0
    assert pixels.max() == 1.0


def test_float_image_outside_0_to_1_is_unreadable(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.full((8, 8), 7.0, np.float32)), "image.tif")
    with pytest.raises(Unreadable, match="values of mode F outside 0 to 1"):
        ImageReader(GREY, "crop").read(path)


def test_array_of_many_channels_is_taken_as_it_is(tmp_path: Path) -> None:
    spec = ImageSpec(height=8, width=8, channels=12, patch=4)
    pixels = np.random.default_rng(2).integers(0, 255, (8, 8, 12), dtype=np.uint8)
    np.save(tmp_path / "bands.npy", pixels)
    reader = ImageReader(spec, "crop")
    reader.check(tmp_path / "bands.npy")
    assert np.array_equal(reader.read(tmp_path / "bands.npy"), pixels)


def test_array_of_another_shape_is_unreadable_and_says_what_is_expected(tmp_path: Path) -> None:
    np.save(tmp_path / "bands.npy", np.zeros((8, 9, 3), np.uint8))
    for read in (ImageReader(COLOUR, "crop").check, ImageReader(COLOUR, "crop").read):
        with pytest.raises(Unreadable, match=r"an array \(8, 9, 3\); expected \(8, 8, 3\)"):
            read(tmp_path / "bands.npy")


def test_image_file_in_a_run_with_twelve_channels_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    reader = ImageReader(ImageSpec(height=8, width=8, channels=12, patch=4), "crop")
    with pytest.raises(SettingsError, match="12 channels") as caught:
        reader.check(saved(tmp_path, halves()))
    assert ".npy" in caught.value.fix


def test_file_that_is_none_or_not_there_is_unreadable(tmp_path: Path) -> None:
    reader = ImageReader(COLOUR, "crop")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    for read in (reader.check, reader.read):
        with pytest.raises(Unreadable, match="no image that Pillow knows"):
            read(tmp_path / "text.png")
        with pytest.raises(Unreadable, match="no image that Pillow knows"):
            read(tmp_path / "empty.png")
        with pytest.raises(Unreadable, match="No such file or directory"):
            read(tmp_path / "missing.png")
        with pytest.raises(Unreadable, match="Is a directory"):
            read(tmp_path)


def test_truncated_image_passes_the_header_check_and_fails_when_it_is_read(tmp_path: Path) -> None:
    path = noise_png(tmp_path)
    path.write_bytes(path.read_bytes()[:1_000])
    reader = ImageReader(COLOUR, "crop")
    reader.check(path)
    with pytest.raises(Unreadable, match="truncated"):
        reader.read(path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_damage_anywhere_in_a_file_is_unreadable_and_never_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    reader = ImageReader(COLOUR, "crop")
    outcomes = set()
    for form in ("png", "jpeg", "gif", "tiff", "bmp", "webp"):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, form)
        whole = buffer.getvalue()
        for turn in range(60):
            octets = bytearray(whole)
            for place in rng.integers(0, len(octets), 3):
                octets[place] = rng.integers(256)
            path = tmp_path / f"damaged.{form}"
            path.write_bytes(bytes(octets[: rng.integers(1, len(octets)) if turn % 2 else None]))
            try:
                reader.read(path)
                outcomes.add("read")
            except Unreadable:
                outcomes.add("unreadable")
    assert outcomes == {"read", "unreadable"}


def test_small_file_that_claims_a_huge_image_is_unreadable(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    with pytest.raises(Unreadable, match="exceeds limit"):
        ImageReader(COLOUR, "crop").check(tmp_path / "bomb.png")
