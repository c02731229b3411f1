"""What a check on a GPU found, and its line in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# How far logits may be off, in standard deviations of the CPU's: float16 has 11 bits, and rounds after every operator.
DEVIATIONS = 0.1
HEAD = (
    "| model | engine | logits off the CPU provider by | same greedy tokens | nodes beside the GPU "
    "| prefill, tokens/s | decode, tokens/s | GPU memory |\n|---|---|---|---|---|---|---|---|"
)
CONFORM_HEAD = (
    "| small variant | context | largest difference | in deviations | mean KL | same best token | verdict |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One artifact in one engine. None for what was not measured; an error stands for all of it."""

    model: str
    engine: str
    difference: float | None = None
    spread: float | None = None  # the standard deviation of the CPU's logits
    equal: int | None = None  # of the prompts, those with the CPU's tokens
    prompts: int = 0
    gaps: Sequence[float] = ()  # where the others part, how far the CPU's logits of the two tokens are apart
    apart: int = 0  # of the stock engine's prompts, those with neither the CPU's tokens nor our engine's
    nodes: Mapping[str, int] = field(default_factory=dict)  # provider -> how many nodes
    outside: Sequence[str] = ()  # the nodes beside the GPU, and their operators
    prefill: Mapping[int, float] = field(default_factory=dict)  # prompt's tokens -> tokens a second
    decode: Mapping[int, float] = field(default_factory=dict)  # the same, after so many tokens
    memory_bytes: int | None = None
    error: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it is not what the CPU computes, but for the rounding of the GPU's arithmetic."""
        far = self.difference is not None and not self.difference <= DEVIATIONS * (self.spread or 0.0)
        return bool(self.error) or far or self.apart > 0

    def markdown(self) -> str:
        """The row's line."""
        if self.error:
            return f"| {self.model} | {self.engine} | **{self.error}** | | | | | |"
        cells = [
            self.model,
            self.engine,
            "" if self.difference is None else f"{self.difference:.3g} (deviation {self.spread:.3g})",
            "" if self.equal is None else f"{self.equal} of {self.prompts} prompts{_gaps(self.gaps)}",
            f"{len(self.outside)} of {sum(self.nodes.values())}" if self.nodes else "",
            _speeds(self.prefill, "of"),
            _speeds(self.decode, "after"),
            "" if self.memory_bytes is None else f"{self.memory_bytes / 1e9:.2f} GB",
        ]
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """One small variant against its float reference, at the lengths where others break."""

    variant: str
    context_tokens: int
    difference: float = 0.0
    relative: float = 0.0
    mean_kl: float = 0.0
    top1_agreement: float = 0.0
    failures: Sequence[str] = ()
    error: str = ""

    def markdown(self) -> str:
        """The variant's line."""
        if self.error:
            return f"| {self.variant} | {self.context_tokens} | **{self.error}** | | | | |"
        verdict = f"**{self.failures[0]}**" if self.failures else "pass"
        return (
            f"| {self.variant} | {self.context_tokens} | {self.difference:.1e} | {self.relative:.1e} | "
            f"{self.mean_kl:.1e} | {self.top1_agreement:.0%} | {verdict} |"
        )


def _gaps(gaps: Sequence[float]) -> str:
    return f", else where the CPU's best two are {max(gaps):.2g} apart" if gaps else ""


def _speeds(speeds: Mapping[int, float], word: str) -> str:
    return ", ".join(f"{speed:,.0f} {word} {tokens}" for tokens, speed in speeds.items())
