"""Who belongs to the cluster, as an administrator asks for it: tokens, admissions, revocations, the authority.

Owns those requests of the client library. What they mean is the coordinator's to decide.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from districomp.documents import AuthorityDocument, EnrolmentDocument, TokenDocument, WorkerDocument
from districomp.messages import Admit, CreateToken, OpenEnrolment, Query, Revoke, RevokeToken, RotateAuthority

if TYPE_CHECKING:
    from districomp.client import Client


class Admin:
    """`Client.admin`. NotAllowedError for other roles than admin."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def create_token(
        self, role: str, expires_s: float, uses: int | None = None, labels: Sequence[str] = ()
    ) -> TokenDocument:
        """A new join token for a role (worker, submit, admin, read); its `token` is never shown again."""
        return self._client.ask(
            TokenDocument, lambda _link, request: CreateToken(request, role, expires_s, uses, list(labels)), once=True
        )[0]

    def tokens(self) -> list[TokenDocument]:
        """All join tokens, without their secrets, which the coordinator does not know."""
        return self._client.ask(TokenDocument, lambda _link, request: Query(request, "tokens"))

    def revoke_token(self, token: str) -> TokenDocument:
        """End a token (by its id), and with it every certificate that was given for it."""
        return self._client.ask(TokenDocument, lambda _link, request: RevokeToken(request, token))[0]

    def admit(self, worker: str, words: str) -> WorkerDocument:
        """Let a pending worker in (name or id), for which these words were compared."""
        return self._client.ask(WorkerDocument, lambda _link, request: Admit(request, worker, words))[0]

    def revoke(self, worker: str, *, remove: bool = False) -> WorkerDocument:
        """Refuse a worker (name or id) from now on; `remove`: and forget it."""
        return self._client.ask(WorkerDocument, lambda _link, request: Revoke(request, worker, remove))[0]

    def open_enrolment(self, for_s: float) -> EnrolmentDocument:
        """Let every pending worker in for so many seconds; 0 ends that."""
        return self._client.ask(EnrolmentDocument, lambda _link, request: OpenEnrolment(request, for_s))[0]

    def rotate_authority(self, overlap_s: float) -> AuthorityDocument:
        """Give the cluster a new authority; what the old one signed is good for `overlap_s` more."""
        return self._client.ask(
            AuthorityDocument, lambda _link, request: RotateAuthority(request, overlap_s), once=True
        )[0]
