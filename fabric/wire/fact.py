"""Frozen facts that are cheap to import.

Owns: :class:`Fact`. May import: nothing.

``dataclasses`` pulls in ``inspect``, ``ast`` and ``tokenize``: 20 ms on a fast machine, ten times
that in a guest under emulation, paid before the first packet of every cold connection. A ``Fact``
offers what the code that travels into guests needs of a frozen dataclass (typed constructor,
equality, representation, immutability) and type checkers treat it as one.
"""

from __future__ import annotations

TYPE_CHECKING = False  # by this name type checkers know it; importing typing would cost 5 ms
if TYPE_CHECKING:
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Fact:
    """Base of immutable values; fields are the annotations of the subclass, in order."""

    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        # Every subclass has annotations of its own: two levels are all a wire fact needs.
        cls.names = tuple(cls.__annotations__)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(self.names):
            raise TypeError(f"{type(self).__name__}: {len(args)} values, {len(self.names)} fields")
        values = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.names or name in values:
                raise TypeError(f"{type(self).__name__}: unexpected or repeated field {name!r}")
            values[name] = value
        missing = [n for n in self.names if n not in values and not hasattr(type(self), n)]
        if missing:
            raise TypeError(f"{type(self).__name__}: missing {', '.join(missing)}")
        self.__dict__.update(values)

    @classmethod
    def restore(cls, values: dict[str, Any]) -> Self:
        """One with these fields, unchecked: every field without a default must be among them."""
        fact = cls.__new__(cls)
        fact.__dict__.update(values)
        return fact

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def values(self) -> tuple[Any, ...]:
        """The field values in order."""
        return tuple(getattr(self, name) for name in self.names)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash((type(self), self.values()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names)
        return f"{type(self).__name__}({inside})"
