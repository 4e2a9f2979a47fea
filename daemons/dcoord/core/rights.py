"""Who may send what: one table from role to messages, the only place where that is decided.

What a role may do with a certain job, lease or task is decided where that is looked up, by `sees` and `owns`.
"""

from typing import Final

import msgspec

from districomp.messages import (
    Admit,
    AskGrant,
    Cancel,
    CreateToken,
    Enrol,
    Goodbye,
    Has,
    Heartbeat,
    HelloClient,
    HelloGuest,
    HelloWeb,
    HelloWorker,
    Inventory,
    Items,
    Message,
    OpenEnrolment,
    Query,
    Renew,
    Reports,
    Results,
    Retry,
    Returned,
    Revoke,
    RevokeToken,
    RotateAuthority,
    Sealed,
    Started,
    Submit,
    Watch,
)


class Principal(msgspec.Struct, frozen=True):
    """Who a peer has proved to be. `role`: guest, worker, submit, read, admin, web or enrol (the worker's local user).

    `identity`: the certificate's, '' on the control socket. `user`: who owns what it submits. `name`: for people.
    `expires`: when its certificate ends (Unix seconds), 0 without one. `authority`: the cluster id of who issued that.
    """

    role: str
    identity: str = ""
    user: str = ""
    name: str = ""
    expires: float = 0.0
    authority: str = ""


GUEST: Final = Principal("guest")

_Kinds = frozenset[type[Message]]

_EVERYBODY: Final[_Kinds] = frozenset((Goodbye, Heartbeat))
_CLIENT: Final[_Kinds] = _EVERYBODY | {HelloClient, Query, Watch, Results, AskGrant, Renew}
_SUBMITTER: Final[_Kinds] = _CLIENT | {Submit, Items, Cancel, Retry}
_GUEST: Final[_Kinds] = _EVERYBODY | {HelloGuest, Enrol}

MAY: Final[dict[str, _Kinds]] = {
    "guest": _GUEST,
    "enrol": _GUEST,
    "worker": _EVERYBODY | {HelloWorker, Inventory, Started, Returned, Reports, Has, Sealed, AskGrant, Renew},
    "submit": _SUBMITTER,
    "read": _CLIENT,
    "admin": _SUBMITTER | _GUEST | {CreateToken, RevokeToken, Admit, Revoke, OpenEnrolment, RotateAuthority},
    # On behalf of those whom it has checked itself: it names the user in Submit and Query.
    "web": _EVERYBODY | {HelloWeb, HelloClient, Query, Watch, Submit, Items},
}


def may(principal: Principal, message: Message) -> bool:
    """Whether this role may send this kind of message at all."""
    return type(message) in MAY[principal.role]


def sees(principal: Principal, owner: str) -> bool:
    """Whether it may read what belongs to this user: submit sees its own alone."""
    return principal.role in ("read", "admin", "web") or (principal.role == "submit" and principal.user == owner)


def owns(principal: Principal, owner: str) -> bool:
    """Whether it may change what belongs to this user."""
    return principal.role == "admin" or (principal.role == "submit" and principal.user == owner)
