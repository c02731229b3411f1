"""One adapter's tensors at their places in a base: each must have one, and fit it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from export.adapters.changes import AddedBias, Change, EmbeddingLowRank, LowRank, Replaced, TrainedRows
from export.adapters.config import MERGE_IN_PEFT, Ranks
from export.adapters.folder import AdapterFolder
from export.adapters.merged import MergedTensor
from export.checkpoint.quantised import QuantisedTensor
from export.checkpoint.shards import Piece, StoredTensor
from export.errors import AdapterError
from export.models.layers import split_rows
from export.models.phi3 import APART
from export.models.shape import Config, on_meta
from export.scheme import EMBEDDING, HEAD

AGAIN = "save or download the adapter again"
IF_TOKENS_WERE_ADDED = f"if tokens were added in the training, {MERGE_IN_PEFT}"
WHOLE = ("weight", "bias", "B bias", "tokens")  # parts that change a tensor by themselves
COMPARED_ROWS = 64
ROUNDING = 0.01  # of the largest value: a base in another float type
HEAD_MODULE, EMBEDDING_MODULE = HEAD.removesuffix(".weight"), EMBEDDING.removesuffix(".weight")


@dataclass(frozen=True)
class Place:
    """Where a module's weight or bias is in the model: rows of one tensor."""

    tensor: str
    first: int
    shape: tuple[int, ...]  # of these rows


def places(config: Config) -> dict[tuple[str, str], Place]:
    """(a module's name, "weight" or "bias") -> its place, by every name that a base of this family has for it."""
    rows, found = split_rows(on_meta(config)), dict[tuple[str, str], Place]()
    for name, shape in config.tensor_shapes().items():
        module, _, kind = name.rpartition(".")
        found[module, kind] = Place(name, 0, shape)
        end = next((end for end in APART if module.endswith(end)), None)
        first = 0
        for other, (_, count) in zip(APART[end], rows[name], strict=True) if end else ():
            found[module.removesuffix(end or "") + other, kind] = Place(name, first, (count, *shape[1:]))
            first += count
    return found


@dataclass(frozen=True)
class Fit:
    """One adapter's tensors at their places."""

    adapter: AdapterFolder
    places: Mapping[tuple[str, str], Place]
    tensors: Mapping[str, StoredTensor | QuantisedTensor | MergedTensor]
    ranks: Ranks

    def changes(self) -> Iterator[tuple[str, Change]]:
        """(a tensor's name, a change of it), for all of the adapter's tensors. Raises AdapterError."""
        for module, parts in self.adapter.parts.items():
            others = [part for part in WHOLE if part in parts]
            if "base weight" in parts:
                self.compare_base(module, parts["base weight"])
            if "embedding A" in parts or "embedding B" in parts:
                yield self.embedding(module, parts)
            elif parts.keys() - {*others, "base weight"}:
                yield self.low_rank(module, parts)
            for part in others:
                yield self.other(module, part, parts[part])

    def low_rank(self, module: str, parts: Mapping[str, Piece]) -> tuple[str, LowRank]:
        """LoRA or DoRA of a linear layer."""
        a, b = self.pair(module, parts, "A", "B")
        place, magnitude = self.place(module, "weight"), parts.get("magnitude")
        if len(place.shape) != 2:
            raise self.error(f"has lora_A of {module}, which is no matrix", AGAIN)
        self.check(module, a, (a.shape[0], place.shape[1]))
        self.check(module, b, (place.shape[0], a.shape[0]))
        if self.adapter.config.dora != (magnitude is not None):
            seen = "true" if self.adapter.config.dora else "false"
            article = "a" if magnitude else "no"
            raise self.error(f"use_dora is {seen}, and {module:.120} has {article} lora_magnitude_vector", AGAIN)
        if magnitude is not None:
            self.check(module, magnitude, place.shape[:1])
            self.need_full_weight("DoRA")
        change = LowRank(adapter=self.label, first=place.first, a=a, b=b, scale=self.scale(module), magnitude=magnitude)
        return place.tensor, change

    def embedding(self, module: str, parts: Mapping[str, Piece]) -> tuple[str, EmbeddingLowRank]:
        """LoRA of the embedding."""
        if "magnitude" in parts:
            raise self.error(f"has DoRA of {module:.120}, which scales whole columns", MERGE_IN_PEFT)
        a, b = self.pair(module, parts, "embedding A", "embedding B")
        place = self.place(module, "weight")
        self.check(module, a, (a.shape[0], place.shape[0]))
        self.check(module, b, (*place.shape[1:], a.shape[0]))
        return place.tensor, EmbeddingLowRank(adapter=self.label, first=place.first, a=a, b=b, scale=self.scale(module))

    def other(self, module: str, part: str, piece: Piece) -> tuple[str, Change]:
        """What is saved whole, and biases."""
        if part == "B bias":
            place = self.place(module, "bias")
            self.check(module, piece, place.shape)
            return place.tensor, AddedBias(adapter=self.label, first=place.first, piece=piece, scale=self.scale(module))
        if part == "tokens":
            place, ids = self.place(module, "weight"), self.token_ids(module)
            self.check(module, piece, (len(ids), *place.shape[1:]))
            self.need_full_weight("trained tokens")
            if max(ids, default=0) >= place.shape[0]:
                raise self.error(f"trains token {max(ids)}, and this base has {place.shape[0]}", IF_TOKENS_WERE_ADDED)
            return place.tensor, TrainedRows(adapter=self.label, count=place.shape[0], piece=piece, ids=ids)
        place = self.place(module, part)
        self.check(module, piece, place.shape)
        self.need_full_weight(f"{module:.120}, saved whole,")
        return place.tensor, Replaced(adapter=self.label, first=place.first, piece=piece)

    def place(self, module: str, kind: str) -> Place:
        """Where a module of the adapter is in the base."""
        if (module, kind) not in self.places:
            known = ", ".join(sorted({name.rpartition(".")[2] for name, own in self.places if own == kind}))
            seen = f"the {kind} of {module:.120}"
            has = f"has: {known}" if known else "has none"
            raise self.error(f"changes {seen}, which this base does not have (it {has})", self.own_base)
        return self.places[module, kind]

    def pair(self, module: str, parts: Mapping[str, Piece], *names: str) -> tuple[Piece, ...]:
        """A and B of a module, both there and of the config's rank."""
        for name in names:
            if name not in parts:
                raise self.error(f"{module:.120} has no lora_{name.replace(' ', '_')}, so it is not whole", AGAIN)
        rank, seen = self.ranks.rank(module), parts[names[0]].shape[0]
        if seen != rank:
            raise self.error(f"{module:.120} has rank {seen}, adapter_config.json says {rank} (r, rank_pattern)", AGAIN)
        return tuple(parts[name] for name in names)

    def check(self, module: str, piece: Piece, expected: tuple[int, ...]) -> None:
        """The shape that a tensor must have beside this base."""
        if piece.shape != expected:
            raise self.error(
                f"{piece.name:.120} has shape {list(piece.shape)}, this base needs {list(expected)}",
                IF_TOKENS_WERE_ADDED if module in (HEAD_MODULE, EMBEDDING_MODULE) else self.own_base,
            )

    def compare_base(self, module: str, piece: Piece) -> None:
        """PEFT saves the base's own table beside what changes it: it shows whether this is the same base."""
        place = self.place(module, "weight")
        self.check(module, piece, place.shape)
        count = min(COMPARED_ROWS, place.shape[0])
        theirs, ours = piece.read_rows(0, count).float(), self.tensors[place.tensor].read_rows(0, count).float()
        known = bool(ours.any())  # of a hub's checkpoint only the shapes may be known yet
        if known and not (theirs - ours).abs().max() <= ROUNDING * ours.abs().max():
            raise self.error(f"has the {module} of its base, and this base's is another", self.own_base)

    def scale(self, module: str) -> float:
        """What B @ A is multiplied with."""
        return self.adapter.weight * self.ranks.scale(module)

    def token_ids(self, module: str) -> tuple[int, ...]:
        """The ids whose rows were trained."""
        for end, ids in self.adapter.config.token_ids.items():
            if module == end or module.endswith(f".{end}"):
                return ids
        raise self.error(f"has trained tokens of {module:.120}, and trainable_token_indices does not name them", AGAIN)

    def need_full_weight(self, what: str) -> None:
        """Not every change is a sum that a weight could divide."""
        if self.adapter.weight != 1:
            raise self.error(f"{what} cannot be added in part", f"leave out ={self.adapter.weight:g}")

    @property
    def label(self) -> str:
        """The adapter in messages."""
        return str(self.adapter.folder)

    @property
    def own_base(self) -> str:
        """The step that helps where the base is another one."""
        base = self.adapter.config.base
        return (
            f"give the base that it was trained on, {base!r:.120}" if base else "give the base that it was trained on"
        )

    def error(self, what: str, way_out: str) -> AdapterError:
        """What was seen, and the step that helps."""
        return AdapterError(f"{self.label}: {what}; {way_out}")
