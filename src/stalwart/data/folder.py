"""A user's own images in a folder for each class."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from stalwart.core.errors import FileError, InputError
from stalwart.core.numbers import Number, require
from stalwart.data.splits import Data, Split, assemble, require_fraction

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"}
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")


@dataclass(frozen=True)
class Folder:
    """Image files ``root/train/CLASS/*`` and, if there is a test set, ``root/test/CLASS/*``; or ``root/CLASS/*``.

    The classes are the sorted names of the class folders. Hidden files and files that are no images by their suffix are
    passed over; transparency is dropped.

    Args:
        root: the folder; a relative path that does not exist is also tried below ``data_dir``.
        size: height and width in pixels to resize every image to; none: all images must have one size.
        channels: 3 for colour, 1 for grey.
        validation: the part of the training samples that is held out for validation, in [0, 1).
        test: the part of all samples that is held out for testing where there is no test folder, in [0, 1); it is the
            same for every seed.

    Raises:
        UsageError: a part is not in [0, 1), or ``size`` is below 1.
    """

    root: Path
    size: int | None = None
    channels: Literal[1, 3] = 3
    validation: Number = 0.1
    test: Number = 0.2

    def __post_init__(self) -> None:
        require_fraction(self.validation, "validation")
        require_fraction(self.test, "test")
        require(self.size is None or self.size >= 1, f"size is in pixels and must be at least 1, got {self.size}.")

    def load(self, seed: int = 0, data_dir: Path | None = None, download: bool = True, progress: bool = False) -> Data:
        """Read every image.

        Raises:
            FileError: a folder is missing or empty, or an image is damaged; the message names it.
            InputError: images differ in size and no ``size`` is given, or a test class is not among the training classes.
        """
        root = self.root
        if data_dir is not None and not root.exists() and (data_dir / root).exists():
            root = data_dir / root
        parted = (root / "train").is_dir()
        base = root / "train" if parted else root
        classes = _subfolders(base)
        if len(classes) < 2:
            raise FileError(
                f"{base} has {len(classes)} class folders, but at least 2 are needed; arrange images as "
                "ROOT/CLASS/*.png or ROOT/train/CLASS/*.png."
            )
        train = self._read(base, classes)
        if not parted or not (root / "test").is_dir():
            return assemble(root.name, train, float(self.test), classes, seed, self.validation)
        strange = [name for name in _subfolders(root / "test") if name not in classes]
        if strange:
            raise InputError(f"{root / 'test' / strange[0]} is a class that {base} does not have; rename or remove it.")
        present = tuple(name for name in classes if (root / "test" / name).is_dir())
        test = self._read(root / "test", present, classes)
        return assemble(root.name, train, test, classes, seed, self.validation)

    def _read(self, base: Path, folders: tuple[str, ...], classes: tuple[str, ...] | None = None) -> Split:
        classes = classes or folders
        images: list[np.ndarray] = []
        labels: list[int] = []
        first: Path | None = None
        for name in folders:
            files = _images(base / name)
            if not files:
                raise FileError(f"{base / name} has no image ({', '.join(sorted(_SUFFIXES))}); add some or remove it.")
            for path in files:
                image = self._open(path)
                if first is None:
                    first = path
                elif image.shape != images[0].shape:
                    raise InputError(
                        f"{path} has {image.shape[0]} x {image.shape[1]} pixels but {first} has "
                        f"{images[0].shape[0]} x {images[0].shape[1]}; give size=... to resize all to one size."
                    )
                images.append(image)
                labels.append(classes.index(name))
        if not images:
            raise FileError(f"{base} has no class folder with images; add some or remove it.")
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        return Split(x, torch.tensor(labels, dtype=torch.int64))

    def _open(self, path: Path) -> np.ndarray:
        try:
            # Pillow decodes what there is of a damaged PNG without a word; verify compares every chunk's checksum.
            with Image.open(path, formats=_FORMATS) as image:
                image.verify()
            with Image.open(path, formats=_FORMATS) as image:
                # Pillow would clip deeper pixels to 255 and so turn most of them white.
                if image.mode.startswith(("I", "F")):
                    raise FileError(f"{path} has more than 8 bits a channel (mode {image.mode}); save it with 8.")
                picture = image.convert("L" if self.channels == 1 else "RGB")
                if self.size is not None:
                    picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
                return np.array(picture, dtype=np.uint8).reshape(picture.height, picture.width, self.channels)
        except FileError:
            raise
        except Exception as problem:  # each of Pillow's decoders has errors of its own
            raise FileError(f"cannot read image {path}: {problem}. Replace or remove it.") from problem


def _subfolders(base: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(item.name for item in base.iterdir() if item.is_dir() and not item.name.startswith(".")))
    except OSError as problem:
        raise FileError(f"cannot read the image folder {base}: {problem.strerror}.") from problem


def _images(folder: Path) -> list[Path]:
    return sorted(
        item for item in folder.iterdir() if item.suffix.lower() in _SUFFIXES and not item.name.startswith(".")
    )
