"""Threads and memory of this machine, as far as this process may use them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_V2_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


def default_threads() -> int:
    """Threads for generation: physical cores, within the affinity mask and the container's quota."""
    allowed = _allowed_cpus()
    physical = len({_core_of(cpu) for cpu in allowed})
    quota = _cgroup_quota()
    return max(1, min(physical, math.floor(quota)) if quota else physical)


def total_memory_bytes() -> int | None:
    """Memory that this process may use at most: the machine's, or a container's limit. None where nothing tells."""
    return _smallest(_physical_memory(), *(limit for limit, _ in _memory_cgroups()))


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping or reaching a container's limit, or None where nothing tells."""
    room = [max(0, limit - used) for limit, used in _memory_cgroups()]
    return _smallest(_available_memory(), *room)


def cpu_name() -> str | None:
    """The processor's marketing name, or None where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _core_of(cpu: int) -> tuple[str, str]:
    """An id that hyper-threads of the same core share."""
    topology = _CPU_TOPOLOGY / f"cpu{cpu}" / "topology"
    try:
        package = (topology / "physical_package_id").read_text(encoding="ascii").strip()
        return package, (topology / "core_id").read_text(encoding="ascii").strip()
    except OSError:
        return "", str(cpu)


def _cgroup_quota() -> float | None:
    """CPUs a container may use on average, or None without a limit."""
    try:
        if _CGROUP_V2_QUOTA.exists():
            quota, period = _CGROUP_V2_QUOTA.read_text(encoding="ascii").split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us = int((_CGROUP_V1 / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((_CGROUP_V1 / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota_us / period_us if quota_us > 0 else None
    except (OSError, ValueError):
        return None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _available_memory() -> int | None:
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _memory_cgroups() -> list[tuple[int, int]]:
    """(limit, use) of every control group above this process that has a limit. A cache of files is not counted as use.

    https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files, and cgroup-v1/memory.html
    """
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        _, controllers, own = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, limit, use, cache = _CGROUPS, "memory.max", "memory.current", ("active_file", "inactive_file")
        elif "memory" in controllers.split(","):
            root, limit, use = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = ("total_active_file", "total_inactive_file")
        else:
            continue
        inside = root / own.strip("/")
        for group in (inside, *inside.parents):
            if group.is_relative_to(root) and (numbers := _read_cgroup(group, limit, use, cache)):
                found.append(numbers)
    return found


def _read_cgroup(group: Path, limit: str, use: str, cache: tuple[str, str]) -> tuple[int, int] | None:
    try:
        limit_bytes = int((group / limit).read_text(encoding="ascii"))  # "max" is no limit, and no number
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        used_bytes = int((group / use).read_text(encoding="ascii")) - sum(int(statistics[key]) for key in cache)
    except (OSError, ValueError, KeyError):
        return None
    return limit_bytes, max(0, used_bytes)


def _smallest(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
