"""Finding each other by real mDNS packets on loopback, between real processes."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from districomp.discovery import ADDRESSES_MAX, SERVICE_TYPE, Advertisement, Advertiser, Found, instance_name
from districomp.errors import ConfigError
from tests.patience import PATIENCE_S
from tests.priority import timed

from .discovery_support import LOOPBACK, advertising, browsing


@pytest.fixture
def cluster() -> str:
    """Of this test alone: other tests of the same minute advertise on the same loopback."""
    return secrets.token_hex(8)


def test_a_browser_finds_a_coordinator_that_is_up_within_a_second(cluster: str) -> None:
    async def scenario() -> tuple[Found, float]:
        with timed() as took:
            async with browsing() as news:
                known = await news.until(lambda known: cluster in known)
        return known[cluster], took.alone_s

    with advertising(cluster, 40001):
        found, took_s = asyncio.run(scenario())
    assert found.name == "lab"
    assert found.addresses == [("127.0.0.1", 40001)]
    assert found.version
    assert took_s < 1, "the one-shot question was not answered: only the second multicast question was"


def test_browsers_that_start_in_the_same_second_are_all_answered_at_once(cluster: str) -> None:
    """An answer by multicast may not be repeated within a second (RFC 6762 section 6); the one-shot one may."""

    label = instance_name(Advertisement(cluster, "lab", "127.0.0.1", 40002))

    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                news = await stack.enter_async_context(browsing())
                await news.until(lambda _known, news=news: label in news.quick)  # type: ignore[misc]
                await news.until(lambda known: cluster in known)

    with advertising(cluster, 40002):
        asyncio.run(scenario())


def test_a_cluster_is_found_by_each_id_that_it_still_has(cluster: str) -> None:
    """During a rotation's overlap images and tokens name the former one."""

    async def scenario() -> dict[str, Found]:
        async with browsing() as news:
            return await news.until(lambda known: {cluster, cluster + "b", cluster + "c"} <= known.keys())

    with advertising(cluster, 40012, former=[cluster + "b", cluster + "c"]):
        known = asyncio.run(scenario())
    assert {known[one].addresses[0] for one in (cluster, cluster + "b", cluster + "c")} == {("127.0.0.1", 40012)}


def test_all_ids_say_goodbye_together(cluster: str) -> None:
    async def scenario() -> None:
        async with browsing() as news:
            with advertising(cluster, 40013, former=[cluster + "b"]) as process:
                await news.until(lambda known: {cluster, cluster + "b"} <= known.keys())
                assert process.stdin is not None
                process.stdin.close()
                await news.until(lambda known: not {cluster, cluster + "b"} & known.keys())
                assert await asyncio.to_thread(process.wait, 10) == 0

    asyncio.run(scenario())


def test_who_listens_everywhere_is_found_at_an_address_of_the_interface(cluster: str) -> None:
    async def scenario() -> Found:
        async with browsing() as news:
            return (await news.until(lambda known: cluster in known))[cluster]

    with advertising(cluster, 40014, address="::"):
        assert asyncio.run(scenario()).addresses == [("127.0.0.1", 40014)]


def test_an_interface_can_be_named(cluster: str) -> None:
    async def scenario() -> None:
        async with browsing(["lo"]) as news:
            await news.until(lambda known: cluster in known)

    with advertising(cluster, 40003):
        asyncio.run(scenario())


def test_an_interface_that_is_not_there_is_no_error(cluster: str) -> None:
    async def scenario() -> None:
        async with browsing(["nothere0", "lo"]) as news:
            await news.until(lambda known: cluster in known)

    with advertising(cluster, 40004):
        asyncio.run(scenario())


@pytest.mark.parametrize("end", ["stdin", "term"])
def test_a_goodbye_removes(cluster: str, end: str) -> None:
    async def scenario() -> None:
        async with browsing() as news:
            with advertising(cluster, 40005) as process:
                await news.until(lambda known: cluster in known)
                if end == "stdin":
                    assert process.stdin is not None
                    process.stdin.close()
                else:
                    process.send_signal(signal.SIGTERM)
                await news.until(lambda known: cluster not in known)
                assert await asyncio.to_thread(process.wait, 10) == 0

    asyncio.run(scenario())


def test_a_killed_coordinators_address_stays_a_candidate_beside_its_successors(cluster: str) -> None:
    async def scenario() -> None:
        async with browsing() as news:
            with advertising(cluster, 40006) as process:
                await news.until(lambda known: cluster in known)
                os.kill(process.pid, signal.SIGKILL)
            with advertising(cluster, 40007):
                known = await news.until(lambda known: len(known[cluster].addresses) == 2)
        assert known[cluster].addresses == [("127.0.0.1", 40007), ("127.0.0.1", 40006)], "newest first"

    asyncio.run(scenario())


def test_two_clusters_of_one_name_are_two(cluster: str) -> None:
    async def scenario() -> None:
        async with browsing() as news:
            await news.until(lambda known: {cluster, cluster + "b"} <= known.keys())

    with advertising(cluster, 40008, name="same"), advertising(cluster + "b", 40009, name="same"):
        asyncio.run(scenario())


def test_what_is_advertised_by_others_is_bounded_and_cleaned(cluster: str) -> None:
    """Anyone can advertise: no control characters reach a terminal, no endless list of addresses the connector."""
    from zeroconf import ServiceInfo
    from zeroconf.asyncio import AsyncZeroconf

    def advertisement(label: str, cluster_id: str, name: str, addresses: list[str]) -> ServiceInfo:
        return ServiceInfo(
            SERVICE_TYPE,
            f"{label}.{SERVICE_TYPE}",
            port=40010,
            properties={"id": cluster_id, "name": name, "v": "9"},
            server=f"{label}.local.",
            parsed_addresses=addresses,
        )

    async def scenario() -> None:
        rogue = AsyncZeroconf(interfaces=["127.0.0.1"])
        try:
            for info in (
                advertisement(f"{cluster}-a", cluster, "\x1b[31mred\r\n", ["127.0.0.1"]),
                advertisement(f"{cluster}-b", cluster + "\nforged", "lab", ["127.0.0.1"]),
                advertisement(f"{cluster}-c", cluster + "c", "lab", [f"127.0.1.{n}" for n in range(1, 60)]),
                advertisement(f"{cluster}-d", "x" * (ADDRESSES_MAX * 9), "lab", ["127.0.0.1"]),
            ):
                await rogue.async_register_service(info, cooperating_responders=True)
            async with browsing() as news:
                known = await news.until(lambda known: {cluster, cluster + "c"} <= known.keys())
        finally:
            await rogue.async_close()
        assert known[cluster].name == ""
        assert len(known[cluster + "c"].addresses) == ADDRESSES_MAX
        assert all(text.isprintable() and len(text) <= 100 for text in known)

    asyncio.run(scenario())


def test_an_advertiser_says_what_is_wrong_with_its_input() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "dcoord.advertise"], input=b'{"cluster": 5}\n', capture_output=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 78
    assert b"one line of JSON" in ended.stderr
    assert b"Traceback" not in ended.stderr


def test_names_that_cannot_be_advertised_are_refused() -> None:
    with pytest.raises(ConfigError, match="name"):
        Advertiser(Advertisement("c", "bad\nname", "127.0.0.1", 1))
    with pytest.raises(ConfigError, match="name"):
        Advertiser(Advertisement("c", "n" * 300, "127.0.0.1", 1))


def test_instance_names_are_labels_and_differ_by_cluster_and_port() -> None:
    base = Advertisement("cluster-one", "Büro 3.OG " * 9, "127.0.0.1", 8420)
    names = {
        instance_name(base),
        instance_name(Advertisement("cluster-two", base.name, base.address, base.port)),
        instance_name(Advertisement(base.cluster, base.name, base.address, 8421)),
    }
    assert len(names) == 3
    assert all(len(name) <= 63 and name.isascii() and "." not in name for name in names)


def test_nothing_leaves_loopback(cluster: str) -> None:
    """Every socket of a browser bound to loopback is a member of the multicast group there alone."""
    group = f"{int.from_bytes(socket.inet_aton('224.0.0.251'), sys.byteorder):08X}"

    def memberships(interface: str) -> int:
        """How many sockets of this machine are in the mDNS group there: an interface's line, then one a group."""
        current, count = "", 0
        for line in Path("/proc/net/igmp").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if not line.startswith("\t"):
                current = words[1]
            elif current == interface and words[0] == group:
                count += int(words[1])
        return count

    async def scenario() -> None:
        others = {name for _, name in socket.if_nameindex() if name != "lo"}
        before = {name: memberships(name) for name in others}
        async with browsing(LOOPBACK) as news:
            with advertising(cluster, 40011):
                await news.until(lambda known: cluster in known)
                assert memberships("lo") >= 2
                assert {name: memberships(name) for name in others} == before

    asyncio.run(scenario())
