"""`docs/cli.md` says what `dctl` does: every verb and option is in it, and its JSON has the documents' keys in their order."""

import json
import re
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from dctl.__main__ import cli
from dctl.definition import Finding
from dctl.join import JoinDocument
from dctl.rehearsal import Rehearsal
from dctl.task import LogDocument
from dctl.ui import UiDocument
from districomp import documents

TEXT = (Path(__file__).resolve().parents[2] / "docs/cli.md").read_text(encoding="utf-8")
SHAPES = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
STRUCTS = [
    documents.JobDocument,
    documents.TaskDocument,
    documents.WorkerDocument,
    documents.StatusDocument,
    documents.ExplainDocument,
    documents.DefinitionDocument,
    documents.DefinitionShowDocument,
    documents.TokenDocument,
    documents.EnrolmentDocument,
    documents.AuthorityDocument,
    Finding,
    JoinDocument,
    UiDocument,
    LogDocument,
    Rehearsal,
]


def verbs(group: click.Group, path: str) -> list[tuple[str, click.Command]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += verbs(command, f"{path} {name}") if isinstance(command, click.Group) else [(f"{path} {name}", command)]
    return found


@pytest.mark.parametrize(("path", "command"), verbs(cli, "dctl"), ids=[path for path, _command in verbs(cli, "dctl")])
def test_every_verb_and_option_is_described(path: str, command: click.Command) -> None:
    assert path in TEXT
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
    assert not [option for option in options if option not in TEXT]


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_the_json_has_the_documents_keys(struct: type[msgspec.Struct]) -> None:
    keys = list(struct.__struct_fields__)
    (shape,) = [shape for shape in SHAPES if isinstance(shape, dict) and list(shape) == keys]
    assert json.loads(msgspec.json.encode(msgspec.convert(shape, struct))) == shape


def test_the_json_of_results() -> None:
    (shapes,) = [shape for shape in SHAPES if isinstance(shape, list)]
    again: list[Any] = [
        json.loads(msgspec.json.encode(msgspec.convert(shape, documents.ResultDocument))) for shape in shapes
    ]
    assert again == shapes
