"""docs/protocol.md is drawn from the code: it must be what the code says now."""

import pytest

from districomp import messages, model
from districomp.messages import Message
from scripts.protocol_document import DOCUMENT, life_cycle, message_list, render


def test_the_document_is_current() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert render(text) == text, "run `make docs`"


def test_every_message_and_field_is_in_it() -> None:
    drawn = message_list()
    for kind in Message.__subclasses__():
        _, found, section = drawn.partition(f"#### {kind.__struct_config__.tag} {kind.__name__}\n")
        assert found, kind.__name__
        section = section.partition("#### ")[0]
        for place, field in enumerate(kind.__struct_fields__, 1):
            assert f"| {place} | `{field}` |" in section


def test_what_an_empty_column_means_is_in_it() -> None:
    assert '| 6 | `reasons` | `list[str]` | all "done" |' in message_list()


def test_every_transition_is_in_the_diagram(monkeypatch: pytest.MonkeyPatch) -> None:
    diagram = life_cycle().partition("```\n")[0]
    for before, after in model.TRANSITIONS:
        assert f"{model.STATE_NAMES[before]} --> {model.STATE_NAMES[after]}:" in diagram
    monkeypatch.setattr(model, "TRANSITIONS", {(model.DONE, model.QUEUED): "planted"})
    assert "done --> queued: planted" in life_cycle()


def test_a_document_without_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="life-cycle"):
        render("<!-- drawn: messages (make docs) -->\n<!-- end -->\n")


def test_codes_of_the_specification_are_those_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert str(messages.PROTOCOL_VERSION) in text
    assert all(f"`{reason}`" in text for reason in model.REASONS)
