"""Who asks at the data port: by the certificate of the connection, or by a grant in the request.

Owns the reading of both and what makes either of them void. What an asker may then do is `rights`' matter.
A grant is what a request is judged by, if it has one: it never adds to a certificate's rights nor falls back on them.
"""

import weakref
from typing import Any, Final, Protocol

from dcoord.core.grants import GrantError, check
from dcoord.core.rights import Principal
from dcoord.web.http1 import Scope
from dcoord.web.problems import WebError
from dcoord.web.rights import Asker
from dcoord.web.trust import Trust
from districomp.tls import Holder, holder

LOCAL: Final = Principal("admin")
"""Everybody, where there is neither TLS nor authentication."""
_BEARER: Final = b"bearer "


class Connection(Protocol):
    """What is needed of a connection: `certificate` as OpenSSL has verified it, None without one."""

    certificate: dict[str, Any] | None


class Askers:
    """Finds out who asks, anew for each request: a connection may outlive its certificate."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._holders: weakref.WeakKeyDictionary[Connection, Holder | None] = weakref.WeakKeyDictionary()

    def asker(self, scope: Scope, now: float) -> Asker:
        """Who asks. `now`: Unix seconds, by the calendar.

        Raises:
            WebError: `not_authenticated`; `revoked`; `not_allowed` for another's grant; `unreachable` while it is not
                known whom to trust.
        """
        trust = self._trust
        if not trust.is_known:
            raise WebError("unreachable", "the coordinator has not said yet whom to trust; try again in a moment")
        if trust.insecure:
            return Asker(LOCAL)
        held = self._held(scope["connection"])
        if held is not None:
            self._check_holder(held, now)
        texts = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(texts) > 1:
            raise WebError("bad_request", "a request must have at most one Authorization header")
        if texts:
            return self._by_grant(texts[0], held)
        if held is None:
            raise WebError(
                "not_authenticated",
                "this needs a certificate of this cluster, or a grant (Authorization: Bearer); with `dctl join TOKEN`"
                " you get one, and `dctl ui` opens the page",
            )
        return Asker(Principal(held.role, held.identity, held.user, held.name, held.expires))

    def _held(self, connection: Connection) -> Holder | None:
        if connection.certificate is None:
            return None
        if connection not in self._holders:
            self._holders[connection] = holder(connection.certificate)
        return self._holders[connection]

    def _check_holder(self, held: Holder, now: float) -> None:
        if held.identity in self._trust.refused:
            raise WebError("revoked", "this certificate was revoked; ask an admin, and enrol anew: dctl join TOKEN")
        if held.cluster not in self._trust.clusters:
            raise WebError(
                "not_authenticated", "this certificate's authority is one no more; enrol anew: dctl join TOKEN"
            )
        if held.expires <= now:
            raise WebError(
                "not_authenticated", "this certificate has expired; renew it, or enrol anew: dctl join TOKEN"
            )

    def _by_grant(self, text: bytes, held: Holder | None) -> Asker:
        if text[: len(_BEARER)].lower() != _BEARER:
            raise WebError("not_authenticated", "the Authorization header must be: Bearer GRANT")
        try:
            grant = check(
                self._trust.grant_key, text[len(_BEARER) :].strip().decode("latin-1"), self._trust.coordinator_now()
            )
        except GrantError as error:
            raise WebError("not_authenticated", str(error)) from None
        if grant.identity in self._trust.refused:
            raise WebError("revoked", "whom this grant was for has been revoked; ask an admin")
        if held is not None and grant.identity not in ("", held.identity):
            raise WebError("not_allowed", "this grant is for another certificate than the connection's")
        return Asker(Principal(grant.role, grant.identity, grant.user, "", grant.expires), grant)
