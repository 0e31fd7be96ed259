"""A benchmark's variants, and the commands they come to. There is no shell: a value is one word, whatever is in it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from .yaml_lines import Set

Parameters = dict[str, Any]

# {name}, $NAME, ${NAME}; {{, }} and $$ stand for the characters themselves.
_PLACES = re.compile(r"\{\{|\}\}|\$\$|\{(?P<parameter>[A-Za-z_]\w*)\}|\$\{(?P<braced>\w+)\}|\$(?P<bare>[A-Za-z_]\w*)")
_VARIABLES = re.compile(r"\$\$|\$\{(?P<braced>\w+)\}|\$(?P<bare>[A-Za-z_]\w*)")
_LITERAL = {"{{": "{", "}}": "}", "$$": "$"}


def combinations(parameters: Any) -> list[Parameters]:
    """The variants that `parameters` stands for: a mapping is a product, a list is zipped.

    The values in a mapping are a list, or a text that is split at its commas: {n: "1,2"} is {n: ["1", "2"]}.
    A list is either names first and then a row of values for each variant, or mappings of one name to its values; in
    curly brackets, {a, b} and then {1, 2}, the rows are not variants but columns of a product.

    Raises ValueError saying what is wrong.
    """
    if not parameters:
        return [{}]
    if isinstance(parameters, Mapping):
        for name in parameters:
            _check_name(name)
        columns = [_values(name, values) for name, values in parameters.items()]
        return [dict(zip(parameters, row, strict=True)) for row in itertools.product(*columns)]
    if not isinstance(parameters, list):
        raise ValueError("parameters must be a mapping or a list")
    if all(isinstance(item, Mapping) for item in parameters):
        return _zipped(parameters)
    crossed = all(isinstance(item, Set) for item in parameters)
    names, *rows = parameters
    if not isinstance(names, list) or not rows:
        raise ValueError("a list of parameters has the names first, [a, b], and then a row of values for each variant")
    for name in names:
        _check_name(name)
    for row in rows:
        if not isinstance(row, list) or len(row) != len(names):
            raise ValueError(f"the row {_plain(row)} does not have a value for each of {', '.join(names)}")
    if crossed:
        rows = itertools.product(*(dict.fromkeys(column) for column in zip(*rows, strict=True)))
    return [dict(zip(names, row, strict=True)) for row in rows]


def _zipped(mappings: list[Mapping[str, Any]]) -> list[Parameters]:
    columns: dict[str, list[Any]] = {}
    for mapping in mappings:
        for name, values in mapping.items():
            _check_name(name)
            columns[name] = _values(name, values)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise ValueError(f"zipped parameters need as many values each, not {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"the parameter name {_plain(name)!r} must be a word")


def _values(name: str, values: Any) -> list[Any]:
    if isinstance(values, Mapping) or values is None or values == []:
        raise ValueError(f"the parameter {name} needs a list of values")
    if isinstance(values, str):
        return [part for part in (part.strip() for part in values.split(",")) if part] or [values]
    return list(values) if isinstance(values, list) else [values]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def variant_name(benchmark: str, parameters: Parameters) -> str:
    """The benchmark's name with its parameters, sorted by name, fit for a folder: bench_a_1_b_x."""
    parts = [f"{name}_{_text(value)}" for name, value in sorted(parameters.items())]
    return re.sub(r"[^\w.-]+", "-", "_".join([benchmark, *parts]))


def split(command: str) -> list[str]:
    """A command line as words, quotes as in a shell.

    Raises ValueError for an open quote, an empty command, and for what only a shell could do.
    """
    line = _joined(command)
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{error} in {command!r}") from error
    if not words:
        raise ValueError("the command is empty")
    operators = set("();<>|&`") & set(_unquoted(line))
    if operators:
        raise ValueError(
            f"{' '.join(sorted(operators))} is for a shell, and there is none: quote it, or put the line into a script"
        )
    if re.match(r"[A-Za-z_]\w*=", words[0]):
        raise ValueError(f"{words[0]!r} in front of a command needs a shell: give variables under env")
    return words


def _joined(command: str) -> str:
    """Lines that end in a backslash as one: two words, within double quotes one. Within single quotes they stay."""

    def part(match: re.Match[str]) -> str:
        found = match[0]
        if found == "\\\n":
            return " "
        if found[0] != '"':
            return found
        return re.sub(r"\\(.)", lambda pair: "" if pair[1] == "\n" else pair[0], found, flags=re.DOTALL)

    return re.sub(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", part, command, flags=re.DOTALL)


def _unquoted(line: str) -> Iterator[str]:
    """The characters that a shell would look at: outside of quotes and not behind a backslash."""
    quote, escaped = "", False
    for character in line:
        if escaped:
            escaped = False
        elif character == "\\" and quote != "'":
            escaped = True
        elif quote:
            if character == quote:
                quote = ""
            elif quote == '"' and character == "`":
                yield character
        elif character in "'\"":
            quote = character
        else:
            yield character


def expand(
    words: list[str], parameters: Parameters, environment: Mapping[str, str], unset: list[str] | None = None
) -> list[str]:
    """The words with {name} and $NAME replaced. A word that is nothing but the {name} of a list gives its values.

    Args:
        unset: if given, variables that are not set stay as text, and are added to it.

    Raises ValueError for a name that is no parameter, and without `unset` for a variable that is not set.
    """
    expanded: list[str] = []
    for word in words:
        alone = re.fullmatch(r"\{([A-Za-z_]\w*)\}", word)
        if alone and isinstance(parameters.get(alone.group(1)), list):
            expanded += [_text(item) for item in parameters[alone.group(1)]]
        else:
            expanded.append(expand_text(word, parameters, environment, unset))
    return expanded


def expand_text(
    text: str, parameters: Parameters, environment: Mapping[str, str], unset: list[str] | None = None
) -> str:
    """One text with {name} and $NAME replaced; what is put in is not looked at again. Otherwise as expand."""

    def replaced(match: re.Match[str]) -> str:
        if match.group() in _LITERAL:
            return _LITERAL[match.group()]
        parameter = match.group("parameter")
        if parameter is None:
            return _variable(match, environment, unset)
        if parameter not in parameters:
            known = ", ".join(parameters) or "there are none"
            raise ValueError(f"{{{parameter}}} is no parameter ({known}); for the characters write {{{{ and }}}}")
        return _text(parameters[parameter])

    return _PLACES.sub(replaced, text)


def expand_parameters(
    parameters: Parameters, environment: Mapping[str, str], unset: list[str] | None = None
) -> Parameters:
    """The parameters with $NAME in their texts replaced. Arguments and errors as expand."""

    def replaced(match: re.Match[str]) -> str:
        return _LITERAL.get(match.group()) or _variable(match, environment, unset)

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        return _VARIABLES.sub(replaced, value) if isinstance(value, str) else value

    return {name: expanded(value) for name, value in parameters.items()}


def _variable(match: re.Match[str], environment: Mapping[str, str], unset: list[str] | None) -> str:
    variable = match.group("braced") or match.group("bare")
    if variable in environment:
        return environment[variable]
    if unset is None:
        raise ValueError(f"the environment variable {variable} is not set; set it, or write $$ for the character")
    unset.append(variable)
    return match.group()


def _text(value: Any) -> str:
    return " ".join(map(_text, value)) if isinstance(value, list) else str(value)
