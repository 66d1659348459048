"""Ray nodes on this machine, for tests and benchmarks."""

from __future__ import annotations

import logging
from typing import Any

TRIES = 6

log = logging.getLogger(__name__)


def open_cluster() -> Any:
    """A head without a place for workers; `shutdown` ends it with its nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    add_node(cluster, num_cpus=0, include_dashboard=False)
    return cluster


def add_node(cluster: Any, **given: object) -> Any:
    """Another machine. Ray gives up a node whose agent takes 15 s to start, as on a busy machine."""
    for tries_left in reversed(range(TRIES)):
        try:
            return cluster.add_node(**given)
        except Exception as error:
            if not tries_left:
                raise
            log.warning("a node did not start: %s", error)
    raise AssertionError("TRIES is positive")
