"""Every system that is compared, in the order of the tables. Imports all adapters; only the comparison imports this."""

from typing import Final

from bench.peers.base import Peer
from bench.peers.beanstalkd import Beanstalkd
from bench.peers.celery import Celery
from bench.peers.dask import Dask
from bench.peers.dispy import Dispy
from bench.peers.districomp import Districomp
from bench.peers.gearman import Gearman
from bench.peers.graphile import Graphile
from bench.peers.hyperqueue import HyperQueue
from bench.peers.limit import Limit
from bench.peers.pool import Pool
from bench.peers.ray import Ray
from bench.peers.workqueue import WorkQueue

PEERS: Final[tuple[Peer, ...]] = (
    Districomp(), Gearman(), Graphile(), Beanstalkd(), Celery(), Ray(), Dask(), HyperQueue(), WorkQueue(), Dispy(),
    Pool(), Limit(),
)  # fmt: skip
