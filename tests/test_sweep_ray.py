"""Sweeps on a Ray cluster: the same files as on this machine, also when a machine is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradexp.errors import ConfigError
from gradexp.sweep import SweepOptions, plan_sweep, run_sweep
from tests.sweeps import repeatable, states, write_config

GRID = ("model.depth=2,3", "seed=0,1,2,3")

LOSING_A_MACHINE = """
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from gradexp.sweep import SweepOptions, View, plan_sweep, run_sweep

config, out, *grid = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
assert ray.init(address=cluster.address, log_to_driver=False)


class Saboteur(View):
    ended = 0

    def told(self, event, table):
        if type(event).__name__ == "Ended":
            Saboteur.ended += 1
            if Saboteur.ended == 2:
                assert ray.cluster_resources()["CPU"] == 2
                cluster.remove_node(second, allow_graceful=False)


plan = plan_sweep(Path(config), [], grid)
options = SweepOptions(engine="ray", address=cluster.address)
outcome = run_sweep(plan, Path(out), options, Saboteur())
while ray.cluster_resources()["CPU"] > 1:
    time.sleep(0.1)
ray.shutdown()
cluster.shutdown()
print(outcome.counts, outcome.failures)
sys.exit(outcome.exit_code)
"""


def test_a_lost_machine_costs_nothing_but_time(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    config = write_config(tmp_path)
    arguments = [str(config), str(tmp_path / "ray"), *GRID]
    done = subprocess.run(
        [sys.executable, "-c", LOSING_A_MACHINE, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert states(tmp_path / "ray") == ["finished"] * 8
    run_sweep(plan_sweep(config, [], GRID), tmp_path / "local", SweepOptions(workers=2))
    assert repeatable(tmp_path / "ray") == repeatable(tmp_path / "local")


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = plan_sweep(write_config(tmp_path), [], GRID)
    with pytest.raises(ConfigError, match=r"pip install 'gradexp\[ray\]'"):
        run_sweep(plan, tmp_path / "out", SweepOptions(engine="ray"))
