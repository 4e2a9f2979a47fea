"""tasks/definition.schema.json is made of the keys that are read; what an editor does with it is tests/system's."""

import json
import re
from typing import Any

import pytest
from msgspec import Struct, inspect
from msgspec.structs import fields

from districomp.taskkeys import LimitKeys, ParamKeys, RequireKeys, RetryKeys, TaskFile
from scripts.definition_schema import FILE, definition_schema, of_type, render

SCHEMA: dict[str, Any] = json.loads(render())
PROPERTIES: dict[str, Any] = SCHEMA["properties"]


def test_the_file_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == render(), "run `make docs`"


@pytest.mark.parametrize(
    ("keys", "schema"),
    [
        (TaskFile, SCHEMA),
        (ParamKeys, PROPERTIES["params"]["additionalProperties"]),
        (LimitKeys, PROPERTIES["limits"]),
        (RetryKeys, PROPERTIES["retries"]),
        (RequireKeys, PROPERTIES["requires"]),
    ],
)
def test_every_key_is_in_it_described_and_no_other(keys: type[Struct], schema: dict[str, Any]) -> None:
    assert list(schema["properties"]) == [field.encode_name for field in fields(keys)]
    assert all(len(entry["description"]) > 5 for entry in schema["properties"].values())
    assert schema["additionalProperties"] is False


def test_types_bounds_and_units() -> None:
    limits = PROPERTIES["limits"]["properties"]
    (pattern,) = [entry["pattern"] for entry in limits["time"]["anyOf"] if "pattern" in entry]
    assert re.search(pattern, "1h30m")
    assert not re.search(pattern, "10")
    assert {"const": "unlimited"} in limits["memory"]["anyOf"]
    assert (limits["cpus"]["minimum"], limits["cpus"]["default"]) == (1, 1)
    assert PROPERTIES["rerun"]["enum"] == ["lost", "never"]
    assert PROPERTIES["isolation"]["anyOf"][0]["enum"] == ["none", "rlimit", "cgroup", "sandbox"]
    assert re.search(PROPERTIES["python"]["pattern"], "a.b:C.run")
    assert not re.search(PROPERTIES["python"]["pattern"], "a.py")
    assert {"required": ["python"]} in SCHEMA["oneOf"]


def test_a_key_of_another_type_changes_it_and_an_unknown_type_is_refused() -> None:
    class Other(Struct):
        a: int = 3

    assert of_type(inspect.type_info(Other))["properties"] == {"a": {"type": "integer", "default": 3}}
    with pytest.raises(ValueError, match="no schema is known"):
        of_type(inspect.type_info(bytes))
    assert definition_schema() == SCHEMA
