import os
import platform
import sys

import pytest

from ssl_core import machine
from ssl_core.machine import configure_openmp, cpu_quota, physical_cores, processor_name, usable_cores
from ssl_core.testing import finished_process

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
OTHERS = "20 1 8:1 / / rw - ext4  rw\n33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"
DOCKER_V1 = V1.replace(" / ", " /docker/a ", 1)
OF_ANOTHER = V2.replace(" / ", " /another ", 1)
ABOVE = V2.replace(" / ", " /.. ", 1)
HOST = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}
ONE_AND_A_HALF = {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}


def make_tree(root, cgroup, mounts, groups):
    """A root directory with the files of /proc and the control groups of one process."""
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join([OTHERS, *mounts])}
    files |= {f"{group}/{name}": text for group, values in groups.items() for name, text in values.items()}
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name if not name.startswith("proc") else root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="latin-1")
    return root


@pytest.mark.parametrize(
    ("cgroup", "mounts", "groups", "quota"),
    [
        pytest.param("0::/", [V2], {".": {"cpu.max": "max 100000"}}, None, id="v2 without"),
        pytest.param("0::/", [V2], {".": {"cpu.max": "250000 100000"}}, 2.5, id="v2, a container of its own"),
        pytest.param("0::/a/b", [V2], {"a/b": {"cpu.max": "50000 200000"}}, 0.25, id="v2, a service, less than one"),
        pytest.param(
            "0::/a/b",
            [V2],
            {"a/b": {"cpu.max": "max 100000"}, "a": {"cpu.max": "200000 100000"}, ".": {}},
            2.0,
            id="v2, of the group around it",
        ),
        pytest.param("0::/a:b c", [V2], {"a:b c": {"cpu.max": "300000 100000"}}, 3.0, id="v2, a name with colon"),
        pytest.param("0::/a", [V2], {"a": {}}, None, id="v2 whose cpu controller is off"),
        pytest.param("0::/", [ABOVE], {".": {"cpu.max": "100000 100000"}}, 1.0, id="v2 mounted from above"),
        pytest.param("0::/ours", [OF_ANOTHER], {".": {"cpu.max": "100000 100000"}}, None, id="v2 of another"),
        pytest.param("0::/", [], {".": {"cpu.max": "100000 100000"}}, None, id="v2 that is not mounted"),
        pytest.param("4:cpu,cpuacct:/\n0::/", [V1], {"cpu,cpuacct": HOST}, None, id="v1 without"),
        pytest.param("4:cpuacct,cpu:/", [V1], {"cpu,cpuacct": ONE_AND_A_HALF}, 1.5, id="v1"),
        pytest.param("4:cpu:/docker/a", [DOCKER_V1], {"cpu,cpuacct": ONE_AND_A_HALF}, 1.5, id="v1 in docker"),
        pytest.param(
            "4:cpu:/docker/a/b",
            [DOCKER_V1],
            {"cpu,cpuacct": ONE_AND_A_HALF, "cpu,cpuacct/b": HOST},
            1.5,
            id="v1 within docker",
        ),
        pytest.param("7:cpuset:/\n4:memory:/", [V1], {"cpu,cpuacct": ONE_AND_A_HALF}, None, id="v1 without cpu"),
        pytest.param(
            "4:cpu,cpuacct:/a\n1:name=systemd:/s\n0::/s",
            [HYBRID, V1],
            {"unified/s": {}, "cpu,cpuacct": HOST, "cpu,cpuacct/a": ONE_AND_A_HALF},
            1.5,
            id="both, cpu in v1",
        ),
        pytest.param(
            "0::/", ["50 1 8:2 / /media/caf\xe9 rw - vfat x rw", V2], {".": {"cpu.max": "1000 1000"}}, 1.0, id="latin 1"
        ),
    ],
)
def test_the_quota_is_the_smallest_of_the_processs_own_groups(tmp_path, cgroup, mounts, groups, quota):
    assert cpu_quota(make_tree(tmp_path, cgroup, mounts, groups)) == quota


def test_the_processor_is_named_where_the_system_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor_name(tmp_path) == "unknown processor"
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some(R) CPU @ 2 GHz\n")
    assert processor_name(tmp_path) == "Some(R) CPU @ 2 GHz"


def test_there_is_no_quota_where_there_are_no_such_files(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max", 8), ("1000", 1), ("100000", 1), ("110000", 2), ("250000", 3), ("800000", 8), ("6400000", 8)],
)
def test_usable_cores_are_the_quota_rounded_up_and_at_most_the_affinity(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_cores(make_tree(tmp_path, "0::/", [V2], {".": {"cpu.max": f"{quota} 100000"}})) == cores


def test_without_affinity_the_systems_count_is_taken(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_hyperthreads_of_one_core_are_one_physical_core(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4}, raising=False)
    assert physical_cores(tmp_path) == 3  # nothing is known
    for number in range(8):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    assert physical_cores(tmp_path) == 2


@pytest.fixture
def before_torch(monkeypatch):
    """A process of Linux in which torch is not imported and nothing is set, with 4 of 8 processors and 6 cores."""
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(machine, "CHOSEN", {})
    monkeypatch.setattr(machine, "affinity", lambda: 8)
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(machine, "physical_cores", lambda: 6)
    return monkeypatch


def of_openmp():
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.mark.parametrize(
    ("users", "chosen"),
    [
        ({}, {"OMP_NUM_THREADS": "4"}),
        ({"OMP_NUM_THREADS": "7"}, {}),
        ({"OMP_NUM_THREADS": ""}, {}),
        ({"GOMP_SPINCOUNT": "5"}, {"OMP_NUM_THREADS": "4"}),
    ],
)
def test_a_command_sets_what_the_user_has_not(before_torch, users, chosen):
    os.environ.update(users)
    configure_openmp()
    assert of_openmp() == users | chosen
    assert chosen == machine.CHOSEN


def test_threads_are_set_for_a_quota_alone_and_are_never_more_than_cores(before_torch):
    before_torch.setattr(machine, "usable_cores", lambda: 7)
    configure_openmp()
    assert os.environ.pop("OMP_NUM_THREADS") == "6"
    machine.CHOSEN.clear()
    before_torch.setattr(machine, "usable_cores", lambda: 8)
    configure_openmp()
    assert of_openmp() == {}


def test_nothing_is_set_where_it_would_not_act(before_torch):
    before_torch.setattr(sys, "platform", "darwin")
    configure_openmp()
    before_torch.setattr(sys, "platform", "linux")
    before_torch.setitem(sys.modules, "torch", object())
    configure_openmp()
    assert of_openmp() == machine.CHOSEN == {}


COMMANDS = {
    "core": "import ssl_core.__main__ as it; it.main()",
    "method": "import ssl_core.recipes as it; it.run_command('ssl_tiny')",
}


@pytest.mark.skipif(sys.platform != "linux", reason="quotas are those of Linux")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("users", [{}, {"OMP_NUM_THREADS": "77"}], ids=["default", "user"])
def test_the_variable_is_set_before_torch_is_imported(tmp_path, command, users):
    (tmp_path / "torch.py").write_text("import os; print(os.environ['OMP_NUM_THREADS']); os._exit(7)")
    quota = "import ssl_core.machine as m; m.affinity = lambda: 9; m.usable_cores = m.physical_cores = lambda: 5"
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x', 'doctor']; {quota}; {COMMANDS[command]}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | users
    done = finished_process([sys.executable, "-u", "-c", code], env=environment)
    assert (done.stdout, done.returncode) == (f"{users.get('OMP_NUM_THREADS', 5)}\n", 7), done.stderr


def test_an_import_sets_nothing():
    code = (
        "import os; before = dict(os.environ); import ssl_core.__main__, ssl_core.recipes, ssl_core.machine as machine"
    )
    done = finished_process([sys.executable, "-c", f"{code}; assert os.environ == before, machine.CHOSEN"])
    assert done.returncode == 0, done.stderr
