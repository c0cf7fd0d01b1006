"""Every mode and orientation opens as the same upright RGB; everything that is no image gets one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sdxl_ray.data.image_io import BadImage, open_image, probe, verify
from tests.cases import cases

pytestmark = pytest.mark.chaos

PHOTOS = Path(__file__).parents[3] / "shared" / "dreambooth"


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    """An image whose corners are all different, so that a wrong turn shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_probed(kind: str, orientation: int) -> None:
    upright = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a camera stores is the inverse of what a viewer applies.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    data = encoded(
        stored, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {})
    )
    opened = open_image(data, "a")
    assert opened.mode == "RGB"
    assert opened.size == probe(data, "a") == verify(data, "a") == upright.size
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(upright)).max() <= (40 if kind == "JPEG" else 0)


def test_alpha_lies_over_white() -> None:
    image = gradient().convert("RGBA")
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, 20, 24))
    alpha.paste(128, (20, 0, 30, 24))
    image.putalpha(alpha)
    opened = np.asarray(open_image(encoded(image), "a")).astype(int)
    plain = np.asarray(gradient()).astype(int)
    assert (opened[:, :20] == 255).all()
    assert np.abs(opened[:, 20:30] - (plain[:, 20:30] * 128 + 255 * 127) / 255).max() <= 1
    assert (opened[:, 30:] == plain[:, 30:]).all()


def test_grey_alpha_and_palette_transparency_lie_over_white() -> None:
    grey = Image.merge("LA", (Image.new("L", (16, 16), 10), Image.new("L", (16, 16), 0)))
    assert open_image(encoded(grey), "a").getpixel((3, 3)) == (255, 255, 255)
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putpixel((0, 0), 0)
    for transparency in (0, bytes([0, 255])):
        opened = open_image(encoded(palette, transparency=transparency), "a")
        assert (opened.getpixel((0, 0)), opened.getpixel((5, 5))) == ((255, 255, 255), (200, 10, 10))


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "BMP"), ("P", "PNG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")]
)
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    white = Image.new("RGB", (16, 8), "white").convert(mode)
    opened = open_image(encoded(white, kind), "a")
    assert (opened.mode, opened.size) == ("RGB", (16, 8))
    assert np.asarray(opened).min() >= 254


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16)
    image = Image.fromarray(np.tile(levels, (8, 1)))
    assert image.mode == "I;16"
    opened = np.asarray(open_image(encoded(image, kind), "a"))
    assert (opened[0, :, 0] == np.arange(256)).all()
    assert (opened[..., 0] == opened[..., 2]).all()


def test_sixteen_bit_colour_png() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 65535, 32896, 0) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert open_image(data, "a").getpixel((4, 4)) == (255, 128, 0)


def test_colour_profile_is_converted() -> None:
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # no profile of RGB: left out
    assert open_image(encoded(gradient(), icc_profile=linear), "a").tobytes() == gradient().tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(gradient(), icc_profile=srgb), "a").tobytes() == gradient().tobytes()
    # The same profile with another name and red and green exchanged: colours must follow.
    swapped = srgb.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))
    red = Image.new("RGB", (16, 16), (250, 0, 0))
    r, g, _ = open_image(encoded(red, icc_profile=swapped), "a").getpixel((0, 0))
    assert g > 200
    assert r < 60
    assert open_image(encoded(gradient(), icc_profile=b"junk" * 40), "a").tobytes() == gradient().tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"'x.jpg' is empty \(0 bytes\)"),
        (b"hello, I am a text file", "'x.jpg' is not an image"),
        (bomb(50_000, 50_000), "'x.jpg' is 2500 megapixels, the limit is 179"),
        (encoded(Image.new("RGB", (1, 1))), "'x.jpg' is 1 x 1 pixels, the least is 8"),
        (encoded(Image.new("RGB", (4000, 7))), "4000 x 7"),
        (encoded(gradient(), "GIF"), "a GIF: give PNG, JPEG, WEBP, BMP or TIFF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "a HEIC"),
        (encoded(gradient(), "EPS"), "an EPS: give PNG"),  # Pillow would start Ghostscript for it
        (b"SIMPLE  =                    T" + b" " * 2850, "not an image"),  # FITS
        (b"\x89PNG\r\n\x1a\n\0\0", "a damaged PNG"),
        (encoded(Image.new("F", (16, 16)), "TIFF"), "mode F"),
        (encoded(gradient(), "TIFF", save_all=True, append_images=[gradient()]), "2 frames"),
        (encoded(gradient(), "PNG", save_all=True, append_images=[Image.new("RGB", (40, 24))]), "2 frames"),
    ],
)
def test_what_is_no_image_is_refused_by_its_header(data: bytes, words: str) -> None:
    for read in (open_image, probe, verify):
        with pytest.raises(BadImage, match=words) as caught:
            read(data, "x.jpg")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_images_are_found(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert verify(data, "x") == (64, 64)
    for read in (open_image, verify):
        with pytest.raises(BadImage, match="damaged"):
            read(data[: len(data) * 2 // 3], "x")


def test_large_images_below_the_limit_only_warn_in_pil() -> None:
    data = bomb(12_000, 9_000)  # a phone's 108 megapixels: PIL warns, and warnings are errors here
    assert probe(data, "x") == (12_000, 9_000)


def test_a_phones_two_part_jpeg_is_its_first_image() -> None:
    data = encoded(gradient(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert open_image(data, "x").size == (40, 24)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"'gone.png' cannot be read: No such file"):
        open_image(tmp_path / "gone.png", "gone.png")


@settings(max_examples=cases(150), deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_damage_is_an_image_or_a_typed_error(kind: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(gradient(), kind))
    for place, value in damage:
        data[int(place * len(data))] = value
    try:
        size = probe(bytes(data), "x")
        assert open_image(bytes(data), "x").size == size
    except BadImage:
        pass


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photos are not beside this checkout")
def test_real_photos_open() -> None:
    photos = sorted(PHOTOS.glob("dog*/*.jpg"))
    assert len(photos) >= 15
    for photo in photos[:5]:
        opened = open_image(photo, photo.name)
        assert opened.size == verify(photo, photo.name)
        assert np.asarray(opened).std() > 10
