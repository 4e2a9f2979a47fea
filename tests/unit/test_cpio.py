"""Archives for the kernel, read back by the rules of their format."""

import io
import stat

from scripts import cpio


def archive(entries: dict[str, cpio.Entry]) -> bytes:
    target = io.BytesIO()
    cpio.write(entries, target, 1700000000)
    return target.getvalue()


def headers(data: bytes) -> list[tuple[str, list[int], bytes]]:
    """Name, the 13 fields and content of each entry, read by the format's own rules."""
    found = []
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        begin = -(-(at + 110 + fields[11]) // 4) * 4
        found.append((name, fields, data[begin : begin + fields[6]]))
        at = -(-(begin + fields[6]) // 4) * 4
    return found


def test_folders_come_before_what_is_in_them_even_those_nobody_named() -> None:
    names = [name for name, _, _ in headers(archive({"a/b/c": cpio.file(b"x"), "a.txt": cpio.file(b"")}))]
    assert names == ["a", "a.txt", "a/b", "a/b/c", "TRAILER!!!"]


def test_modes_owners_times_and_contents_are_kept() -> None:
    entries = {"s": cpio.file(b"secret", 0o600), "l": cpio.link("/t"), "c": cpio.device(5, 1), "d": cpio.folder(0o700)}
    found = {name: (fields, content) for name, fields, content in headers(archive(entries))}
    assert found["s"][0][1] == stat.S_IFREG | 0o600
    assert found["s"][1] == b"secret"
    assert found["l"][1] == b"/t"
    assert stat.S_ISCHR(found["c"][0][1])
    assert found["c"][0][9:11] == [5, 1]
    assert found["d"][0][1] == stat.S_IFDIR | 0o700
    assert {(fields[2], fields[3], fields[5]) for name, (fields, _) in found.items() if name != "TRAILER!!!"} == {
        (0, 0, 1700000000)
    }


def test_order_of_naming_does_not_matter_and_archives_can_be_joined() -> None:
    one = archive({"a": cpio.file(b"1"), "b/c": cpio.file(b"23")})
    assert one == archive({"b/c": cpio.file(b"23"), "a": cpio.file(b"1")})
    assert len(one) % 4 == 0
    assert [name for name, _, _ in headers(one + one)].count("TRAILER!!!") == 2
