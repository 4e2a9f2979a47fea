"""Files and sockets of other users: what only root can put in place to try."""

import asyncio
import multiprocessing
import os
import socket
import stat
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dcoord.authority import Authority
from districomp import enrolment, keys
from districomp.errors import TrustError
from districomp.identity import IdentityFolder
from districomp.messages import Enrolled

pytestmark = pytest.mark.system

NOBODY = 65534


def _listen_as_nobody(path: str, ready: Event, over: Event) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        os.chown(path, 0, 0)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        listening.listen()  # from here on it is nobody's, whatever the file says
        ready.set()
        over.wait(60)


def test_a_socket_of_another_user_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        enrolment.check_socket(path)
        os.chown(path, NOBODY, NOBODY)
        with pytest.raises(TrustError, match=f"belongs to user {NOBODY}"):
            enrolment.check_socket(path)
        os.chown(path, 0, 0)
        os.chown(tmp_path, NOBODY, NOBODY)
        with pytest.raises(TrustError, match=f"belongs to user {NOBODY}"):
            enrolment.check_socket(path)


def test_a_file_of_root_does_not_help_who_listens(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    context = multiprocessing.get_context("fork")
    ready, over = context.Event(), context.Event()
    listener = context.Process(target=_listen_as_nobody, args=(str(path), ready, over))
    listener.start()
    try:
        assert ready.wait(20)
        with pytest.raises(TrustError, match=f"user {NOBODY} listens there"):
            asyncio.run(enrolment.enrol(path, role="worker", worker="w1", name="tester"))
    finally:
        over.set()
        listener.join()


def test_what_root_writes_for_the_daemon_belongs_to_the_daemon(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "trust", "lab")
    key = keys.new_key()
    issued = authority.sign(key.csr, "worker", "w1", "tester")
    enrolled = Enrolled(1, "worker", "w1", issued.certificate, issued.chain, authority.authorities, 1.0)
    identity = enrolment.assemble(enrolled, key, role="worker", name="lab", source="token")
    state = tmp_path / "dworker"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    folder = IdentityFolder(state / "identity")
    folder.save(identity)
    for path in (folder.path, *folder.path.iterdir()):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (NOBODY, NOBODY), path
        assert not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    # That user may have put a link in the place of its folder: root must not give away what it leads to.
    target = tmp_path / "precious"
    target.mkdir()
    (state / "other").symlink_to(target)
    with pytest.raises(Exception, match="link"):
        IdentityFolder(state / "other").save(identity)
    assert target.stat().st_uid == 0
