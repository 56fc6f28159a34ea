"""Faults of a cluster while it trains: two hosts of this machine, and torchrun across them.

    nox -s cluster

A host is a network namespace (Linux, root, iproute2), and a pair of virtual interfaces is the cable between the two.
Its processes are forked from this one, which has imported everything, and their agent is that of torchrun.
After each fault training goes on by itself or ends in bounded time with one line; the last checkpoint loads; and the
losses of the run, continued by the same command, are those of a run without faults, to the last bit.
"""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from forked_torchrun import torchrun

import ssl_sce.train
from ssl_core.testing import started_process
from ssl_core.train import load_checkpoint, read_metrics

pytestmark = [
    pytest.mark.timeout(2400),  # of several starts of Python, each by four processes, on a busy machine
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
    pytest.mark.skipif(sys.platform == "linux" and os.getuid() != 0, reason="needs root, to make hosts"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2"),
]

TIMEOUT_S = 20  # train.timeout: of a process for another one
# Of torchrun: for its own processes, for the store of the rendezvous, and for hosts that are away.
SHUTDOWN_S, READ_S, JOIN_S = 5, 10, 60
# In which a command has ended, whatever happens: a time-out, a restart that waits for a host, and starts of Python.
BOUND_S = 600.0
STEPS = 63  # 3 epochs of 21
AT_STEP = 10  # when a fault comes
DISK_BYTES = 2**26  # of the disk that runs full
TRAIN = ["--config", "smoke", "--device", "cpu", "--train.epochs", "3", "--train.log_every", "1"]
TRAIN += ["--train.checkpoint_every", "4", "--evaluate.knn_every", "0", "--train.timeout", f"{TIMEOUT_S}s"]


class Host(NamedTuple):
    """A network namespace with one interface."""

    name: str
    address: str


class Agent(NamedTuple):
    """A torchrun on a host, and the file that its processes write to."""

    process: multiprocessing.Process
    log: Path

    @property
    def workers(self) -> list[int]:
        """Its processes that train."""
        return _children(self.process.pid)

    @property
    def errors(self) -> list[str]:
        """The lines in which its processes said why they ended."""
        return re.findall(r"ssl-sce-train: error: .*", self.log.read_text())

    def kill(self) -> None:
        """Kill it with all its processes at once, as a machine that loses power."""
        for pid in (self.process.pid, *self.workers):
            os.kill(pid, signal.SIGKILL)


def _on(host: Host, log: Path, environment: dict[str, str]) -> None:
    """Move this process to a host, with standard error in a file."""
    with Path("/run/netns", host.name).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {host.name}")
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = open(os.devnull, "w"), os.fdopen(2, "w", buffering=1, closefd=False)  # noqa: SIM115  # for ever
    os.environ |= environment


def _agent(host: Host, log: Path, environment: dict[str, str], options: list[str], arguments: list[str]) -> None:
    """What torchrun does with these options, but that it forks its processes."""
    _on(host, log, environment)
    torchrun(options, _train, arguments)


def _train(arguments: list[str]) -> None:
    ssl_sce.train.main(arguments)


def _alone(host: Host, log: Path, arguments: list[str]) -> None:
    _on(host, log, {})
    _train(arguments)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them; the first holds the rendezvous."""
    made = tuple(Host(f"ssl{os.getpid()}{side}", f"10.77.0.{number}") for number, side in enumerate("ab", 1))
    with contextlib.ExitStack() as stack:
        for host in made:
            try:
                _ip("netns", "add", host.name)
            except subprocess.CalledProcessError:
                pytest.skip("this system makes no network namespaces")
            stack.callback(_ip, "netns", "del", host.name)
            _ip("-n", host.name, "link", "set", "lo", "up")
            # torchrun's agents wait for as long as the system repeats a packet: 15 minutes, and here 25 s.
            _ip("netns", "exec", host.name, "sh", "-c", "echo 6 > /proc/sys/net/ipv4/tcp_retries2")
        first, second = made
        _ip("link", "add", "cable", "netns", first.name, "type", "veth", "peer", "name", "cable", "netns", second.name)
        for host in made:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "cable")
            _ip("-n", host.name, "link", "set", "cable", "up")
        yield first, second


_numbers = itertools.count()


class Cluster:
    """Runs on two hosts.

    Args:
        hosts: hosts, of which the first holds the rendezvous.
        folder: folder of the run and of what its processes print.
    """

    def __init__(self, hosts: tuple[Host, Host], folder: Path) -> None:
        self.hosts, self.run, self._folder = hosts, folder / "run", folder

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        for host in self.hosts:  # torchrun's processes are in groups of their own
            done = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True, check=True)
            for pid in done.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def start(self, *options: str, restarts: int = 3) -> list[Agent]:
        """Start the run on both hosts, or continue it."""
        job = str(next(_numbers))
        return [self.start_on(host, *options, job=job, restarts=restarts) for host in self.hosts]

    def start_on(self, host: Host, *options: str, job: str, restarts: int = 3) -> Agent:
        """Start torchrun on a host."""
        is_first = host is self.hosts[0]
        command = ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts)]
        command += ["--shutdown-timeout", str(SHUTDOWN_S), "--local-addr", host.address]
        command += ["--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", f"{self.hosts[0].address}:29500"]
        settings = {"is_host": int(is_first), "read_timeout": READ_S, "join_timeout": JOIN_S, "last_call_timeout": 1}
        command += ["--rdzv-conf", ",".join(f"{name}={value}" for name, value in settings.items())]
        # Without the second an agent that joins later waits for an address in vain (PyTorch 2.15).
        environment = {"GLOO_SOCKET_IFNAME": "cable", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        log = self._folder / f"{next(_numbers)}-{'ab'[not is_first]}.log"
        arguments = [*TRAIN, "--out", str(self.run), *options]
        return Agent(self.fork(_agent, host, log, environment, command, arguments), log)

    def fork(self, function: Callable[..., None], *arguments: object) -> multiprocessing.Process:
        """A process that ends with the test."""
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
        return process

    def wait_for_step(self, agents: list[Agent], step: int = AT_STEP) -> None:
        """Wait until the run has logged a step."""
        deadline = time.monotonic() + BOUND_S
        metrics = self.run / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < step:
            assert all(agent.process.is_alive() for agent in agents), agents[0].log.read_text()
            assert time.monotonic() < deadline, "training does not begin"
            time.sleep(0.01)

    def losses(self) -> dict[int, float]:
        """The loss of each step."""
        return {record["step"]: record["loss"] for record in read_metrics(self.run) if "loss" in record}

    def is_cut(self, cut: bool) -> None:
        """Pull or plug in the cable."""
        _ip("-n", self.hosts[1].name, "link", "set", "cable", "down" if cut else "up")


def ended(agents: list[Agent]) -> list[int]:
    """The status of each agent, which must end in bounded time; and the seconds that it took, in the test's output."""
    begun = time.monotonic()
    for agent in agents:
        agent.process.join(max(1.0, begun + BOUND_S - time.monotonic()))
        assert agent.process.exitcode is not None, f"no end within {BOUND_S:g} s:\n{agent.log.read_text()[-5000:]}"
    print(f"ended after {time.monotonic() - begun:.1f} s")
    return [agent.process.exitcode for agent in agents]


@pytest.fixture
def cluster(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(hosts, tmp_path) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected(hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of a run without faults."""
    with Cluster(hosts, tmp_path_factory.mktemp("whole")) as whole:
        assert ended(whole.start()) == [0, 0]
        assert len(whole.losses()) == STEPS
        return whole.losses()


def check_continued(cluster: Cluster, expected: dict[int, float]) -> None:
    """The last checkpoint loads, and the same command brings the run to the end that it would have had."""
    assert 0 < load_checkpoint(cluster.run / "checkpoints" / "last.pt")["step"] < STEPS
    assert ended(cluster.start()) == [0, 0]
    assert cluster.losses() == expected


def test_a_killed_process_is_started_again_with_the_others(cluster, expected):
    agents = cluster.start()
    cluster.wait_for_step(agents)
    os.kill(*agents[1].workers, signal.SIGKILL)
    assert ended(agents) == [0, 0]
    assert cluster.losses() == expected


def test_without_restarts_a_killed_process_ends_the_run_in_one_line(cluster, expected):
    agents = cluster.start(restarts=0)
    cluster.wait_for_step(agents)
    os.kill(*agents[1].workers, signal.SIGKILL)
    assert ended(agents) == [1, 1]
    (line,) = agents[0].errors
    assert "process 0 has lost another process" in line
    check_continued(cluster, expected)


def test_a_killed_agent_that_is_started_again_joins_the_run(cluster, expected):
    job = "joined"
    agents = [cluster.start_on(host, job=job) for host in cluster.hosts]
    cluster.wait_for_step(agents)
    orphan = agents[1].workers
    agents[1].process.kill()
    os.kill(*orphan, signal.SIGSTOP)  # so that the run is not over before the other agent is there
    agents[1] = cluster.start_on(cluster.hosts[1], job=job)
    assert ended(agents) == [0, 0]
    assert cluster.losses() == expected


@pytest.mark.parametrize("dead", [0, 1], ids=["with the rendezvous", "without"])
def test_a_host_that_loses_power_ends_the_run_in_one_line(cluster, expected, dead):
    agents = cluster.start()
    cluster.wait_for_step(agents)
    agents[dead].kill()
    assert ended([agents[1 - dead]]) == [1]
    assert any(f"process {1 - dead} has lost another process" in line for line in agents[1 - dead].errors)
    check_continued(cluster, expected)


def test_a_cable_that_is_cut_for_five_seconds_delays_the_run_and_no_more(cluster, expected):
    agents = cluster.start(restarts=0)
    cluster.wait_for_step(agents)
    cluster.is_cut(True)
    time.sleep(5)
    cluster.is_cut(False)
    assert ended(agents) == [0, 0]
    assert cluster.losses() == expected


def test_a_cable_that_is_cut_for_ever_ends_the_run_on_both_sides(cluster, expected):
    agents = cluster.start()
    cluster.wait_for_step(agents)
    cluster.is_cut(True)
    try:
        assert ended(agents) == [1, 1]
    finally:
        cluster.is_cut(False)
    for number, agent in enumerate(agents):
        assert any(f"process {number} has lost another process" in line for line in agent.errors)
    check_continued(cluster, expected)


def test_a_process_that_is_stopped_for_longer_than_the_time_out_is_started_again_with_the_others(cluster, expected):
    agents = cluster.start()
    cluster.wait_for_step(agents)
    os.kill(*agents[1].workers, signal.SIGSTOP)
    assert ended(agents) == [0, 0]
    assert any("process 0 has lost another process" in line for line in agents[0].errors)
    assert cluster.losses() == expected


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_last_checkpoint(cluster, expected):
    cluster.run.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", cluster.run], check=True)
    try:
        agents = cluster.start(restarts=0)
        cluster.wait_for_step(agents)
        with contextlib.suppress(OSError):  # of a write that fills what is left, however much the run writes meanwhile
            (cluster.run / "of somebody else").write_bytes(bytes(DISK_BYTES))
        assert ended(agents) == [1, 1]
        for agent in agents:
            (line,) = set(agent.errors)
            assert "No space left on device" in line
        (cluster.run / "of somebody else").unlink()
        check_continued(cluster, expected)
    finally:
        subprocess.run(["umount", "--lazy", cluster.run], check=True)  # a run that has not ended holds it


def test_a_host_that_does_not_see_the_run_is_refused(cluster, tmp_path):
    agents = cluster.start()
    cluster.wait_for_step(agents)
    for agent in agents:
        agent.process.terminate()
    assert ended(agents) == [1, 1]
    first, second = cluster.hosts
    agents = [cluster.start_on(first, job="apart", restarts=0)]
    agents.append(cluster.start_on(second, "--out", str(tmp_path / "else"), job="apart", restarts=0))
    assert ended(agents) == [1, 1]
    assert all(f"find different checkpoints in {cluster.run}" in line for line in agents[0].errors)
    assert not (tmp_path / "else").exists()


def test_a_second_run_with_the_same_out_is_refused_and_the_first_goes_on(cluster, expected):
    agents = cluster.start(restarts=0)
    cluster.wait_for_step(agents)
    stopped = [pid for agent in agents for pid in agent.workers]
    for pid in stopped:  # so that the first is not over too soon
        os.kill(pid, signal.SIGSTOP)
    log = cluster.run.with_name("second.log")
    arguments = [*TRAIN, "--out", str(cluster.run), "--train.processes_changed", "accept"]
    second = cluster.fork(_alone, cluster.hosts[1], log, arguments)
    second.join(BOUND_S)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    assert second.exitcode == 1
    assert re.findall(r"error: .* is in use by process \d+ on \S+; wait for its end", log.read_text())
    assert ended(agents) == [0, 0]
    assert cluster.losses() == expected


def test_slurms_script_saves_at_its_signal_is_queued_again_and_goes_on(tmp_path):
    script = Path(__file__).parents[1] / "examples" / "slurm.sh"
    run, queued, binaries = tmp_path / "run", tmp_path / "queued", tmp_path / "bin"
    binaries.mkdir()
    stubs = {
        "scontrol": f'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {queued}; fi',
        "srun": 'exec "$@"',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, text in stubs.items():
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)
    env = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}
    env |= {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2"}
    command = ["bash", str(script), str(run), "-m", "ssl_sce", *TRAIN]
    for number in range(3):
        with started_process(command, env=env, stderr=subprocess.PIPE) as job:
            if number == 0:
                while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
                    assert job.poll() is None
                    time.sleep(0.02)
                (torchrun,) = _children(job.pid)
                for pid in (torchrun, *_children(torchrun)):  # as Slurm, which signals a step's processes
                    os.kill(pid, signal.SIGUSR1)
            _, errors = job.communicate(timeout=BOUND_S)
        if number == 0:
            assert "stopped by SIGUSR1 after step" in errors
            assert "continue with" in errors
            assert queued.read_text() == "requeue 7\n"
            assert 0 < load_checkpoint(run / "checkpoints" / "last.pt")["step"] < STEPS
        else:  # the third finds the run done
            assert job.returncode == 0, errors
            assert queued.read_text() == "requeue 7\n"
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == STEPS
