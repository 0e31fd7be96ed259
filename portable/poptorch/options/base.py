"""The base of all option groups: typed values, freezing, copies. Spec: options (section 13)."""

from __future__ import annotations

import copy
import enum
import functools
from collections.abc import Callable, Iterator
from typing import Any

from ..checks import require


def option(setter: Callable) -> Callable:
    """Makes a method an option setter: refused on frozen options, remembered as set by the user, returns self."""

    @functools.wraps(setter)
    def wrapper(self: Freezable, *args: Any, **kwargs: Any) -> Any:
        self.checkIsFrozen(setter.__name__)
        setter(self, *args, **kwargs)
        self._touched.add(setter.__name__)
        return self

    wrapper.is_option = True
    return wrapper


class Freezable:
    """Something that can be frozen and whose copies are not frozen."""

    def __init__(self) -> None:
        self._frozen = False
        self._touched: set[str] = set()  # names of the setters that the program called

    def checkIsFrozen(self, option: str | None = None) -> None:
        """Raises AttributeError if these options are frozen, i.e. an executor or a DataLoader uses them.

        `option` is the name of the one about to change; it is part of the published signature.
        """
        if self._frozen:
            raise AttributeError("Can't modify frozen Options")

    def freeze(self) -> None:
        """Makes every later change an error. Applies to nested groups too."""
        for value in list(vars(self).values()) + list(getattr(self, "_values", {}).values()):
            if isinstance(value, Freezable):
                value.freeze()
        self._frozen = True

    @property
    def touched(self) -> frozenset[str]:
        """Names of the setters that the program called."""
        return frozenset(self._touched)

    def _entries(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of what repr() shows, in an order that depends on nothing but the names."""
        yield from sorted(getattr(self, "_values", {}).items())

    def __repr__(self) -> str:
        """The values, one a line. Equal options print alike, however they came to be what they are."""
        lines = [f"    {name}={shown(value)},\n" for name, value in self._entries()]
        return f"{type(self).__name__}({chr(10) if lines else ''}{''.join(lines)})"

    def __deepcopy__(self, memo: dict) -> Freezable:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        for name, value in vars(self).items():
            object.__setattr__(clone, name, copy.deepcopy(value, memo))
        object.__setattr__(clone, "_frozen", False)
        return clone


class OptionsDict(Freezable):
    """Named values, each keeping the type of its default. Readable and writable as attributes, too."""

    def __init__(self, **default_values: Any) -> None:
        object.__setattr__(self, "_values", dict(default_values))
        super().__init__()

    def set(self, **kwargs: Any) -> None:
        """Changes existing options.

        Raises:
            AssertionError: unknown option, or a value of another type than the option's.
            AttributeError: frozen.
        """
        for name, value in kwargs.items():
            self.checkIsFrozen(name)
            require(name in self._values, f"Invalid option {name}, valid options are {sorted(self._values)}")
            expected = type(self._values[name])
            # bool is an int to isinstance, and is no number of replicas
            fits = isinstance(value, expected) and isinstance(value, bool) == (expected is bool)
            require(fits, f"Unexpected type {type(value)} for option {name}. Expected {expected}")
            self._values[name] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """As set(), for options that do not exist until set."""
        for name, value in kwargs.items():
            self.checkIsFrozen(name)
            if name in self._values:
                self.set(**{name: value})
            else:
                self._values[name] = value

    def exists(self, name: str) -> bool:
        """Whether the option has a value; options such as random_seed have none until set."""
        return name in self._values

    def deleteIfExists(self, name: str) -> None:
        """Takes an option back to having no value."""
        self.checkIsFrozen(name)
        self._values.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        # Called only for what is no ordinary attribute. Private names never are options (and copy and pickle ask
        # for some of them before _values exists).
        if not name.startswith("_") and name in self._values:
            return self._values[name]
        raise AttributeError(f"Invalid option {name!r}: {type(self).__name__} has no such option, or it is not set")

    def __getitem__(self, name: str) -> Any:
        """The value of an option by its name. KeyError if there is none, or it is not set."""
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif name in self._values:
            self.set(**{name: value})
        elif callable(getattr(type(self), name, None)):
            raise AttributeError(f"{name} is a method: call {name}({value!r}) instead of assigning to it")
        else:
            raise AttributeError(f"Invalid option {name!r}: {type(self).__name__} has no such option")

    def toDict(self) -> dict[str, Any]:
        """The values as plain data: enums as their values, nested options as dictionaries."""
        return {name: to_plain(value) for name, value in self._values.items()}


def to_plain(value: Any) -> Any:
    """`value` with enums replaced by their values and options by dictionaries, through containers."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, OptionsDict):
        return value.toDict()
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def shown(value: Any) -> str:
    """`value` as repr() of options shows it: enums by name, dictionaries and sets in the order of their keys."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, Freezable):
        return f"{type(value).__name__}({', '.join(f'{name}={shown(item)}' for name, item in value._entries())})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {shown(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(shown, value)))}}}" if value else "set()"
    if isinstance(value, (list, tuple)):
        brackets = "[]" if isinstance(value, list) else "()"
        return f"{brackets[0]}{', '.join(map(shown, value))}{brackets[1]}"
    return repr(value)
