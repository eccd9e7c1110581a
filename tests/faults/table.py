"""What can go wrong, and what the program promises when it does. Rows of docs/guarantees.md."""

from __future__ import annotations

from types import MappingProxyType

FAULTS = MappingProxyType(
    {
        1: "cut, empty, changed and crafted image files; folders and texts with an image's name",
        2: "a decoder that raises anything",
        3: "a small file that claims to be gigapixels",
        4: "EPS, PSD and SVG under an image's name",
        5: "EXIF orientations 1 to 8",
        6: "palettes, grey, alpha, CMYK, 16 and 1 bit, animations",
        7: "one pixel, five thousand pixels in a row, odd sizes, ten thousand pixels a side",
        8: "masks with unknown values, colours or sizes",
        9: "tag files with wrong, missing, doubled or undecodable lines",
        10: "fewer images than clusters, equal features, features that are NaN",
        11: "one class alone, an image of every class, a class that is never seen",
        12: "a kill during training",
        13: "a kill during inference",
        14: "one and two interrupts or terminations",
        15: "a full disk, a folder that cannot be written",
        16: "an output folder of another run, model or setting",
        17: "two processes on one folder",
        18: "checkpoints and weights that are cut, changed, of another network or newer",
        19: "pickles that run a command when they are loaded",
        20: "arrays of objects",
        21: "ONNX files that point outside of themselves, are no models or too new",
        22: "engines of another TensorRT or GPU, changed engines, engines without a manifest",
        23: "manifests edited by hand",
        24: "a runtime that would compute elsewhere than asked for",
        25: "memory that does not suffice",
        26: "losses, scores and maps that are NaN, infinite or zero everywhere",
        27: "workers that die or hang",
        28: "a disk that is slow",
        29: "files that appear, vanish or change during a run",
        30: "file names of any bytes and lengths",
        31: "images of one name in two folders or of two suffixes",
        32: "links in circles, links that lead out, folders of a million entries",
        33: "clocks that jump, other time zones",
        34: "settings that are misspelt, of a wrong type or out of range",
        35: "runtimes that are missing, doubled or do not fit",
        36: "one of several processes that train together is killed or fails",
        37: "64 MB of shared memory",
        38: "an export that computes something else",
        39: "markup in file names and tags",
        40: "archives that write outside of their folder or grow without end",
    }
)
"""Number of a fault -> what it is."""

PROMISES: dict[str, tuple[str, tuple[int, ...]]] = {
    "whole": ("A run that is killed at any moment leaves the old file or the new one, never half of one; the same"
              " command, or `--resume`, goes on and ends with what an undisturbed run gives.",
              (12, 13, 14, 15, 18, 36)),
    "each": ("`infer` on N readable and M broken images writes N results and M lines that say why; its memory does not"
             " depend on N.", (1, 2, 3, 4, 5, 6, 7, 27, 28, 29, 30, 31, 32)),
    "again": ("The same `infer` again does only what is missing, and gives the same bytes on the same machine.",
              (13, 16, 17, 29)),
    "parity": ("`export` succeeds only where the file gave PyTorch's results on real images within its tolerance; a"
               " runtime never falls back in silence.", (22, 24, 25, 26, 35, 38)),
    "quiet": ("Nothing is downloaded, installed or sent; images come from the addresses that are given, if any.", ()),
    "code": ("No file of somebody else runs code: no pickle is read, no ONNX file that refers to others, no engine that"
             " does not fit its manifest and this machine.", (4, 19, 20, 21, 22, 23, 39, 40)),
    "told": ("Wrong data and settings are refused before anything is trained, with what, where, why and what to do.",
             (8, 9, 10, 11, 16, 33, 34, 37)),
    "same": ("The same seed on the same CPU gives the same weights, bit for bit, with `--deterministic`.", ()),
}  # fmt: skip
"""Promise -> its words, and the faults that put it to the test."""
