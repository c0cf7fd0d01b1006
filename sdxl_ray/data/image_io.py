"""Any image file as upright 8-bit sRGB, or one line that says what is wrong with it.

Five formats are read; an image is measured before it is decoded, so neither a bomb nor a text file with a
image's name costs memory.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageCms

from sdxl_ray.errors import UserError

#: What is read. The rest of PIL's readers are old, rare, or run other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
#: One latent of SDXL's VAE is 8 x 8 pixels; nothing can be learned from less.
MIN_SIDE = 8
#: PIL's own refusal limit: more than any camera's image, half a gigabyte of RGB.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 2**30

_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_MODES_16 = {"I;16", "I;16B", "I;16L", "I;16N"}
_SIGNATURES = (
    (b"\x89PNG", "a damaged PNG"),
    (b"\xff\xd8", "a damaged JPEG"),
    (b"RIFF", "a damaged WEBP"),
    (b"BM", "a damaged BMP"),
    (b"II*\0", "a damaged TIFF"),
    (b"MM\0*", "a damaged TIFF"),
    (b"GIF8", "a GIF"),
    (b"%!PS", "an EPS"),
    (b"%PDF", "a PDF"),
    (b"8BPS", "a Photoshop file"),
)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# warnings.catch_warnings changes the whole process, so only one thread at a time may be inside.
_reading_header = threading.Lock()


class BadImage(UserError):  # noqa: N818 - what it says of a file reads better than ImageError
    """A file that is no usable image; the message names it, what is wrong and what to do."""


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """Decode one image (a file or its bytes) to RGB: EXIF orientation applied, alpha laid over white.

    Palette, grey, 1-bit, 16-bit and CMYK images are converted; an embedded colour profile is converted to sRGB.
    `name` is what errors call it. Raises BadImage.
    """
    image, orientation = _header(_bytes(source, name), name)
    with image:
        try:
            image.load()
            upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
            return _rgb(upright)
        except Exception as error:  # decoders raise anything from zlib.error to IndexError on damaged files
            raise _damaged(name, error) from None


def probe(source: Path | bytes, name: str) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone. Raises BadImage."""
    image, orientation = _header(_bytes(source, name), name)
    with image:
        return _size(image, orientation)


def verify(source: Path | bytes, name: str) -> tuple[int, int]:
    """As `probe`, and every byte is decoded, so that a truncated file is found now. Raises BadImage."""
    image, orientation = _header(_bytes(source, name), name)
    with image:
        size = _size(image, orientation)
        try:
            # A JPEG at an eighth of its size costs a fraction, and still reads the whole stream.
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
        except Exception as error:  # see open_image
            raise _damaged(name, error) from None
        return size


def file_bytes(path: Path, name: str) -> bytes:
    """An image file as it is, of at most MAX_FILE_BYTES. Raises BadImage."""
    try:
        if path.stat().st_size <= MAX_FILE_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise BadImage(f"image {name!r} cannot be read: {error.strerror}; check the path and its rights") from None
    raise BadImage(f"image {name!r} is a file of more than 1 GiB, the limit: shrink it or remove it")


def _bytes(source: Path | bytes, name: str) -> bytes:
    data = source if isinstance(source, bytes) else file_bytes(source, name)
    if not data:
        raise BadImage(f"image {name!r} is empty (0 bytes): copy it again or remove it")
    return data


def _header(data: bytes, name: str) -> tuple[Image.Image, int]:
    """An opened, undecoded image that keeps all limits, and its EXIF orientation (1-8)."""
    image: Image.Image
    try:
        with _reading_header, warnings.catch_warnings():
            # Large images and odd EXIF only warn; the limits below decide instead.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            frames = int(getattr(image, "n_frames", 1))
            orientation = _orientation(image)
    except Image.DecompressionBombError as error:
        found = re.search(r"\((\d+) pixels\)", str(error))
        size = f"{int(found[1]) / 1e6:.0f} megapixels" if found else "too many pixels"
        raise BadImage(_too_large(name, size)) from None
    except Exception:  # see open_image
        raise BadImage(
            f"image {name!r} is {_what(data)}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, or remove it"
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(_too_large(name, f"{width} x {height}"))
    if min(width, height) < MIN_SIDE:
        raise BadImage(
            f"image {name!r} is {width} x {height} pixels, the least is {MIN_SIDE} a side: "
            "use a larger one or remove it"
        )
    if frames > 1 and image.format != "MPO":  # phones put a depth or gain map behind a JPEG and call that MPO
        raise BadImage(f"image {name!r} has {frames} frames, the limit is 1: save the frame you want by itself")
    if image.mode not in _MODES | _MODES_16:
        raise BadImage(f"image {name!r} has pixels of mode {image.mode}: save it with 8 or 16 bits a channel, as RGB")
    return image, orientation


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # PIL turns TIFF by itself, and gives the turned size before decoding
    # The base class's method: PNG's own decodes the whole image to look for EXIF behind the pixels.
    return int(Image.Image.getexif(image).get(_ORIENTATION, 1))


def _size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.height, image.width) if orientation >= 5 and orientation in _UPRIGHT else (image.width, image.height)


def _rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode in _MODES_16:
        levels = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.mode in ("PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colour = _srgb(image.convert(_colour_mode(image.mode)), profile)
    if alpha is None:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)


def _colour_mode(mode: str) -> str:
    """What an embedded profile describes: grey, CMYK or RGB."""
    return "L" if mode in ("1", "L", "LA") else "CMYK" if mode == "CMYK" else "RGB"


def _srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if not ImageCms.getProfileDescription(embedded).startswith("sRGB"):
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(colour, embedded, srgb, outputMode="RGB")
                return cast(Image.Image, converted)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # a damaged or foreign profile; the pixels are good without it
    return colour.convert("RGB")


def _what(data: bytes) -> str:
    for signature, words in _SIGNATURES:
        if data.startswith(signature):
            return words
    if data[4:8] == b"ftyp":
        return "an AVIF" if data[8:12] in (b"avif", b"avis") else "a HEIC or a video"
    return f"not an image (it begins with {data[:12]!r})"


def _too_large(name: str, size: str) -> str:
    return f"image {name!r} is {size}, the limit is {MAX_PIXELS / 1e6:.0f} megapixels: shrink it or remove it"


def _damaged(name: str, error: Exception) -> BadImage:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BadImage(f"image {name!r} is damaged ({reason}): copy it again, re-save it or remove it")
