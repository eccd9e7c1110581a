"""VOC's folders of masks, which CVAT calls "Segmentation mask".

    FOLDER/SegmentationClass/NAME.png      palette PNG of classes: 0 background, c + 1 class c, 255 ignore
    FOLDER/SegmentationObject/NAME.png     the same of connected components, numbered from 1; 255 stays
    FOLDER/ImageSets/Segmentation/default.txt   the names, one a line
    FOLDER/labelmap.txt                    names and colours, in CVAT's form

Images are not copied. Only classes are read back, by the colours of labelmap.txt; VOC 2012 itself has no label map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sccam.data.masks import write_labelmap, write_mask
from sccam.errors import DataError
from sccam.labels.items import Found, Labelled, Layout
from sccam.labels.masks import LABELMAP, masks_below, read_labelmap_near
from sccam.labels.polygons import regions
from sccam.structures import IGNORE, MAX_CLASSES, ByteArray

CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"
NAME_LIST = Path("ImageSets/Segmentation/default.txt")
HOLDS = frozenset({CLASSES, OBJECTS, "ImageSets", LABELMAP})  # what a folder that is written here holds
MOST_OBJECTS = MAX_CLASSES  # 1..254; the smallest of more than these become 255 in SegmentationObject


def read(path: Path, images: Path | None = None) -> Found:
    """The classes of a VOC folder.

    Raises:
        DataError: there are no masks, or labelmap.txt is wrong.
    """
    classes, colours = read_labelmap_near(path)
    return Found(classes, masks_below(path / CLASSES, colours, images))


@contextmanager
def writing(path: Path, classes: Sequence[str], layout: Layout) -> Iterator[Callable[[Labelled], int]]:
    """A VOC folder; yields what takes an item and tells how many objects were written."""
    write_labelmap(path / LABELMAP, classes)
    (path / CLASSES).mkdir()
    (path / NAME_LIST).parent.mkdir(parents=True)
    with (path / NAME_LIST).open("w", encoding="utf-8", errors="surrogateescape") as names:

        def add(item: Labelled) -> int:
            if len(item.name.splitlines()) > 1:
                raise DataError(f"a list of names cannot hold {item.name!r}", where=item.where, fix="rename the image")
            objects, count = object_index(item.index)
            write_mask(path / CLASSES / f"{item.name}.png", item.index)
            write_mask(path / OBJECTS / f"{item.name}.png", objects)
            names.write(item.name + "\n")
            return count

        yield add


def object_index(index: ByteArray) -> tuple[ByteArray, int]:
    """Connected components of a mask [H W], numbered from 1 with 255 kept, and how many have a number."""
    found = regions(index)
    number = np.arange(len(found) + 1)
    if len(found) > MOST_OBJECTS:
        largest = np.sort(np.argsort(-found.area, kind="stable")[:MOST_OBJECTS])
        number[1:] = IGNORE
        number[1 + largest] = np.arange(1, MOST_OBJECTS + 1)
    objects = number.astype(np.uint8)[found.number]
    objects[index == IGNORE] = IGNORE
    return objects, min(len(found), MOST_OBJECTS)
