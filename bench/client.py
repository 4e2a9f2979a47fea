"""A client of a benchmark's cluster, over the network as any other machine's: by TLS, or plainly if nobody proves anything."""

import os
from pathlib import Path

from demo.cluster import Cluster
from districomp.client import Client


def client_of(cluster: Cluster, *, insecure: bool = False) -> Client:
    """A connected client. With TLS its identity lies in the cluster's folder: there is one such client in a process."""
    address, port = cluster.endpoint()["control"]
    if insecure:
        client = Client(f"tcp://{address}:{port}")
    else:
        token_file = write_token(cluster, "submit")
        os.environ["DISTRICOMP_STATE_DIR"] = str(cluster.folder / "client")
        client = Client(f"{address}:{port}", token_file)
    client.__enter__()
    return client


def write_token(cluster: Cluster, role: str) -> Path:
    """A file with a new token of any number of uses."""
    file = cluster.folder / f"token-{role}"
    file.touch(mode=0o600)
    file.write_text(cluster.dctl_json("token", "create", role)["token"], encoding="ascii")
    return file
