"""DirectML on Windows: which of Microsoft's packages are there, which graphics adapter is used, and no silent CPU.

Everything is decided from facts that are passed in (distributions, adapters), so it can be tested anywhere; reading
them is runtimes.system.windows.dxgi's. It does not install anything.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from export.artifact import Artifact
from runtimes.engines.engine import ANY_ADAPTER, Engine, Graphics
from runtimes.errors import EngineError
from runtimes.system.packages import installed_versions
from runtimes.system.windows.dxgi import Adapter, list_adapters


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A set of distributions that work together. A version is exact; None takes any."""

    name: str
    extra: str  # of phi-edge, that installs it
    distributions: Mapping[str, str | None]
    options: Mapping[str, str] = field(default_factory=dict)  # of genai's provider, beside the adapter


STACKS = (
    # The live line: Windows ML's onnxruntime, which still contains DirectML.
    Stack(
        name="winml",
        extra="winml",
        distributions={"onnxruntime-genai-winml": None, "onnxruntime-windowsml": None, "windowsml": None},
        # Replayed graphs gave wrong tokens on some devices (docs/windows.md). Older genai has no such option.
        options={"enable_graph_capture": "0"},
    ),
    # Frozen, and the one pair of it that resolves: later genai-directml ask for an onnxruntime-directml that was never
    # published.
    Stack(
        name="directml",
        extra="directml",
        distributions={"onnxruntime-genai-directml": "0.13.1", "onnxruntime-directml": "1.24.4"},
    ),
)
# Distributions that write the same import package: the one installed last wins, and may lack DirectML.
OWNERS: Mapping[str, frozenset[str]] = {
    "onnxruntime": frozenset(
        f"onnxruntime{kind}" for kind in ("", "-directml", "-gpu", "-openvino", "-qnn", "-windowsml")
    ),
    "onnxruntime_genai": frozenset(
        ["onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml", "onnxruntime-genai-winml"]
    ),
}
MALWARE = "onnxruntime-winml"  # taken down from PyPI; the real one is onnxruntime-windowsml


def installed_distributions() -> dict[str, str]:
    """name -> version of what this module judges."""
    wanted = {name for stack in STACKS for name in stack.distributions} | {MALWARE} | set().union(*OWNERS.values())
    return installed_versions(wanted)


def choose_stack(installed: Mapping[str, str]) -> Stack:
    """The one whole stack that is installed. Raises EngineError, which says what to install or to remove."""
    if MALWARE in installed:
        raise EngineError(
            f"{MALWARE} is installed, and was malware: look for what else it left behind",
            fix=f"pip uninstall {MALWARE}",
        )
    complete = [stack for stack in STACKS if set(stack.distributions) <= set(installed)]
    keep = set(complete[0].distributions) if complete else set()
    for package, owners in OWNERS.items():
        present = sorted(owners & set(installed))
        if len(present) > 1:
            remove = [name for name in present if name not in keep] or present
            again = f", then pip install --force-reinstall {' '.join(sorted(keep))}" if keep else ""
            raise EngineError(
                f"{', '.join(present)} all write the import package {package}",
                fix=f"pip uninstall {' '.join(remove)}{again}",
            )
    if not complete:
        nearest = max(STACKS, key=lambda stack: len(set(stack.distributions) & set(installed)))
        lacking = ", ".join(name for name in nearest.distributions if name not in installed)
        raise EngineError(
            f"DirectML's packages are incomplete: {lacking} missing", fix=f"pip install 'phi-edge[{nearest.extra}]'"
        )
    stack = complete[0]
    for name, version in stack.distributions.items():
        if version is not None and installed[name] != version:
            raise EngineError(
                f"{name} is {installed[name]}; only {version} works with the rest",
                fix=f"pip install 'phi-edge[{stack.extra}]'",
            )
    return stack


def choose_adapter(adapters: Sequence[Adapter], wanted: str | None = None) -> Adapter:
    """The adapter to compute on: by its place in Windows' order, by LUID (`HIGH:LOW`) or by a part of its name; else
    the one with most memory of its own.

    Raises EngineError where that would be the CPU: Windows' software adapter is not chosen unless it is named.
    """
    listed = "; ".join(f"{place}: {adapter.describe()}" for place, adapter in enumerate(adapters)) or "none"
    if wanted is not None:
        found = [adapter for place, adapter in enumerate(adapters) if _is_named(adapter, place, wanted)]
        if len(found) != 1:
            raise EngineError(
                f"adapter {wanted!r} matches {len(found)}; there are: {listed}; give one's number, LUID or name"
            )
        if not found[0].d3d12:
            raise EngineError(f"adapter {found[0].describe()}: DirectML cannot use it; there are: {listed}")
        return found[0]
    hardware = [adapter for adapter in adapters if not adapter.software and adapter.d3d12]
    if not hardware:
        raise EngineError(
            f"no graphics adapter for DirectML, so this would run on the CPU (adapters: {listed}); "
            "export for --target cpu, or allow the CPU"
        )
    return max(hardware, key=lambda adapter: (adapter.dedicated_bytes, adapter.shared_bytes))


def _is_named(adapter: Adapter, place: int, wanted: str) -> bool:
    if wanted.isdecimal():
        return int(wanted) == place
    return wanted == adapter.luid or wanted.lower() in adapter.name.lower()


def open_windows(artifact: Artifact, threads: int | None, *, graphics: Graphics = ANY_ADAPTER) -> Engine:
    """Load on DirectML. Where the CPU is allowed and takes over, it is reported on stderr.

    Raises EngineError.
    """
    from runtimes.engines.genai_engine import load_genai

    stack = choose_stack(installed_distributions())
    try:
        chosen = choose_adapter(list_adapters(), graphics.adapter)
    except EngineError as error:
        if not graphics.allow_cpu or graphics.adapter is not None:
            raise
        print(f"phi-edge: on the CPU: {error}", file=sys.stderr)
        return load_genai(artifact, threads, provider=None, options={})
    print(f"phi-edge: DirectML ({stack.name}) on {chosen.describe()}", file=sys.stderr)
    options = {"luid": chosen.luid, **stack.options}
    return load_genai(artifact, threads, provider="dml", options=options, accelerator=chosen.describe())


def main() -> int:
    """`python -m runtimes.engines.directml`: one line of JSON with what this module judges, for `phi-edge doctor`."""
    facts = {
        "adapters": [dataclasses.asdict(adapter) for adapter in list_adapters()],
        "distributions": installed_distributions(),
    }
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
