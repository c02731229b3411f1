"""How often `bench --against` is right on this machine: two artifacts that differ by a known share, and A/A.

python -m ci.bench.trials [--trials N] [--slower 0.05] [--keep FOLDER]      prints the table of docs/lab.md

The artifact is the tiny model. The slower one is its copy, and its agent is busy after each token for the known share
of that token's time (busy_agent.py). Each trial is one `phi-edge bench --against --precision 0.02` as a user would call
it, of 16 rounds and up to 96; the verdict is the comparison's, with the noise floor of 1 % that it prints with. Nearly
all of a trial is the start of its processes, so prompt and answer may be short.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import binomtest

from ci.bench.busy_agent import SHARE
from devices.judge.compare import Change, compare
from devices.measure.measurement import read_measurement
from phi_edge.verbs.bench import TURNS_FLOOR

METRICS = ("itl_p50_s", "decode_tokens_per_s", "prefill_tokens_per_s")
WORKLOAD = ("--prompt-tokens", "32", "--generate-tokens", "96", "--threads", "1", "--precision", "0.02")
DEVICE = "here"


def prepare(folder: Path, slower: float) -> tuple[Path, Path]:
    """-> the artifact, and its copy that is slower by the share; a lab file is written beside them."""
    phi_edge("export", "tiny", str(folder / "old"))
    shutil.copytree(folder / "old", folder / "new")
    (folder / "new" / SHARE).write_text(repr(slower))
    agent = [sys.executable, "-m", "ci.bench.busy_agent"]
    leases = f'[leases]\nfile = "{folder / "leases.sqlite"}"\n'  # of its own: other jobs on this machine are its noise
    row = f'[device.{DEVICE}]\ntransport = "local"\nagent = {json.dumps(agent)}\n'
    (folder / "lab.toml").write_text(leases + row)
    return folder / "old", folder / "new"


def phi_edge(*words: str) -> None:
    """Run the command line. Raises CalledProcessError."""
    subprocess.run([sys.executable, "-m", "phi_edge", *words], check=True, stdout=subprocess.DEVNULL)


def one_trial(new: Path, old: Path, out: Path) -> list[Change]:
    """The verdicts of one `phi-edge bench --against`, on all metrics. One whose files are there is not made again."""
    baseline = out.with_name(f"{out.stem}.against.json")
    if not baseline.exists():
        lab = ["--device", DEVICE, "--lab", str(new.parent / "lab.toml")]
        phi_edge("bench", str(new), "--against", str(old), *lab, *WORKLOAD, "--out", str(out))
    return list(compare(read_measurement(out), read_measurement(baseline), TURNS_FLOOR).changes)


def table(found: Mapping[str, Sequence[Sequence[Change]]]) -> str:
    """Markdown, of the changes of each trial: by true difference and metric, how often each verdict was given."""
    lines = ["| true difference | metric | trials | slower | faster | no change | inconclusive | called a change |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for difference, trials in found.items():
        for metric in METRICS:
            verdicts = Counter(change.verdict for changes in trials for change in changes if change.metric == metric)
            counts = [str(verdicts[name]) for name in ("regression", "improvement", "no-change", "inconclusive")]
            called = verdicts["regression"] + verdicts["improvement"]
            lines.append(_row(difference, f"`{metric}`", len(trials), counts, called))
        called = sum(any(change.verdict in ("regression", "improvement") for change in changes) for changes in trials)
        lines.append(_row(difference, "any of all metrics", len(trials), [""] * 4, called))
    return "\n".join(lines)


def _row(difference: str, metric: str, trials: int, counts: Sequence[str], called: int) -> str:
    bounds = binomtest(called, trials).proportion_ci(method="wilson")
    share = f"{called / trials:.1%} ({bounds.low:.1%} to {bounds.high:.1%})"
    return f"| {difference} | {metric} | {trials} | {' | '.join(counts)} | {share} |"


def main() -> None:
    """A trial of each kind in turns; a line for each on stderr, the table at the end."""
    parser = argparse.ArgumentParser(description="How often bench --against is right on this machine.")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--slower", type=float, default=0.05)
    parser.add_argument("--keep", type=Path, help="a folder for the trials' files; it goes on with what is there")
    options = parser.parse_args()
    slower = f"{options.slower:.0%} slower"
    found: dict[str, list[list[Change]]] = {"none (A/A)": [], slower: []}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if options.keep is None else options.keep
        kept.mkdir(parents=True, exist_ok=True)
        old, new = prepare(Path(folder), options.slower)
        for number in range(1, options.trials + 1):
            for difference, trials in found.items():
                kind, candidate = ("slower", new) if difference == slower else ("same", old)
                changes = one_trial(candidate, old, kept / f"{kind}-{number}.json")
                trials.append(changes)
                judged = [each for each in changes if each.metric in METRICS]
                seen = ", ".join(f"{each.metric} {each.low:.3f} to {each.high:.3f} {each.verdict}" for each in judged)
                print(f"{number} {difference}, load {os.getloadavg()[0]:.1f}: {seen}", file=sys.stderr, flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
