"""The JSON Schema of topology files, for editors.

Owns: its structure; the values come from the tables the reader uses. May import: lab, routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fabric.lab.fields import (
    HOST_FIELDS,
    LIMIT_FIELDS,
    LINK_FIELDS,
    LIVENESS_FIELDS,
    MAX_HOST_NAME,
    MAX_LAB_NAME,
    NAME_PATTERN,
    POOL_FIELDS,
    Field,
)
from fabric.lab.protocols_section import MAX_PROTOCOL_NAME, PROTOCOL_FIELDS
from fabric.lab.topology_file import OVERLAY_FIELDS
from fabric.lab.validate_section import ENTRY_FIELDS, KINDS, REQUIRED
from fabric.routing.needs import FIRST_USER_PROTOCOL, MAX_PROTOCOL, NEEDS, PROTOCOL_NAMES
from fabric.routing.rules import MATCH_KEYS, TIERS


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12). What it cannot say, such as "connected", ``validate`` checks."""
    policy = {"anyOf": [{"type": "string", "description": "file"}, {"$ref": "#/$defs/policy"}]}
    options = {
        **_properties(HOST_FIELDS),
        "limits": _optional(LIMIT_FIELDS),
        "pool": _optional(POOL_FIELDS),
        "policy": policy,
    }
    usual = {key: value for key, value in options.items() if key != "prefixes"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fabric topology",
        **_mapping(
            {
                "name": _name(MAX_LAB_NAME),
                "hosts": {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": _name(MAX_HOST_NAME),
                    "additionalProperties": {"$ref": "#/$defs/host"},
                },
                "links": {
                    "anyOf": [
                        {"type": "array", "items": {"$ref": "#/$defs/link"}},
                        {"type": "null"},
                    ]
                },
                "overlay": _optional(OVERLAY_FIELDS),
                "defaults": _mapping({"hosts": _nullable(usual), "links": _optional(LINK_FIELDS)}),
                "policy": policy,
                "protocols": _protocols(),
                "liveness": _optional(LIVENESS_FIELDS),
                "validate": _validate(),
            },
            required=["name", "hosts"],
        ),
        "$defs": {"host": _nullable(options), "link": _link(), "policy": _policy()},
    }


def _name(longest: int) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": longest}


def _properties(fields: Mapping[str, Field]) -> dict[str, Any]:
    return {key: field.schema for key, field in fields.items()}


def _mapping(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _nullable(properties: dict[str, Any]) -> dict[str, Any]:
    """A mapping that may be left empty: ``h1:`` is as good as ``h1: {}``."""
    return {**_mapping(properties), "type": ["object", "null"]}


def _optional(fields: Mapping[str, Field]) -> dict[str, Any]:
    return _nullable(_properties(fields))


def _link() -> dict[str, Any]:
    endpoints = {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 2,
        "maxItems": 2,
        "examples": [["h1", "h2"]],
    }
    full = _mapping({"endpoints": endpoints, **_properties(LINK_FIELDS)}, required=["endpoints"])
    return {"anyOf": [full, {"type": "string", "examples": ["h1-h2"]}]}


def _protocols() -> dict[str, Any]:
    parameters = _properties(PROTOCOL_FIELDS)
    own = _mapping(parameters, required=["id"])
    built_in = _nullable({key: value for key, value in parameters.items() if key != "id"})
    return {
        "type": ["object", "null"],
        "propertyNames": _name(MAX_PROTOCOL_NAME),
        "properties": dict.fromkeys(PROTOCOL_NAMES.values(), built_in),
        "additionalProperties": own,
    }


def _validate() -> dict[str, Any]:
    kinds = {
        kind: _mapping(_properties(fields), required=list(REQUIRED[kind]))
        for kind, fields in KINDS.items()
    }
    one_target = {"not": {"required": ["need", "protocol"]}}
    check = _mapping(
        {
            **_properties(ENTRY_FIELDS),
            **{kind: {**schema, **one_target} for kind, schema in kinds.items()},
        }
    )
    one_kind = {"oneOf": [{"required": [kind]} for kind in KINDS]}
    return {"type": ["array", "null"], "items": {**check, **one_kind}}


def _policy() -> dict[str, Any]:
    value = {"type": ["string", "integer"]}
    condition = {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}
    user = {"type": "integer", "minimum": FIRST_USER_PROTOCOL, "maximum": MAX_PROTOCOL}
    protocol = {"anyOf": [_name(MAX_PROTOCOL_NAME), {"enum": list(PROTOCOL_NAMES)}, user]}
    rule = _mapping(
        {
            "name": {"type": "string", "minLength": 1},
            "match": _mapping(dict.fromkeys(MATCH_KEYS, condition)),
            "need": {"enum": list(NEEDS)},
            "protocol": protocol,
            "reply": protocol,
            "tier": {"enum": list(TIERS)},
            "protect": {"type": "boolean"},
        },
        required=["match"],
    )
    one_target = {"oneOf": [{"required": ["need"]}, {"required": ["protocol"]}]}
    rules = {"type": "array", "items": {**rule, **one_target}}
    return _mapping({"rules": rules})
