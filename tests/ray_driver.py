"""A study on a real Ray cluster of two nodes on this machine, of which one is killed while it works.

python -m tests.ray_driver FILE
"""

import sys
import threading
import time
from typing import Any

from fewstep.study.ray_pool import RayPool
from fewstep.study.records import NODE_LOST, WORKER_DIED, Outcome
from fewstep.study.runner import Runner
from fewstep.study.store import Store
from tests.studies import drawer, measure, record, spec


class Watched(RayPool):
    """Counts the tasks that came back with their worker."""

    lost = 0

    def wait(self, timeout: float) -> list[Outcome]:
        found = super().wait(timeout)
        for outcome in found:
            if outcome.cause in (NODE_LOST, WORKER_DIED):
                self.lost += 1
                print(outcome.cause, "|", outcome.message.splitlines()[0], flush=True)
        return found


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    second: Any = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    pool = Watched(spec(pause=0.5), 4)
    until = time.monotonic() + 120
    while pool.idle() < 4 and time.monotonic() < until:
        pool.wait(1.0)
    assert pool.idle() == 4, "the cluster did not start"
    # Both nodes are at work by then; the node goes without a word.
    threading.Timer(2.2, cluster.remove_node, (second,), {"allow_graceful": False}).start()
    with Store.create(sys.argv[1], record(budget=60, counts=[4, 16])) as store:
        Runner(store, drawer(), pool, measure).run()
    pool.close()
    print("lost in flight:", pool.lost)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
