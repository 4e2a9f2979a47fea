"""What a worker says of its machine, whatever the system calls it."""

import pytest

from dworker.machine import arch


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("x86_64", "x86_64"),
        ("AMD64", "x86_64"),
        ("amd64", "x86_64"),
        ("aarch64", "aarch64"),
        ("arm64", "aarch64"),
        ("armv7l", "armv7l"),
        ("riscv64", "riscv64"),
        ("i386", "i686"),
    ],
)
def test_processors_have_one_name_each(said: str, name: str) -> None:
    assert arch(said) == name
