"""Tasks of the runner `python`, of code given as text."""

from typing import Any

from tests.integration.workerlab import Lab, Row


def function(lab: Lab, code: str, name: str = "main:run", **more: Any) -> dict[str, Any]:
    """A definition of a module main.py with this code."""
    bundle = lab.data.add_bundle({"main.py": (0o644, code.encode()), "data.txt": (0o644, b"data of the bundle")})
    return {"runner": "python", "argv": [name], "bundle": bundle} | more


async def call(lab: Lab, code: str, items: list[Any] | int, name: str = "main:run", **more: Any) -> list[Row]:
    return await lab.ended(lab.assign(lab.define(**function(lab, code, name, **more)), items))


def text(row: Row) -> str:
    return row.stderr.decode()
