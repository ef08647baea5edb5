"""What the learner may still take is the least of what machine, cgroup, ulimit and settings leave."""

import resource
from pathlib import Path

import pytest
import torch

from treeopo.learner.room import GIB, held, is_out_of_memory, room

CPU = torch.device("cpu")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def machine(root: Path, available_gib: int) -> Path:
    return write(root, {"proc/meminfo": f"MemTotal: 99999 kB\nMemAvailable:   {available_gib * 2**20} kB\n"})


def test_without_any_limit_it_is_what_the_machine_has_free(tmp_path: Path) -> None:
    assert room(CPU, None, machine(tmp_path, 7)) == (7 * GIB, "the machine's memory")


def test_processes_of_one_torchrun_share_what_the_machine_has_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert room(CPU, None, machine(tmp_path, 6)).size == 3 * GIB


def test_a_cgroup_of_version_2_counts_with_all_above_it_but_not_the_file_pages_it_can_give_up(tmp_path: Path) -> None:
    root = write(
        machine(tmp_path, 100),
        {
            "proc/self/cgroup": "0::/jobs/mine\n",
            "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
            "sys/fs/cgroup/jobs/mine/memory.current": "1\n",
            "sys/fs/cgroup/jobs/mine/memory.stat": "inactive_file 0\n",
            "sys/fs/cgroup/jobs/memory.max": f"{12 * GIB}\n",
            "sys/fs/cgroup/jobs/memory.current": f"{10 * GIB}\n",
            "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {3 * GIB}\n",
        },
    )
    assert room(CPU, None, root) == (5 * GIB, "the memory limit of the cgroup (container)")


@pytest.mark.parametrize("mounted", ["sys/fs/cgroup/memory/docker/abc", "sys/fs/cgroup/memory"])
def test_a_cgroup_of_version_1_counts_wherever_a_container_has_it_mounted(tmp_path: Path, mounted: str) -> None:
    root = write(
        machine(tmp_path, 100),
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
            f"{mounted}/memory.limit_in_bytes": f"{6 * GIB}\n",
            f"{mounted}/memory.usage_in_bytes": f"{4 * GIB}\n",
            f"{mounted}/memory.stat": f"total_inactive_file {GIB}\n",
        },
    )
    assert room(CPU, None, root).size == 3 * GIB


def test_ulimit_counts_from_what_the_process_has_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(machine(tmp_path, 100), {"proc/self/status": f"VmSize:\t{5 * 2**20} kB\nVmData: 1048576 kB\n"})
    limits = {resource.RLIMIT_AS: 8 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], limits[kind]))
    assert room(CPU, None, root) == (3 * GIB, "ulimit -v")
    limits[resource.RLIMIT_DATA] = 2 * GIB
    assert room(CPU, None, root) == (GIB, "ulimit -d")


def test_the_setting_is_for_the_whole_process(tmp_path: Path) -> None:
    left = room(CPU, 50.0, machine(tmp_path, 100))
    assert left.bound == "learner.memory_gib 50"
    assert 0 < 50 * GIB - left.size == pytest.approx(held(CPU), rel=0.05)


def test_where_nothing_is_known_nothing_is_held_back(tmp_path: Path) -> None:
    assert room(CPU, None, tmp_path).size == float("inf")


def test_torch_out_of_memory_on_a_cpu_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
