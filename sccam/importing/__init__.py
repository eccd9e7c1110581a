"""Image-level tags out of other programs' files: whatever they say of an image, its tags are the classes it names.

readers.py   COCO, Label Studio, VOC annotations, folders of classes: a stream of names with tags
table.py     CSV files as people and competitions write them
files.py     which file below a folder a name means
write.py     from such a stream to a folder that `sccam train` reads
"""

from __future__ import annotations

from sccam.importing.table import Columns
from sccam.importing.write import Imported, import_tags

__all__ = ["Columns", "Imported", "import_tags"]
