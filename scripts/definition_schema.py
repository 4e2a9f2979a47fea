"""`make docs`: write tasks/definition.schema.json, by which editors check and complete a definition's YAML.

Made of the Structs of `districomp.taskkeys`, with the rules between keys that a JSON Schema can say. `--check`
changes nothing and fails when the file is not what would be written.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from msgspec import inspect

from districomp.taskkeys import FILE_VERSION, TaskFile

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "tasks" / "definition.schema.json"
_RUNNERS: Final = ("command", "stream", "python")

Schema = dict[str, Any]


def definition_schema() -> Schema:
    """The schema of a definition's file, draft-07, which every editor's language server knows."""
    body = of_type(inspect.type_info(TaskFile))
    body["properties"]["version"] |= {"const": FILE_VERSION, "default": FILE_VERSION}
    for runner in ("command", "stream"):
        body["properties"][runner]["minItems"] = 1
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A districomp task definition",
        **body,
        "required": ["version"],
        # Exactly one runner.
        "oneOf": [{"required": [runner]} for runner in _RUNNERS],
        "dependencies": {"format": ["stream"], "python": ["bundle"]},
    }


def of_type(kind: inspect.Type) -> Schema:
    """The schema of one type of `taskkeys`."""
    match kind:
        case inspect.Metadata():
            return _of_metadata(kind)
        case inspect.StructType():
            return {
                "type": "object",
                "description": (kind.cls.__doc__ or "").partition("\n")[0],
                "properties": {field.encode_name: _of_field(field) for field in kind.fields},
                "additionalProperties": False,
            } | ({"required": required} if (required := _required(kind)) else {})
        case inspect.DictType():
            return {"type": "object", "additionalProperties": of_type(kind.value_type)}
        case inspect.ListType():
            return {"type": "array", "items": of_type(kind.item_type)}
        case inspect.LiteralType():
            return {"enum": list(kind.values)}
        case inspect.UnionType():
            members = [of_type(member) for member in kind.types if not isinstance(member, inspect.NoneType)]
            return members[0] if len(members) == 1 else {"anyOf": members}
        case inspect.StrType():
            return _without_none({"type": "string", "maxLength": kind.max_length})
        case inspect.IntType():
            return _without_none({"type": "integer", "minimum": kind.ge, "maximum": kind.le})
        case inspect.FloatType():
            return {"type": "number"}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.AnyType():
            return {}
    raise ValueError(f"no schema is known for {kind}")


def _of_metadata(kind: inspect.Metadata) -> Schema:
    extra = kind.extra or {}
    if "choices" in extra:
        one = {"enum": list(extra["choices"])}
        found: Schema = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    else:
        found = dict(extra["schema"]) if "schema" in extra else of_type(kind.type)
    return found | (kind.extra_json_schema or {})


def _of_field(field: inspect.Field) -> Schema:
    schema = of_type(field.type)
    default = field.default
    # None stands for `unlimited`, which an editor may as well offer; an empty text or list says nothing.
    if isinstance(default, bool | int | str) and default != "":
        schema["default"] = default
    return schema


def _required(kind: inspect.StructType) -> list[str]:
    return [field.encode_name for field in kind.fields if field.required]


def _without_none(schema: Schema) -> Schema:
    return {key: value for key, value in schema.items() if value is not None}


def render() -> str:
    """The file's text."""
    return json.dumps(definition_schema(), indent=2) + "\n"


def main() -> int:
    """Write it, or compare it."""
    text = render()
    if "--check" in sys.argv[1:]:
        if not FILE.exists() or FILE.read_text(encoding="utf-8") != text:
            print(f"{FILE.relative_to(ROOT)} is not what the keys say now; run `make docs`", file=sys.stderr)  # noqa: T201
            return 1
        return 0
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
