"""The documents that a newcomer types are true: README's five minutes and the tour, run as they stand."""

from pathlib import Path

import pytest

from tests.acceptance.documents_lab import ROOT, Block, Ran, missing, prepare, read_blocks, run_blocks

DOCUMENTS = {"README.md": "## Five minutes", "docs/tour.md": "# A tour"}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_true(name: str, tmp_path: Path) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = read_blocks(text[text.index(DOCUMENTS[name]) :])
    assert len(blocks) > 3
    assert any(block.shown for block in blocks)
    replaced = prepare(tmp_path)
    for block, ran in zip(blocks, run_blocks(blocks, tmp_path, replaced), strict=True):
        assert bool(ran.failed) == block.fails, f"{block.commands}\nfailed: {ran.failed}\nshowed: {ran.output}"
        assert not missing(block, ran), f"{block.commands}\n{missing(block, ran)!r} is not in: {ran.output}"


def test_a_document_that_lies_is_noticed(tmp_path: Path) -> None:
    text = "```sh\necho one; false\necho   two\n```\n\n```text\none\n...o\nthree\n```\n```sh setup\nexit 1\n```\n"
    blocks = read_blocks(text)
    assert blocks == [Block("echo one; false\necho   two\n", False, ["one", "...o", "three"])]
    (ran,) = run_blocks(blocks, tmp_path, {})
    assert ran == Ran("one\ntwo\n", ["false"])
    assert missing(blocks[0], ran) == "three"
    # The end of the script may find it while it is still a copy of the shell.
    left = "sh -c 'echo $$; exec sleep 100' > pid &\nuntil grep -q sleep /proc/$(cat pid)/comm; do :; done\n"
    with pytest.raises(AssertionError, match=r"still running at the end: .*sleep 100"):
        run_blocks([Block(left, False, [])], tmp_path, {})
