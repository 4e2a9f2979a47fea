"""The Door alone, real sockets, on both event loops: whatever strangers do there, a good peer gets in, and nothing is left."""

import asyncio
import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from dcoord.door import Limits
from tests.integration.doorlab import (
    HELLO,
    LOOPS,
    TO_PLAIN,
    WAIT_S,
    DoorLab,
    knock_from,
    opened,
    reset,
    run,
    said,
    strangers,
    until,
)

pytestmark = pytest.mark.parametrize("loop", LOOPS)

SOON = Limits(knock_s=0.3)
NEVER = Limits(knock_s=600.0, shake_s=600.0)
"""What happens with these has not waited for a deadline."""

Scenario = Callable[[DoorLab, socket.socket], Coroutine[Any, Any, None]]


def highest_descriptor() -> int:
    return max(int(path.name) for path in Path("/proc/self/fd").iterdir())


def loop_() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def silent(lab: DoorLab, sock: socket.socket) -> None:
    """Nothing at all."""


async def half_a_head(lab: DoorLab, sock: socket.socket) -> None:
    await loop_().sock_sendall(sock, lab.client_hello()[:3])


async def half_a_hello(lab: DoorLab, sock: socket.socket) -> None:
    await loop_().sock_sendall(sock, lab.client_hello()[:100])


async def in_a_handshake(lab: DoorLab, sock: socket.socket) -> None:
    """A whole ClientHello, and no answer to the answer."""
    await loop_().sock_sendall(sock, lab.client_hello())
    async with asyncio.timeout(WAIT_S):
        assert await loop_().sock_recv(sock, 1)


async def a_record_of_a_byte(lab: DoorLab, sock: socket.socket) -> None:
    """A whole record that is the first byte of a ClientHello: as good as silence, but with TLS's memory."""
    await loop_().sock_sendall(sock, b"\x16\x03\x01\x00\x01\x01")


EVERY_STATE = [silent, half_a_head, half_a_hello, in_a_handshake, a_record_of_a_byte]


@pytest.mark.parametrize("state", EVERY_STATE)
def test_who_goes_no_further_is_sent_away_in_time(tmp_path: Path, loop: str, state: Scenario) -> None:
    async def main() -> None:
        async with opened(tmp_path, SOON) as lab:
            with await lab.knock() as sock:
                await state(lab, sock)
                await said(sock)
                assert await lab.is_open()

    run(loop, main())


@pytest.mark.parametrize("leave", [lambda sock: sock.shutdown(socket.SHUT_WR), reset, socket.socket.close])
@pytest.mark.parametrize("state", EVERY_STATE)
def test_who_leaves_is_forgotten_at_once(
    tmp_path: Path, loop: str, state: Scenario, leave: Callable[[socket.socket], None]
) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            with await lab.knock() as sock:
                await state(lab, sock)
                await until(lambda: strangers(lab) == 1, "it to be accepted")
                leave(sock)
                if sock.fileno() != -1:
                    await said(sock)
                await until(lambda: not strangers(lab), "the stranger to be forgotten")
                assert await lab.is_open()

    run(loop, main())


@pytest.mark.parametrize("state", EVERY_STATE)
def test_closing_leaves_no_socket_in_any_state(tmp_path: Path, loop: str, state: Scenario) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            with await lab.knock() as sock, await lab.knock() as other:
                await state(lab, sock)
                await until(lambda: strangers(lab) == 2, "both to be accepted")
                lab.door.close()
                await said(sock)
                await said(other)

    run(loop, main())


def test_closing_spares_who_is_inside(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            reader, writer = await lab.enter()
            lab.door.close()
            with pytest.raises(ConnectionRefusedError):
                await lab.knock()
            with contextlib.closing(writer):
                writer.write(b"echo")
                assert await reader.readexactly(4) == b"echo"

    run(loop, main())


@pytest.mark.parametrize("pieces", [lambda data: [data], lambda data: [bytes([byte]) for byte in data]])
def test_a_client_hello_may_come_in_any_pieces(
    tmp_path: Path, loop: str, pieces: Callable[[bytes], list[bytes]]
) -> None:
    async def main() -> None:
        async with opened(tmp_path) as lab:
            assert await lab.shake_by_hand(pieces) == HELLO

    run(loop, main())


def test_a_byte_now_and_then_gives_no_more_time(tmp_path: Path, loop: str) -> None:
    """The deadline is one of the whole ClientHello, not of the next byte."""

    async def main() -> None:
        async with opened(tmp_path, SOON) as lab:
            with await lab.knock() as sock:
                sent = 0
                with pytest.raises(OSError):
                    for byte in lab.client_hello():
                        await loop_().sock_sendall(sock, bytes([byte]))
                        sent += 1
                        await asyncio.sleep(0.05)
                assert sent < 100
                assert await lab.is_open()

    run(loop, main())


@pytest.mark.parametrize("length", [16 * 1024 + 1, 65535])
def test_an_oversized_record_is_refused_by_its_head(tmp_path: Path, loop: str, length: int) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            with await lab.knock() as sock:
                await loop_().sock_sendall(sock, struct.pack("!BHH", 22, 0x0301, length))
                assert await said(sock) == b""

    run(loop, main())


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x00\x05abcde", b"\x16\xff\xff\x10\x00" + bytes(4096)])  # fmt: skip
def test_what_only_looks_like_tls_is_refused(tmp_path: Path, loop: str, data: bytes) -> None:
    async def main() -> None:
        async with opened(tmp_path, SOON) as lab:
            with await lab.knock() as sock:
                await loop_().sock_sendall(sock, data)
                await said(sock)
                assert await lab.is_open()

    run(loop, main())


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"\x80\x2e\x01\x03\x01", b"\x15\x03\x01\x00\x02\x01\x00"]
)
def test_who_speaks_no_tls_is_told_so(tmp_path: Path, loop: str, data: bytes) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            with await lab.knock() as sock:
                await loop_().sock_sendall(sock, data)
                assert await said(sock) == TO_PLAIN

    run(loop, main())


def test_a_plain_door_lets_everybody_in(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, plain=True) as lab:
            with await lab.knock() as sock:
                assert await loop_().sock_recv(sock, len(HELLO)) == HELLO

    run(loop, main())


# ---- how many ----


def test_one_address_has_so_many_silent_ones_and_the_oldest_has_to_go(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER._replace(knocking_per_address_max=3)) as lab:
            first, *others = [await lab.knock() for _ in range(4)]
            assert await said(first) == b""
            assert strangers(lab) == 3
            assert await lab.is_open()  # and this one took the place of the next oldest
            assert await said(others[0]) == b""
            for sock in [first, *others]:
                sock.close()

    run(loop, main())


def test_all_addresses_have_so_many_and_the_largest_crowd_has_to_go(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER._replace(knocking_max=4)) as lab:
            other = await knock_from(lab, "127.0.0.2")
            crowd = [await lab.knock() for _ in range(4)]
            assert await said(crowd[0]) == b""
            assert await lab.is_open()
            assert await said(crowd[1]) == b""
            loop_().call_later(0.1, other.shutdown, socket.SHUT_WR)
            assert await said(other) == b""
            for sock in [other, *crowd]:
                sock.close()

    run(loop, main())


@pytest.mark.parametrize("whole", [True, False])
def test_unfinished_handshakes_do_not_shut_the_door(tmp_path: Path, loop: str, whole: bool) -> None:
    """More than there is room for, of the same address as the good peer, which would wait for `knock_s`."""

    async def main() -> None:
        limits = Limits(knock_s=600.0, shaking_max=2, shake_s=0.1)
        async with opened(tmp_path, limits) as lab:
            stuck = [await lab.knock() for _ in range(6)]
            for sock in stuck:
                await loop_().sock_sendall(sock, lab.client_hello() if whole else b"\x16\x03\x01\0\1\1")
            assert await lab.is_open()
            await said(stuck[0])
            for sock in stuck:
                sock.close()

    run(loop, main())


def test_who_waits_for_a_handshake_does_so_in_bounds(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, NEVER._replace(shaking_max=1, ready_max=4)) as lab:
            stuck = [await lab.knock() for _ in range(10)]
            for sock in stuck:
                await a_record_of_a_byte(lab, sock)
            # One in its handshake and four who wait; those between were too many.
            for sock in stuck[1:6]:
                assert await said(sock) == b""
            assert strangers(lab) == 5
            for sock in stuck:
                sock.close()

    run(loop, main())


def test_each_address_has_its_turn(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with opened(tmp_path, Limits(knock_s=600.0, shaking_max=1, shake_s=0.2)) as lab:
            stuck = [await lab.knock() for _ in range(10)]
            for sock in stuck:
                await a_record_of_a_byte(lab, sock)
            await until(lambda: strangers(lab) >= 8, "all to be in the line")
            with await knock_from(lab, "127.0.0.2") as good:
                await loop_().sock_sendall(good, lab.client_hello())
                assert await loop_().sock_recv(good, 1)
                assert strangers(lab) >= 4, "it was last in the line"
            for sock in stuck:
                sock.close()

    run(loop, main())


def test_waiting_for_the_rest_costs_no_processor_time(tmp_path: Path, loop: str) -> None:
    looks = 0

    async def main() -> None:
        nonlocal looks
        async with opened(tmp_path, NEVER) as lab:
            look = lab.door._look

            def counted(knocking: Any) -> None:
                nonlocal looks
                looks += 1
                look(knocking)

            lab.door._look = counted  # type: ignore[method-assign]
            socks = [await lab.knock() for _ in range(200)]
            for place, sock in enumerate(socks):
                await loop_().sock_sendall(sock, lab.client_hello()[: (100, 5, 3)[place % 3]])
            await until(lambda: looks >= 200, "all to be looked at")
            await asyncio.sleep(0.1)
            before, used = looks, time.process_time()
            await asyncio.sleep(0.5)
            assert looks == before
            assert time.process_time() - used < 0.25
            assert looks <= 5 * len(socks)
            for sock in socks:
                sock.close()

    run(loop, main())


def test_descriptors_run_out_and_come_back(tmp_path: Path, loop: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        async with opened(tmp_path, NEVER) as lab:
            clients = [socket.socket() for _ in range(20)]
            held = []
            highest = highest_descriptor()
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            os.close(held.pop())
            os.close(held.pop())
            for sock in clients:
                sock.setblocking(False)
                await loop_().sock_connect(sock, lab.address)
            await until(lambda: strangers(lab) == 2, "the last descriptors to be used")
            used = time.process_time()
            # A second is enough for one that spins to get more than that, whoever else has the processors.
            await asyncio.sleep(1.0)
            assert time.process_time() - used < 0.05, "it spins"
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert await lab.is_open()
            assert strangers(lab) == len(clients)
            for each in held:
                os.close(each)
            for sock in clients:
                sock.close()

    try:
        run(loop, main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


MEMORY = """
import asyncio, os, socket, sys
from pathlib import Path
from dcoord.door import Limits
from tests.integration.doorlab import opened, run, strangers, until

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    async with opened(Path(sys.argv[2]), Limits(knocking_per_address_max=1000)) as lab:
        assert await lab.is_open()
        print(lab.address[1], flush=True)
        before = rss()
        await until(lambda: strangers(lab) == 500, "500 to knock")
        print((rss() - before) / 500, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

run(sys.argv[1], main())
"""


@pytest.mark.usefixtures("many_files")
def test_500_silent_connections_cost_little_memory(tmp_path: Path, loop: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", MEMORY, loop, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    with child:
        assert child.stdin is not None and child.stdout is not None
        address = ("127.0.0.1", int(child.stdout.readline()))
        socks = [socket.create_connection(address) for _ in range(500)]
        each = float(child.stdout.readline())
        for sock in socks:
            sock.close()
        child.stdin.close()
    assert child.returncode == 0
    assert each <= 64 * 1024
