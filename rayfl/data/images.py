"""Image files and their bytes -> arrays.

Shapes: n images, H x W pixels, C channels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np

from rayfl.errors import ConfigError, reason

_DECODE_THREADS = 4  # Pillow decodes without holding the interpreter lock ...
_DECODE_CHUNK = 500  # ... but on small images one task per image costs more than it gains
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def directory_of(path: str, layout: str) -> Path:
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise ConfigError(
            f"data.path = {path!r}: {directory} is not a directory; expected one with {layout}"
        )
    return directory


def decode(images: Sequence[bytes | Path], given: str, size: int | None = None) -> np.ndarray:
    """Encoded images -> uint8 [n, H, W, C]; C is 1 if all of them are grey, otherwise 3.

    `given` is the option that named them, as ConfigError shows it: "data.path = 'here'".
    """
    from PIL import Image

    def decode_one(image: bytes | Path) -> np.ndarray:
        with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"{picture.mode} is more than 8 bits a pixel, which Pillow clips")
            if picture.mode not in ("L", "RGB"):
                picture = picture.convert("L" if picture.mode == "1" else "RGB")
            if size is not None:
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(picture)

    starts = range(0, len(images), _DECODE_CHUNK)
    chunks = [images[start : start + _DECODE_CHUNK] for start in starts]
    try:
        with ThreadPoolExecutor(_DECODE_THREADS) as threads:
            decoded = threads.map(lambda chunk: [decode_one(image) for image in chunk], chunks)
            arrays = [array for chunk in decoded for array in chunk]
    except (OSError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{given}: an image cannot be decoded ({reason(error)})") from error
    sizes = {array.shape[:2] for array in arrays}
    if len(sizes) != 1:
        raise ConfigError(
            f"{given}: all images must have the same size, found {len(sizes)} sizes "
            f"{sorted(sizes)[:3]}; resize them, or use data.name=image_folder with data.size"
        )
    channels = 3 if any(array.ndim == 3 for array in arrays) else 1
    stacked = np.empty((len(arrays), *sizes.pop(), channels), dtype=np.uint8)
    for row, array in zip(stacked, arrays, strict=True):
        row[:] = array if array.ndim == 3 else array[..., None]
    return stacked
