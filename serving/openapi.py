"""What the server answers, as an OpenAPI document: https://spec.openapis.org/oas/v3.1.0"""

from __future__ import annotations

import copy
from typing import Any

from serving.fields import FIELDS, Field

TEXT, NUMBER, COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
NULL = {"type": "null"}
JSON = "application/json"


def _object(properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """All of these properties but the optional ones, and no other."""
    needed = [name for name in properties if name not in optional]
    return {"type": "object", "required": needed, "properties": properties, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, NULL]}


def _named(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _property(field: Field) -> dict[str, Any]:
    schemas = field.kind.schemas() if field.name == "model" else [*field.kind.schemas(), NULL]
    default = {} if field.default is None else {"default": field.default}
    return {"description": field.about, "anyOf": schemas, **default}


def _completion(kind_of_choice: str, usage: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    properties = {
        "id": TEXT,
        "object": {"const": "text_completion"},
        "created": COUNT,
        "model": TEXT,
        "choices": _list(_named(kind_of_choice)),
        "usage": usage,
    }
    return _object(properties, optional)


def _choice(finish_reason: dict[str, Any]) -> dict[str, Any]:
    logprobs = _or_null(_named("Logprobs"))
    return _object({"text": TEXT, "index": COUNT, "logprobs": logprobs, "finish_reason": finish_reason})


_FINISH = {"enum": ["stop", "length"]}
_LOG_PROB = {"type": "number", "maximum": 0}
SCHEMAS = {
    "CompletionRequest": {
        "type": "object",
        "required": ["model"],
        "properties": {field.name: _property(field) for field in FIELDS},
        "additionalProperties": False,
        "anyOf": [
            {"properties": {"stream_options": NULL}},
            {"required": ["stream"], "properties": {"stream": {"const": True}}},
        ],
    },
    "Completion": _completion("Choice", _named("Usage")),
    "CompletionChunk": _completion("ChunkChoice", _or_null(_named("Usage")), optional=("usage",)),
    "Choice": _choice(_FINISH),
    "ChunkChoice": _choice(_or_null(_FINISH)),
    "Logprobs": _object(
        {
            "tokens": _list(TEXT),
            "token_logprobs": _list(_or_null(_LOG_PROB)),
            "top_logprobs": _list(_or_null({"type": "object", "additionalProperties": _LOG_PROB})),
            "text_offset": _list(COUNT),
        }
    ),
    "Usage": _object({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}),
    "Model": _object({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT}),
    "Models": _object({"object": {"const": "list"}, "data": _list(_named("Model"))}),
    "Health": _object({"status": {"enum": ["ok", "draining", "failed"]}}),
    "Error": _object(
        {"error": _object({"message": TEXT, "type": TEXT, "param": _or_null(TEXT), "code": _or_null(TEXT)})}
    ),
}
_FAULTS = {
    400: "a field is wrong, the texts do not fit the context, or the body is no JSON",
    401: "no key, or another one",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too large",
    415: "the header Content-Type is not application/json",
    429: "the queue is full; the header Retry-After says when to ask again",
    500: "the model's scores are not finite, or the server has failed",
    503: "the time of the request is up, or the server is about to end",
}


def _answers(kinds: dict[str, dict[str, Any]], *faults: int) -> dict[str, Any]:
    """Responses by status: schemas of the answer by the type of its body, and errors."""
    content = {kind: {"schema": schema} for kind, schema in kinds.items()}
    return {"200": {"description": "the answer", "content": content}, **{str(code): _fault(code) for code in faults}}


def _fault(status: int) -> dict[str, Any]:
    return {"description": _FAULTS[status], "content": {JSON: {"schema": _named("Error")}}}


_UNHEALTHY = {"description": "no longer", "content": {JSON: {"schema": _named("Health")}}}
_EVENTS = "with stream: lines `data: ` with a CompletionChunk each, or an Error, and at last `data: [DONE]`"
_PATHS: dict[str, dict[str, dict[str, Any]]] = {
    "/": {"get": {"summary": "A page with a text box", "responses": _answers({"text/html": TEXT})}},
    "/health": {
        "get": {
            "summary": "Whether requests are taken",
            "responses": {**_answers({JSON: _named("Health")}), "503": _UNHEALTHY},
        }
    },
    "/metrics": {"get": {"summary": "Prometheus's text format", "responses": _answers({"text/plain": TEXT})}},
    "/openapi.json": {"get": {"summary": "This document", "responses": _answers({JSON: {"type": "object"}})}},
    "/v1/models": {"get": {"summary": "The model that is served", "responses": _answers({JSON: _named("Models")})}},
    "/v1/models/{name}": {
        "get": {
            "summary": "The model of this name",
            "parameters": [{"name": "name", "in": "path", "required": True, "schema": TEXT}],
            "responses": _answers({JSON: _named("Model")}, 404),
        }
    },
    "/v1/completions": {
        "post": {
            "summary": "Continues texts",
            "requestBody": {"required": True, "content": {JSON: {"schema": _named("CompletionRequest")}}},
            "responses": _answers(
                {JSON: _named("Completion"), "text/event-stream": {**TEXT, "description": _EVENTS}},
                *(400, 404, 408, 413, 415, 429, 500, 503),
            ),
        }
    },
}
OPEN_PATHS = ("/", "/health", "/openapi.json")  # which need no key


def document(key: bool) -> dict[str, Any]:
    """The document; `key`: whether clients must send one, but for OPEN_PATHS."""
    info = {"title": "Completions of a GPT-2, by OpenAI's API", "version": "1"}
    whole: dict[str, Any] = {"openapi": "3.1.0", "info": info, "paths": _PATHS, "components": {"schemas": SCHEMAS}}
    if not key:
        return whole
    whole = copy.deepcopy(whole)
    whole["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            if path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
                operation["responses"]["401"] = _fault(401)
    return whole
