"""Strips to a picture: `stitch.py WIDTH HEIGHT OUT.png STRIP...` writes a PNG and prints the pixels' SHA-256.

A strip is raw RGB rows from the top down, as `raytrace.py` prints them. A PNG needs no library: it is a
header, the rows compressed by zlib with one filter byte in front of each, and an end, each with a CRC.
"""

import hashlib
import struct
import sys
import zlib
from pathlib import Path


def png(pixels: bytes, width: int, height: int) -> bytes:
    """A PNG file of raw RGB rows, three bytes a pixel. ValueError if there are more or fewer of them."""
    if len(pixels) != width * height * 3:
        raise ValueError(f"{len(pixels)} bytes of pixels; {width} x {height} need {width * height * 3}")
    stride = width * 3
    # Filter 1: each byte less that of the pixel to the left, which compresses smooth colours best.
    rows = bytearray()
    for top in range(0, len(pixels), stride):
        row = pixels[top : top + stride]
        left = bytes(3) + row[:-3]
        rows.append(1)
        rows += bytes((a - b) & 255 for a, b in zip(row, left, strict=True))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def main(arguments: list[str]) -> int:
    """Stitch the strips named by `arguments` in their order."""
    width, height, out = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    pixels = b"".join(Path(name).read_bytes() for name in arguments[3:])
    out.write_bytes(png(pixels, width, height))
    print(hashlib.sha256(pixels).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
