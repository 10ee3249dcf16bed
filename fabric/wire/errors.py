"""Why bytes from the network or the control channel cannot be accepted.

Owns: the subclasses of WireError. May import: fabric.errors.

WireError
├── PacketTooShort        fewer bytes than a field needs
├── VersionUnknown        not version 1
├── HeaderLengthInvalid   shorter than the fixed header, or no room for an announced ICV
├── LengthMismatch        lengths in the header disagree with the datagram
├── TooManyRecords        a trace longer than the format allows
├── PathInvalid           an explicit path too long to walk, or longer than the payload it stands in
├── FieldOutOfRange       a value that does not fit its field (the sender's own mistake)
├── ProbeInvalid          a link probe that RFC 5880 has discarded
└── ControlInvalid        a control message that is too long, unknown or incomplete
"""

from __future__ import annotations

from fabric.errors import WireError


class FieldError(WireError):
    """One field is wrong: ``field``, what was ``expected``, what was ``actual``."""

    def __init__(self, field: str, expected: object, actual: object) -> None:
        super().__init__(f"{type(self).__name__}: {field}: expected {expected}, found {actual}")
        self.field = field
        self.expected = expected
        self.actual = actual


class PacketTooShort(FieldError):
    """The buffer ends inside a field."""


class VersionUnknown(FieldError):
    """The version nibble is not one we speak."""


class HeaderLengthInvalid(FieldError):
    """The header length nibble contradicts the fixed header or the flags."""


class LengthMismatch(FieldError):
    """Header, payload and trace lengths do not add up to the datagram."""


class TooManyRecords(FieldError):
    """The hop count exceeds the longest trace."""


class PathInvalid(FieldError):
    """An explicit path cannot be walked, or is not there."""


class FieldOutOfRange(FieldError):
    """A value to be packed does not fit."""


class ProbeInvalid(FieldError):
    """A link probe must be discarded."""


class ControlInvalid(FieldError):
    """A control message cannot be understood."""
