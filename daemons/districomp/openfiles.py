"""The limit on open files, raised for a daemon that holds a connection a peer. Nothing where systems have none."""

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]


def allow(wanted: int) -> int:
    """Raise the limit to `wanted` as far as the hard limit lets us; what it is then."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
