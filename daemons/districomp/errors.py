"""Every error that leaves a module of ours, as a shallow tree.

A message names what is wrong, where, and what to do. Our own bugs are not here: they are
assertions, and they crash.
"""


class DistricompError(Exception):
    """The root: an operating error that a person or a peer can meet."""

    exit_code = 1


class UsageError(DistricompError):
    """The command line or an input is wrong."""

    exit_code = 2


class UnreachableError(DistricompError):
    """No coordinator answers."""

    exit_code = 3


class NotAllowedError(DistricompError):
    """The peer has no right to this."""

    exit_code = 4


class TokenError(UsageError):
    """A text that should be a join token is none. The message never repeats it."""


class TrustError(DistricompError):
    """Who is there is not who it must be, or we cannot prove who we are: a certificate or key is missing or wrong."""

    exit_code = 4


class ConfigError(DistricompError):
    """A configuration file or a definition is wrong; the daemons end with 78 (EX_CONFIG)."""

    exit_code = 78


class RefusedError(DistricompError):
    """The coordinator understood a request and refused it; `code` is stable, the message is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class JournalError(DistricompError):
    """The journal could not be read or written (disk full, I/O error, a newer version)."""


class ProtocolError(DistricompError):
    """A violation of the wire protocol; its two leaves say whose."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids; its connection is closed, nobody else is touched."""
