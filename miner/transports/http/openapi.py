"""The document of the API: OpenAPI 3.1, made from the table of operations and its models."""

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from generation.plan import Output
from miner.transports.http.files import FORMATS, files_of, formats_of
from miner.transports.http.models import (
    GenerateFields,
    Health,
    Job,
    MinerStatus,
    Problem,
    TaskFields,
)
from miner.transports.http.operations import JSON, OPERATIONS, Operation, Reply

_MODELS = (TaskFields, GenerateFields, Job, MinerStatus, Health, Problem)
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_BINARY = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
_EXAMPLE = {"prompt": "a blue cube", "seed": 7}
_ONE_OF_TWO = [{"required": ["prompt"]}, {"required": ["prompt_image_file"]}]
_DESCRIPTION = """\
Text or a picture in, a 3D object out: Gaussian splats as PLY or SPZ, a mesh as binary glTF or OBJ.

`POST /generate` waits for the file. `POST /jobs` starts a job that can be watched and whose files
can be downloaded for about an hour. Every answer that is no success is JSON with a `message`.
"""


def document(
    *,
    version: str,
    with_key: bool,
    outputs: Collection[Output] = get_args(Output),
    note: str = "",
) -> Mapping[str, Any]:
    """Returns the document; it offers only the files that the miner can make.

    Args:
        version: Of the miner.
        with_key: Whether callers need a key.
        outputs: What tasks can become.
        note: A sentence about what they cannot.
    """
    _, schemas = models_json_schema(
        [(model, "validation") for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    components: dict[str, Any] = {"schemas": schemas["$defs"]}
    for schema in components["schemas"].values():
        for each in schema["properties"].values():
            each.pop("title", None)  # The name again.
    for model in (TaskFields, GenerateFields):
        components["schemas"][model.__name__]["oneOf"] = _ONE_OF_TWO
    formats = formats_of(outputs)
    schemas["$defs"]["GenerateFields"]["properties"]["format"]["enum"] = formats
    unable = {each.media_type for each in FORMATS.values()}
    unable -= {FORMATS[name].media_type for name in formats}
    parameters = {
        "id": {"description": "from `POST /jobs`", "schema": {"type": "string"}},
        "name": {
            "description": "the file",
            "schema": {"type": "string", "enum": list(files_of(outputs).values())},
        },
    }
    if with_key:
        components["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        described = _operation(operation, components["schemas"], parameters)
        for media_type in unable:
            described["responses"].get("200", {}).get("content", {}).pop(media_type, None)
        if with_key and operation.needs_key:
            described["security"] = [{"key": []}, {"bearer": []}]
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "splat-miner",
            "version": version,
            "description": f"{_DESCRIPTION}\n{note}".strip(),
        },
        "paths": paths,
        "components": components,
    }


def _operation(
    operation: Operation, schemas: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.title,
        "description": operation.words,
        "parameters": [
            {"name": name, "in": "path", "required": True, **parameters[name]}
            for name in re.findall(r"{(\w+)}", operation.path)
        ],
        "responses": {
            str(status): _reply(operation, status, reply)
            for status, reply in sorted(operation.replies.items())
        },
    }
    if operation.fields is not None:
        described["requestBody"] = {"required": True, "content": _bodies(operation.fields, schemas)}
    return described


def _reply(operation: Operation, status: int, reply: Reply) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": reply.words,
        "content": {
            media_type: {} if model is None else {"schema": _reference(model)}
            for media_type, model in reply.content.items()
        },
    }
    if reply.headers:
        described["headers"] = {
            name: {"description": words, "schema": {"type": "string"}}
            for name, words in reply.headers.items()
        }
    if status == 202:
        described["links"] = {
            other.name: {
                "operationId": other.name,
                "parameters": {"id": "$response.body#/id"},
            }
            for other in OPERATIONS
            if "{id}" in other.path
        }
    return described


def _bodies(fields: type[BaseModel], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The three ways to send fields; in forms, no field is null, and a file is bytes."""
    multipart = _without_null(schemas[fields.__name__])
    urlencoded = deepcopy(multipart)
    multipart["properties"]["prompt_image_file"].update(_BINARY)
    return {
        _FORMS[0]: {"schema": multipart, "example": _EXAMPLE},
        _FORMS[1]: {"schema": urlencoded, "example": _EXAMPLE},
        JSON: {"schema": _reference(fields), "example": _EXAMPLE},
    }


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same object schema with properties that may be left out, but not be null."""
    changed = deepcopy(dict(schema))
    changed.pop("title", None)
    for each in changed["properties"].values():
        choices = [choice for choice in each.pop("anyOf", ()) if choice != {"type": "null"}]
        for choice in choices:
            each.update(choice)
        if each.get("default", 0) is None:
            del each["default"]
    return changed


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
