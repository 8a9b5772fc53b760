"""Image files and their bytes -> arrays.

Shapes: n images, H x W pixels, C channels.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfl.data import cache
from rayfl.errors import Refuse, reason

if TYPE_CHECKING:  # Pillow is slow to import: only the functions that use it do so
    from PIL.Image import Image

_VERSION = 1  # of what is made of an image below; another one is another entry in the cache
_DECODE_THREADS = 4  # Pillow decodes without holding the interpreter lock ...
_DECODE_CHUNK = 100  # ... but on small images one task per image costs more than it gains
# Pillow knows the names of these, but cannot decode them, or only on Windows.
_UNDECODABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}


class Encoded(NamedTuple):
    """An image that is not decoded yet."""

    where: str  # the file, or file and row, as messages name it
    content: bytes | Path


class Decoded(NamedTuple):
    pixels: np.ndarray  # uint8 [n, H, W, C]; C is 1 if all images are grey, otherwise 3
    # Positions of the images that have more frames than the first, which is the one that counts.
    animated: list[str]


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that Pillow can open, in lower case."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind not in _UNDECODABLE)


def decode(
    images: Callable[[], Iterable[Encoded]], refuse: Refuse, size: int | None = None
) -> Decoded:
    """Pixels of encoded images, all of one size, or resized to `size` x `size`.

    They are taken from the cache, or put there. As torchvision's ImageFolder has it, a rotation that the file
    asks for (EXIF) is not done, and transparency is dropped. `images` begins anew with each call; `refuse`
    makes the errors.
    """
    key = _key(images(), size)
    if key and (known := cache.get(key)):
        return Decoded(known["pixels"], known["animated"].tolist())
    found = _decoded(images(), refuse, size)
    if key and key == _key(images(), size):  # nobody has changed a file since
        cache.put(key, pixels=found.pixels, animated=np.array(found.animated, dtype=str))
    return found


def _key(images: Iterable[Encoded], size: int | None) -> str | None:
    """Digest of the images, of their names and of what decodes them; None: a file cannot be read."""
    import PIL
    from PIL import features

    decoder = _VERSION, PIL.__version__, features.version("jpg"), size
    found = hashlib.sha256(repr(decoder).encode())
    try:
        for where, content in images:
            content = content.read_bytes() if isinstance(content, Path) else content
            found.update(f"{where!a} {len(content)}".encode())
            found.update(content)
    except OSError:
        return None
    return found.hexdigest()


def _decoded(images: Iterable[Encoded], refuse: Refuse, size: int | None) -> Decoded:
    def decode_all(chunk: list[Encoded]) -> list[tuple[np.ndarray, bool]]:
        return [_decode(image, refuse, size) for image in chunk]

    pixels: np.ndarray | None = None
    sizes: set[tuple[int, ...]] = set()
    animated: list[str] = []
    with ThreadPoolExecutor(_DECODE_THREADS) as threads:
        # A block at a time: the encoded images may be many times what they become.
        for block in _blocks(images, _DECODE_THREADS * _DECODE_CHUNK):
            decoded = threads.map(decode_all, _blocks(block, _DECODE_CHUNK))
            pairs = [pair for chunk in decoded for pair in chunk]
            arrays, several = zip(*pairs, strict=True)
            animated += [image.where for image, more in zip(block, several, strict=True) if more]
            sizes |= {array.shape[:2] for array in arrays}
            if len(sizes) == 1:
                pixels = _extended(pixels, arrays)
    if not sizes:
        raise refuse("there are no images in it")
    if pixels is None or len(sizes) != 1:
        raise refuse(
            f"all images must have the same size, found {len(sizes)} sizes "
            f"{sorted(sizes)[:3]}; resize them, or use data.name=image_folder with data.size",
            keys=("data.name", "data.size"),
        )
    return Decoded(pixels, animated)


def _blocks(items: Iterable[Any], length: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while block := list(islice(iterator, length)):
        yield block


def _decode(image: Encoded, refuse: Refuse, size: int | None) -> tuple[np.ndarray, bool]:
    """The pixels [H, W] or [H, W, 3], and whether there are more frames."""
    from PIL import Image, UnidentifiedImageError

    content = image.content
    try:
        with Image.open(BytesIO(content) if isinstance(content, bytes) else content) as picture:
            pixels = np.asarray(_eight_bits(picture, size))
            return pixels, getattr(picture, "n_frames", 1) > 1
    except Exception as error:  # broken files make Pillow raise whatever its parsers do
        no_image = isinstance(error, UnidentifiedImageError)
        problem = "no image that Pillow knows" if no_image else reason(error)
        raise refuse(f"{image.where} cannot be decoded ({problem}); mend or remove it") from error


def _eight_bits(picture: "Image", size: int | None) -> "Image":
    """The picture in grey ("L") or colour ("RGB")."""
    from PIL.Image import Resampling

    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{picture.mode} is more than 8 bits a pixel, which Pillow clips")
    if picture.mode not in ("L", "RGB"):
        picture.load()
        picture.info.pop("transparency", None)  # of a palette: Pillow warns that it is dropped
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return picture if size is None else picture.resize((size, size), Resampling.BILINEAR)


def _extended(pixels: np.ndarray | None, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`pixels [n, H, W, C]` and more images of that size, in the same memory: a copy would double it."""
    channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    if pixels is None:
        pixels = np.empty((0, *arrays[0].shape[:2], channels), dtype=np.uint8)
    elif channels > pixels.shape[-1]:
        pixels = np.repeat(pixels, channels, axis=-1)
    known = len(pixels)
    pixels.resize((known + len(arrays), *pixels.shape[1:]), refcheck=False)
    for row, array in zip(pixels[known:], arrays, strict=True):
        row[:] = array if array.ndim == 3 else array[..., None]
    return pixels
