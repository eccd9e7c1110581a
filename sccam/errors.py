"""The error tree. Every error a user can meet says what, where, likely why, and what to do next.

Each class carries the exit code that the command line ends with, so no command decides twice.
"""

from __future__ import annotations


def printable(name: str) -> str:
    """A name for a terminal: what would end a line, ring or colour is written out, as is what is no text."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def short(name: str, most: int = 80) -> str:
    """The name in quotation marks, cut where it would fill a screen."""
    return repr(name) if len(name) <= most else f"{name[:most]!r}... ({len(name)} characters)"


class SccamError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        what: what is wrong, in one line.
        where: the file, line, setting or record concerned.
        why: the likely reason.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, why: str | None = None, fix: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where  {printable(self.where)}")
        if self.why:
            parts.append(f"  likely {self.why}")
        if self.fix:
            parts.append(f"  fix    {self.fix}")
        return "\n".join(parts)

    def line(self) -> str:
        """The error in one line, as one of many: where, what, and what to do."""
        return ": ".join(part for part in (printable(self.where or ""), self.what) if part) + (
            f"; {self.fix}" if self.fix else ""
        )


class ConfigError(SccamError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class DataError(SccamError):
    """The input folder, a tag file or a mask is not usable as it stands."""

    exit_code = 3


class ImageError(DataError):
    """One image file cannot be read. Whatever the decoder raised becomes this."""


class MaskError(DataError):
    """One mask file cannot be read as class indices."""


class RunFolderError(SccamError):
    """A run folder is locked, belongs to another plan, or lacks what is asked of it."""

    exit_code = 3


class BackendUnavailable(SccamError):
    """A library that a named backend needs is not installed or does not work here."""

    exit_code = 4


class WeightsError(SccamError):
    """A weight file cannot be read, or does not fit the network."""

    exit_code = 3


class ShapeError(SccamError):
    """Two arrays that must agree do not."""


class NumericError(SccamError):
    """NaN or infinity where a finite number must be; training stops and keeps what it has."""

    exit_code = 6


class ParityError(SccamError):
    """An exported network does not compute what the network it was made from computes."""

    exit_code = 6


class ModelFileError(SccamError):
    """An exported file is no model, is not safe to open, or was built for another machine."""

    exit_code = 3


class ResourceError(SccamError):
    """Disk or memory ran out."""

    exit_code = 7


class Interrupted(SccamError):
    """The user asked to stop; what was done so far is saved."""

    exit_code = 130
