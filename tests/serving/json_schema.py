"""JSON Schema as far as the server's document uses it: whether a value conforms, and hypothesis's values that do.

https://json-schema.org/draft/2020-12. A keyword that is not known here is an error, so that none counts for nothing.
"""

import math
import re

from hypothesis import strategies as st

SAYS_NOTHING = {"description", "default"}
TYPES = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
    "integer": lambda value: TYPES["number"](value) and value == math.floor(value),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def resolved(schema, document):
    while "$ref" in schema:
        place = document
        for word in schema["$ref"].split("/")[1:]:
            place = place[word]
        schema = place
    return schema


def types_of(schema):
    found = schema.get("type", list(TYPES))
    return [found] if isinstance(found, str) else found


def conforms(value, schema, document):
    """Whether a value of json.loads is as the schema has it."""
    schema = resolved(schema, document)
    keywords = dict(schema)
    here = any(TYPES[name](value) for name in types_of(schema))
    for name in ("type", "required", "properties", "additionalProperties", *SAYS_NOTHING):
        keywords.pop(name, None)
    text, items, pairs = (value if TYPES[name](value) else None for name in ("string", "array", "object"))
    number = value if TYPES["number"](value) else None
    for name, limit in keywords.items():
        if name == "anyOf":
            here &= any(conforms(value, each, document) for each in limit)
        elif name == "enum":
            here &= any(type(value) is type(each) and value == each for each in limit)
        elif name == "const":
            here &= type(value) is type(limit) and value == limit
        elif name in ("minLength", "maxLength"):
            here &= text is None or (len(text) >= limit if name == "minLength" else len(text) <= limit)
        elif name in ("minimum", "maximum"):
            here &= number is None or (number >= limit if name == "minimum" else number <= limit)
        elif name in ("minItems", "maxItems"):
            here &= items is None or (len(items) >= limit if name == "minItems" else len(items) <= limit)
        elif name == "items":
            here &= all(conforms(each, limit, document) for each in items or ())
        elif name == "maxProperties":
            here &= len(pairs or ()) <= limit
        elif name == "propertyNames":
            assert set(limit) == {"pattern"}
            here &= all(re.search(limit["pattern"], key) and not key.endswith("\n") for key in pairs or ())
        else:
            raise AssertionError(f"the keyword {name} is not known here")
    for name, each in (pairs or {}).items():
        known = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        here &= conforms(each, known[name], document) if name in known else rest is not False
        if name not in known and isinstance(rest, dict):
            here &= conforms(each, rest, document)
    return here and all(name in pairs for name in schema.get("required", ()) if pairs is not None)


def values(schema, document):
    """What conforms: a strategy, of small values."""
    schema = resolved(schema, document)
    if "anyOf" in schema and "type" not in schema:
        return st.one_of([values(each, document) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    found = st.one_of([_of_type(name, schema, document) for name in types_of(schema)])
    return found.filter(lambda value: conforms(value, schema, document)) if "anyOf" in schema else found


def _of_type(name, schema, document):
    if name == "null":
        return st.none()
    if name == "boolean":
        return st.booleans()
    if name == "integer":
        least, most = schema.get("minimum"), schema.get("maximum")
        near = st.integers(max(least, -9) if least is not None else -9, min(most, 400) if most is not None else 400)
        return near | st.integers(least, most) | near.map(float)
    if name == "number":
        return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False)
    if name == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 12), 12))
    if name == "array":
        sizes = {"min_size": schema.get("minItems", 0), "max_size": min(schema.get("maxItems", 4), 4)}
        return st.lists(values(schema["items"], document), **sizes)
    known = {key: values(each, document) for key, each in schema.get("properties", {}).items()}
    needed = schema.get("required", ())
    here = st.fixed_dictionaries(
        {key: each for key, each in known.items() if key in needed},
        optional={key: each for key, each in known.items() if key not in needed},
    )
    rest = schema.get("additionalProperties")
    if not isinstance(rest, dict):
        return here
    names = (
        st.from_regex(schema["propertyNames"]["pattern"], fullmatch=True) if "propertyNames" in schema else st.text()
    )
    return st.dictionaries(names, values(rest, document), max_size=3)
