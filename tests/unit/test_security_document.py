"""docs/security.md is drawn from the mutants that prove it: every protection has a test that notices its absence."""

import tomllib

import pytest

from scripts.security_document import DOCUMENT, MUTANTS, ROOT, protections, render


def test_the_document_is_current() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert render(text) == text, "run `make docs`"


def test_every_protection_is_in_it_with_its_test() -> None:
    table = protections()
    found = 0
    for path in MUTANTS.glob("*.toml"):
        mutant = tomllib.loads(path.read_text(encoding="utf-8"))
        if "protects" in mutant:
            found += 1
            assert f"[{path.stem}](../tests/mutants/{path.name})" in table
            for test in mutant["tests"]:
                file, _, name = test.partition("::")
                assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8"), test
    assert found > 30


def test_a_document_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match="protections"):
        render("# Security\n")
