"""Data in: an image folder or VOC becomes a Dataset, with tags for training and masks for measuring kept apart."""

from __future__ import annotations

from pathlib import Path

from sccam.data.folder import read_folder
from sccam.data.voc import read_voc
from sccam.errors import DataError
from sccam.structures import Dataset

__all__ = ["open_dataset", "read_folder", "read_voc"]


def open_dataset(
    path: Path | str, *, train_list: str = "train_aug", val_list: str = "val", allow_negative: bool = False
) -> Dataset:
    """The dataset at `path`: VOC if it holds JPEGImages and ImageSets, any other folder as `read_folder` describes.

    Args:
        path: the folder.
        train_list, val_list: names of lists in a VOC folder; other folders have train.txt and val.txt.
        allow_negative: accept images without any tag.

    Raises:
        DataError: the first thing that is wrong with it, with file and line.
    """
    path = Path(path)
    if (path / "JPEGImages").is_dir() and (path / "ImageSets").is_dir():
        return read_voc(path, train_list=train_list, val_list=val_list, allow_negative=allow_negative)
    if (path / "VOC2012").is_dir():
        raise DataError("this holds VOC2012, but is not it", where=path, fix=f"give {path / 'VOC2012'}")
    return read_folder(path, allow_negative=allow_negative)
