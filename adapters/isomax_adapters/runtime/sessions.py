"""ONNX Runtime's session: on as many cores as there are, with the providers that were asked for."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from isomax_adapters.runtime.errors import InputError

Provider = str | tuple[str, dict[str, Any]]

CPU = "CPUExecutionProvider"
CGROUPS = Path("/sys/fs/cgroup")


class ProviderError(InputError):
    """An execution provider that was asked for cannot be used; says what can."""


def open_session(
    content: bytes, providers: str | Sequence[Provider] | None = None, threads: int | None = None
) -> Any:
    """A session that runs on what was asked for.

    :param content: the model
    :param providers: one or several, most wanted first; the CPU's if not given
    :param threads: of the network; if not given ONNX Runtime's own choice, or as many as this
        process may use, where these are fewer than the machine has
    :raises ProviderError: if a provider is not there, or turns out not to work
    :raises Exception: of ONNX Runtime's kinds, if it cannot run the model
    """
    wanted = [providers] if isinstance(providers, str) else list(providers or [CPU])
    names = [one if isinstance(one, str) else one[0] for one in wanted]
    available = onnxruntime.get_available_providers()
    for name in names:
        if name not in available:
            raise ProviderError(f"this ONNX Runtime has no {name!r}; it has {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if threads is not None:
        options.intra_op_num_threads = threads
    elif cores() < (os.cpu_count() or 1):
        options.intra_op_num_threads = cores()
    # without its fallback, which prints to standard output and takes another provider
    session = onnxruntime.InferenceSession(content, options, providers=wanted, enable_fallback=0)
    used = session.get_providers()
    if missing := [name for name in names if name not in used]:
        raise ProviderError(
            f"{', '.join(missing)} cannot be used here, perhaps since its libraries are missing or "
            f"of other versions; ONNX Runtime would run on {', '.join(used)}: ask for that, or "
            "install what is missing"
        )
    return session


def cores() -> int:
    """How many this process may use: by its affinity, and by its control group's quota of time."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(allowed, *_quotas()) if _quotas() else allowed)


def _quotas() -> list[int]:
    """Of cgroups 2, and of the controller of cgroups 1, in cores, rounded up."""
    found = []
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((CGROUPS / name).read_text(encoding="ascii") for name in files).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # none there, or "max"
            continue
        if quota > 0 and period > 0:
            found.append(math.ceil(quota / period))
    return found
