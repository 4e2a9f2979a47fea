"""`make -C os boot`: boot the worker's image in QEMU, its console on this terminal (Ctrl-A X ends it).

Owns QEMU's command line. The join token goes to the machine as the SMBIOS string that systemd takes credentials from,
through memory that only this process and QEMU have: never by an argument, which everybody on this machine could
read. Nothing is written to any disk. Linux; standard library only; needs qemu-system-x86, and root for a bridge.
"""

import argparse
import fcntl
import os
import secrets
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
QEMU: Final = "qemu-system-x86_64"
CREDENTIAL: Final = "io.systemd.credential:districomp.token="
HOST: Final = "10.0.2.2:8420"
"""The coordinator of this very machine, as QEMU's own network shows it; mDNS does not get into that network."""
# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TAP_WITHOUT_HEADER: Final = 0x0002 | 0x1000


def main() -> int:
    """Becomes QEMU; the exit code if that is not possible."""
    parser = argparse.ArgumentParser(description="Boot the worker's image in QEMU.")
    parser.add_argument("--image", type=Path, default=ROOT / "dist" / "os", metavar="FOLDER")
    parser.add_argument("--memory", type=int, default=512, metavar="MB")
    parser.add_argument("--cpus", type=int, default=2, metavar="N")
    parser.add_argument("--accel", default="tcg", choices=("tcg", "kvm"), help="how processors are made (%(default)s)")
    parser.add_argument("--bridge", default="", metavar="NAME", help="put its network card on this bridge")
    parser.add_argument("--tap", default="", metavar="NAME", help="its network card is this TAP interface")
    parser.add_argument("--mac", default="", help="of its network card (default: random)")
    parser.add_argument("--token-file", type=Path, metavar="F", help="join token (default: the variable TOKEN, if any)")
    parser.add_argument("--cluster", default="", metavar="ID", help="the cluster to join")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help=f"without a bridge: {HOST}")
    parser.add_argument(
        "--shell", type=Path, metavar="SOCKET", help="the second serial line, where DEBUG=1 has a shell"
    )
    parser.add_argument("more", nargs="*", metavar="-- OPTION", help="more options for QEMU")
    try:
        command = qemu(parser.parse_args())
        os.environ.pop("TOKEN", None)
        os.execvp(QEMU, command)
    except FileNotFoundError as error:
        what = "install qemu-system-x86" if error.filename in (None, QEMU) else "run: make -C os image SMALL=1"
        sys.stderr.write(f"{error.filename or QEMU} is not there; {what}\n")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
    return 1


def qemu(parsed: argparse.Namespace) -> list[str]:
    """QEMU's command line; the file descriptors that it names are open and will be inherited."""
    arguments = (parsed.image / "cmdline").read_text().split()
    coordinator = parsed.coordinator or ("" if parsed.bridge or parsed.tap else HOST)
    arguments += [f"districomp.cluster={parsed.cluster}"] if parsed.cluster else []
    arguments += [f"districomp.coordinator={coordinator}"] if coordinator else []
    mac = parsed.mac or "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))
    command = [QEMU, "-machine", "q35", "-accel", f"{parsed.accel}{',thread=multi' * (parsed.accel == 'tcg')}"]
    command += ["-cpu", "max", "-smp", str(parsed.cpus), "-m", str(parsed.memory), "-nographic", "-no-reboot"]
    command += ["-kernel", str(parsed.image / "vmlinuz"), "-initrd", str(parsed.image / "initrd.img")]
    command += ["-append", " ".join(arguments), "-device", "virtio-rng-pci"]
    command += ["-netdev", _network(parsed), "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile="]
    token = parsed.token_file.read_text("ascii") if parsed.token_file else os.environ.get("TOKEN", "")
    if token.strip():
        command += ["-smbios", f"type=11,path={_in_memory(CREDENTIAL + token.strip())}"]
    if parsed.shell is not None:
        # The first serial line is said too, because naming one takes the default away.
        command += ["-serial", "mon:stdio", "-serial", f"unix:{parsed.shell},server=on,wait=off"]
    return [*command, *parsed.more]


def _network(parsed: argparse.Namespace) -> str:
    if parsed.bridge:
        return f"tap,id=net,fd={_tap_on(parsed.bridge)}"
    if parsed.tap:
        return f"tap,id=net,ifname={parsed.tap},script=no,downscript=no"
    return "user,id=net"


def _tap_on(bridge: str) -> int:
    """The file descriptor of a new interface on a bridge, which is gone with QEMU."""
    opened = os.open("/dev/net/tun", os.O_RDWR)
    answer = fcntl.ioctl(opened, _TUNSETIFF, struct.pack("16sH22x", b"dcworker%d", _TAP_WITHOUT_HEADER))
    name = answer[:16].rstrip(b"\0").decode()
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    os.set_inheritable(opened, True)
    return opened


def _in_memory(text: str) -> str:
    """A path by which this process, and QEMU after it, reads a text that is in no file."""
    opened = os.memfd_create("districomp", 0)
    os.write(opened, text.encode())
    return f"/proc/self/fd/{opened}"


if __name__ == "__main__":
    sys.exit(main())
