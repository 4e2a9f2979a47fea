"""Who is at the other end of the control socket: the system's word (peer credentials), made a role.

Owns the names of the system's users. People are root, the daemon's own user and the group `districomp`.
"""

import os
import pwd
from typing import Final

from dcoord.core.rights import Principal

try:
    import grp
except ImportError:  # not a Unix
    grp = None  # type: ignore[assignment]

PEOPLE: Final = "districomp"
"""The group whose members need no token."""
WEB_USER: Final = "dcoord-web"
WORKER_USER: Final = "dworker"


def principal_of(credentials: tuple[int, int, int] | None) -> Principal | None:
    """Who this is, by (pid, uid, gid); None: nobody who may use the socket."""
    if credentials is None:
        # The system does not say; then only the socket's mode decides, which is the owner's alone.
        return Principal("admin", user=_name(os.getuid()))
    _, uid, gid = credentials
    name = _name(uid)
    if name == WEB_USER:
        return Principal("web", name=name)
    if uid in (0, os.geteuid()) or _is_member(name, gid):
        return Principal("admin", user=name, name=name)
    return Principal("enrol", name=name) if name == WORKER_USER else None


def is_shared() -> bool:
    """Whether other users than the daemon's own may have a reason to use the socket: the system has our users."""
    return _has_group(PEOPLE) and (os.geteuid() == 0 or _name(os.geteuid()) == "dcoord")


def _is_member(name: str, gid: int) -> bool:
    """Whether a user is one of the people, by the groups as they are now."""
    try:
        people = grp.getgrnam(PEOPLE).gr_gid
        return people == gid or people in os.getgrouplist(name, gid)
    except (KeyError, AttributeError):
        return False


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except (KeyError, AttributeError):
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
