"""An ImageFolder: one folder of images per class."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from pipeline.errors import RecipeError
from pipeline.packing.class_indices import number_classes
from pipeline.packing.labelled import EMPTY, LabelledImage, LabelledImages, has_image_extension

# Folders of thumbnails, recycled and found files that storage devices, archivers and file systems make.
_SYSTEM_FOLDERS = {"@eaDir", "@Recycle", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_SYSTEM_FOLDERS |= {"__MACOSX", "__pycache__"}
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"}

_HIDDEN = "hidden, or made by a system"
_LOOSE = "not in a class folder"
_NO_IMAGE = "not an image"
_BROKEN = "a link to nothing"


def read_image_folder(folder: Path, *, names: Mapping[str, int], out: Path | None) -> LabelledImages:
    """Lists an ImageFolder: every image below a class's folder, links followed as torchvision does.

    Args:
        folder: One folder per class; hidden folders, those without an image and `out` are none.
        names: The index of each class; where it is empty, `number_classes` finds them.
        out: Where the shards will lie, if that is a folder.

    Raises:
        RecipeError: The folders are splits such as train and val, or their names allow two readings; a class is not
            among `names`; a link leads to a folder that it lies in.
    """
    left_out: dict[str, list[str]] = {}
    by_class: dict[str, list[Path]] = {}
    for path in _files(folder, folder, out, left_out, ancestors=()):
        relative = path.relative_to(folder)
        if not has_image_extension(path.name):
            left_out.setdefault(_NO_IMAGE, []).append(str(path))
        elif len(relative.parts) == 1:
            left_out.setdefault(_LOOSE, []).append(str(path))
        elif not path.stat().st_size:
            left_out.setdefault(EMPTY, []).append(str(path))
        else:
            by_class.setdefault(relative.parts[0], []).append(path)
    if not by_class:
        return LabelledImages((), left_out=left_out)
    notes: list[str] = []
    classes = dict(names)
    if not names:
        _require_classes(folder, by_class)
        classes, notes = number_classes(by_class, where=str(folder))
    unknown = sorted(by_class.keys() - classes.keys())
    if unknown:
        listed = ", ".join(list(classes)[:3])
        raise RecipeError(f"{folder}/{unknown[0]}: --classes names no such class; it begins with {listed}")
    images = [
        LabelledImage(PurePosixPath(path.relative_to(folder)), str(path), classes[name], path.read_bytes)
        for name in sorted(by_class)
        for path in by_class[name]
    ]
    return LabelledImages(images, classes, left_out, notes)


def _files(
    folder: Path, root: Path, out: Path | None, left_out: dict[str, list[str]], ancestors: tuple[tuple[int, int], ...]
) -> Iterator[Path]:
    """The files below a folder in the order of their paths, through links; what is left out is added to `left_out`."""
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in ancestors:
        raise RecipeError(f"{folder}: a link to a folder that it lies in; remove it")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or (entry.is_dir() and entry.name in _SYSTEM_FOLDERS):
            left_out.setdefault(_HIDDEN, []).append(str(path))
        elif entry.is_dir():
            if out is None or not out.exists() or not path.samefile(out):
                yield from _files(path, root, out, left_out, (*ancestors, identity))
        elif entry.is_file():
            yield path
        else:
            left_out.setdefault(_BROKEN, []).append(str(path))


def _require_classes(folder: Path, by_class: Mapping[str, list[Path]]) -> None:
    """Refuses folders that are no classes but hold them.

    Raises:
        RecipeError: All are splits; or there is one, which holds the images in folders of its own.
    """
    names = sorted(by_class)
    nested = [name for name in names if all(len(path.relative_to(folder).parts) > 2 for path in by_class[name])]
    if all(name.lower() in _SPLITS for name in names):
        meant = next(iter(nested), names[0])
        raise RecipeError(
            f"{folder}: {' and '.join(names)} {'is a split' if len(names) == 1 else 'are splits'}, not classes; did "
            f"you mean {folder / meant}? If they are classes, name them with --classes"
        )
    if len(names) == 1 and nested:
        raise RecipeError(
            f"{folder}: {names[0]} would be the only class, and holds folders; did you mean {folder / names[0]}? If it "
            "is a class, name it with --classes"
        )
