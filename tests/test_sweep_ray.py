"""Sweeps on a Ray cluster: the same files as on this machine, also when a machine is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gradexp.errors import ConfigError
from gradexp.sweeps import SweepOptions, plan_sweep, run_sweep
from tests.forking import fork_instead
from tests.sweeps import repeatable, states, write_config

GRID = ("model.depth=2,3", "seed=0,1,2,3")

RAY_SWEEPS = """
import os
import signal
import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from gradexp.sweeps import SweepOptions, View, plan_sweep, run_sweep

config, out, hold, longer, *grid = sys.argv[1:]
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


class CtrlC(View):
    asked = False

    def told(self, event, table):
        scratch = Path(os.environ["TMPDIR"])
        if not CtrlC.asked and any(
            path.stat().st_size > 1000
            for cell in plan.cells
            for path in scratch.glob(f"*/runs/{cell.run}/steps.csv")
        ):
            CtrlC.asked = True
            os.kill(os.getpid(), signal.SIGINT)


Path(hold).touch()
plan = plan_sweep(Path(config), longer.split(";"), [], 2)
stopped = run_sweep(plan, Path(out), options, CtrlC())
assert stopped.interrupted and stopped.counts == {"interrupted": 1, "planned": 1}, stopped
(checkpoint,) = Path(out).glob("runs/*/checkpoint.pt")
Path(hold).unlink()
begun = checkpoint.with_name("steps.csv").read_bytes()[:1000]
assert run_sweep(plan, Path(out), options).counts == {"finished": 2}
assert checkpoint.with_name("steps.csv").read_bytes().startswith(begun)  # its times too
ray.shutdown()
cluster.shutdown()
print(outcome.counts, outcome.failures)
sys.exit(outcome.exit_code)
"""


def test_a_lost_machine_and_an_interrupt_cost_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    config = write_config(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    hold = tmp_path / "hold"
    patient = f"train.schedule={{name: patient, marker: {hold}}}"
    longer = ("train.steps=1500", "probe.every=500", patient)
    arguments = [str(config), str(tmp_path / "ray"), str(hold), ";".join(longer), *GRID]
    done = subprocess.run(
        [sys.executable, "-c", RAY_SWEEPS, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": tempfile.gettempdir(),  # names of Ray's sockets must be short
            "TMPDIR": str(scratch),
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    fork_instead(monkeypatch)
    local = SweepOptions(workers=2)
    run_sweep(plan_sweep(config, [], GRID), tmp_path / "local", local)
    run_sweep(plan_sweep(config, longer, (), 2), tmp_path / "local", local)
    assert states(tmp_path / "ray") == ["finished"] * 10
    assert repeatable(tmp_path / "ray") == repeatable(tmp_path / "local")


def test_without_ray_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = plan_sweep(write_config(tmp_path), [], GRID)
    with pytest.raises(ConfigError, match=r"pip install 'gradexp\[ray\]'"):
        run_sweep(plan, tmp_path / "out", SweepOptions(engine="ray"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_wrong_address_is_said_at_once(tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    plan = plan_sweep(write_config(tmp_path), [], GRID)
    with pytest.raises(ConfigError, match=f"--address {address}: no Ray cluster"):
        run_sweep(plan, tmp_path / "out", SweepOptions(engine="ray", address=address))
