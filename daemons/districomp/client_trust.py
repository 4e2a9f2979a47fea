"""Who this user's client is: the identity on disk, whom it trusts by it, and its renewal.

Owns the use of the identity's folder by a client. Must not know requests, nor how a coordinator is found; `cryptography` and
asyncio are imported only to enrol and to renew, so that a command which asks for the status waits for neither.
"""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from districomp.client_address import identity_folder
from districomp.errors import ConfigError, DistricompError, TrustError, UsageError

if TYPE_CHECKING:
    import ssl

    from districomp.identity import Identity, Stamp
    from districomp.keys import NewKey
    from districomp.messages import Enrolled
    from districomp.tokens import JoinToken

ADDRESSES_KEPT: Final = 2
TOKEN_FILE_BYTES_MAX: Final = 4096
NO_IDENTITY: Final = (
    "this user belongs to no cluster yet, so no coordinator can be told from a false one; "
    "join: dctl join TOKEN, with a token that an administrator makes: dctl token create submit"
)

Notice = Callable[[str], None]
Host = tuple[str, int]


class Trust:
    """The client's identity; read when it is first needed, written when the cluster says something new. For several threads."""

    def __init__(self, token_file: str | os.PathLike[str] | None, notice: Notice) -> None:
        self._token_file = token_file
        self._notice = notice
        self._lock = threading.RLock()
        self._identity: Identity | None = None
        self._stamp: Stamp | None = None
        self._context: tuple[ssl.SSLContext, str] | None = None

    def known(self) -> "Identity | None":
        """The identity as it is on disk now. ConfigError if it cannot be read."""
        from districomp.identity import IdentityFolder

        with self._lock:
            folder = IdentityFolder(identity_folder())
            stamp = folder.stamp()
            if stamp is None or stamp != self._stamp:
                self._take(folder.load(), stamp)
            return self._identity

    def context(self) -> "tuple[ssl.SSLContext, str]":
        """For a new connection: the TLS context, and the name that the coordinator must prove. TrustError without an identity."""
        with self._lock:
            identity = self.known()
            if identity is None:
                raise TrustError(NO_IDENTITY)
            if self._context is None:
                self._context = _context_of(identity)
            return self._context

    def addresses(self) -> list[Host]:
        """Where the coordinator was reached before, the latest first."""
        identity = self.known()
        return [] if identity is None else [(host, port) for host, port in identity.addresses][:ADDRESSES_KEPT]

    # ---- enrolling ----

    def has_token(self) -> bool:
        """Whether a token file is named that could give us an identity."""
        return self._token() is not None

    def need_identity(self, where: Sequence[Host]) -> None:
        """Have an identity, by the token file if there is none yet, from one of these addresses or (none given) by mDNS.

        TrustError if there is neither; UnreachableError, RefusedError as the coordinator has it.
        """
        with self._lock:
            if self.known() is not None:
                return
            token = self._token()
            if token is None:
                raise TrustError(NO_IDENTITY)
            from districomp.client_enrol import joined

            identity = joined(token, where)
            self._write(identity)
            self._notice(f"joined the cluster {identity.name} by the token file, as {identity.role}")

    def _token(self) -> "JoinToken | None":
        """The token of the file that was named. The variable is the worker's as well: its token is none for us."""
        named = self._token_file or os.environ.get("DISTRICOMP_TOKEN_FILE")
        if not named:
            return None
        from districomp.tokens import parse_token

        try:
            with Path(named).open("rb") as file:
                text = file.read(TOKEN_FILE_BYTES_MAX).decode("ascii", "replace")
        except OSError as error:
            raise UsageError(f"the token file {os.fspath(named)} cannot be read: {error.strerror}") from error
        try:
            token = parse_token(text)
        except DistricompError as error:
            raise UsageError(f"{os.fspath(named)}: {error}") from error
        if token.role != "worker":
            return token
        if self._token_file:
            raise UsageError(
                f"{os.fspath(named)} has a token for workers; a client needs one of: dctl token create submit"
            )
        return None

    # ---- news of the cluster ----

    def reached(self, host: str, port: int) -> None:
        """The coordinator was met here; remembered for the next command."""
        from msgspec.structs import replace

        with self._lock:
            identity = self.known()
            if identity is None or identity.addresses[:1] == [(host, port)]:
                return
            others = [address for address in identity.addresses if address != (host, port)]
            self._write(replace(identity, addresses=[(host, port), *others][:ADDRESSES_KEPT]))

    def is_news(self, authorities: Sequence[bytes]) -> bool:
        """Whether the cluster names a newest authority (DER) that we do not know as such."""
        identity = self.known()
        return identity is not None and bool(authorities) and identity.authorities[0] != authorities[0]

    def new_key(self) -> "NewKey":
        """A key to be certified."""
        from districomp.keys import new_key

        return new_key()

    def renewed(self, key: "NewKey", enrolled: "Enrolled") -> None:
        """Take over a new certificate. TrustError if it does not fit the key."""
        from districomp.enrolment import renewed

        with self._lock:
            old = self.known()
            if old is None:
                raise TrustError(NO_IDENTITY)
            self._write(renewed(old, enrolled, key))

    def _write(self, identity: "Identity") -> None:
        """Keep an identity; one that cannot be written is used all the same, and the person is told."""
        from districomp.identity import IdentityFolder

        folder = IdentityFolder(identity_folder())
        try:
            folder.save(identity)
        except ConfigError as error:
            self._notice(f"{error}; going on without")
        self._take(identity, folder.stamp())

    def _take(self, identity: "Identity | None", stamp: "Stamp | None") -> None:
        self._identity, self._stamp, self._context = identity, stamp, None


def _context_of(identity: "Identity") -> "tuple[ssl.SSLContext, str]":
    from districomp.tls import client_context, server_name

    try:
        context = client_context(identity.authorities, identity.certificate, identity.key)
    except TrustError as error:
        raise TrustError(f"{identity_folder()}: {error}; join again: dctl join TOKEN") from error
    return context, server_name(identity.clusters[0])
