"""Threads and memory of this machine, as far as this process may use them."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
_CGROUP_V2_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = Path("/sys/fs/cgroup/cpu")


def default_threads() -> int:
    """Threads for generation: physical cores, within the affinity mask and the container's quota."""
    allowed = _allowed_cpus()
    physical = len({_core_of(cpu) for cpu in allowed})
    quota = _cgroup_quota()
    return max(1, min(physical, math.floor(quota)) if quota else physical)


def total_memory_bytes() -> int | None:
    """Physical memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def available_memory_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


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
