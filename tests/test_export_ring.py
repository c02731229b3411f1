"""A KV cache that keeps a sliding window alone, ExecuTorch's ring and the rows that onnxruntime moves: transformers'
logits at every length, in any pieces, after going back, under the loop and in the stock runners."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ci.stock_engines import genai_answers
from devices.transports.llama_main import open_llama_main
from devices.transports.local import LocalHost
from export.artifact import Artifact, Format
from export.job import resolve
from export.pipeline import export_model
from export.request import ExportRequest
from export.to_executorch.sizes import LOGITS_ROWS, RING_SPARE_TOKENS
from runtimes.engines.engine import CheckingEngine, EngineOpener, WindowEngine
from runtimes.engines.executorch_engine import open_executorch
from runtimes.engines.genai_engine import open_genai
from runtimes.engines.onnx_engine import open_onnx
from runtimes.errors import UnsupportedError
from runtimes.loop.loop import TokenLoop
from runtimes.loop.tokens import NewToken, TokenRequest, TokensDone, TokenSource
from runtimes.registry import open_tokens
from runtimes.text.tokenizer import Tokenizer

WINDOW, CONTEXT = 16, 700
RING = WINDOW + RING_SPARE_TOKENS
KEPT = {"executorch": RING, "onnx": 128}
ENGINES: Mapping[Format, EngineOpener] = {"executorch": open_executorch, "onnx": open_onnx}
NEAR = 1e-4
NEVER = 0  # an id at which no answer stops


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(sliding_window=WINDOW)


@pytest.fixture(scope="module", params=["executorch", "onnx"])
def format(request: pytest.FixtureRequest) -> Format:
    chosen: Format = request.param
    return chosen


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, format: Format) -> Artifact:
    out = tmp_path_factory.mktemp("ring") / "out"
    request = ExportRequest(checkpoint=str(checkpoint), out=out, format=format, scheme="fp32", context_tokens=CONTEXT)
    return export_model(request)


@pytest.fixture(scope="module")
def engine(artifact: Artifact, format: Format) -> Iterator[CheckingEngine]:
    engine = ENGINES[format](artifact, None)
    assert isinstance(engine, CheckingEngine) and isinstance(engine, WindowEngine)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Token ids, and transformers' logits after each of them."""
    import torch
    from transformers import Phi3ForCausalLM

    model = Phi3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    ids = np.random.default_rng(0).integers(3, 500, CONTEXT).tolist()
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0].numpy()


# Within the window; few tokens, the most that are few, and more; the ring and a prompt's usual piece.
@pytest.mark.parametrize("size", [1, 7, WINDOW, RING_SPARE_TOKENS + 1, RING_SPARE_TOKENS + 2, RING, 128, 300, 512])
def test_every_piece_has_transformers_logits(
    engine: CheckingEngine, reference: tuple[list[int], npt.NDArray[np.float32]], size: int
) -> None:
    ids, logits = reference
    for start in range(0, min(CONTEXT, 200 * size), size):
        piece = ids[start : start + size]
        rows = min(LOGITS_ROWS, len(piece))
        end = start + len(piece)
        assert np.abs(engine.forward_rows(piece, start, rows) - logits[end - rows : end]).max() < NEAR


def test_going_back_as_far_as_it_allows(
    engine: WindowEngine, reference: tuple[list[int], npt.NDArray[np.float32]]
) -> None:
    ids, logits = reference
    generator = np.random.default_rng(1)
    start = end = 0
    for _ in range(80):
        if start == CONTEXT:
            start = end = 0
        count = min(int(generator.integers(1, generator.choice([4, 20, 120, 400]))), CONTEXT - start)
        got = engine.forward(ids[start : start + count], start)
        start += count
        assert np.abs(got - logits[start - 1]).max() < NEAR
        end = max(end, start)
        back = max(0, start - int(generator.integers(0, RING_SPARE_TOKENS + 2)))
        if engine.can_resume(back, end):
            start, end = back, end if back else 0


def greedy(source: TokenSource, ids: list[int], count: int, **fields: object) -> tuple[list[int], TokensDone]:
    *tokens, done = source.stream(TokenRequest(ids=ids, max_new_tokens=count, **fields))  # type: ignore[arg-type]
    assert isinstance(done, TokensDone) and done.error is None
    return [token.id for token in tokens if isinstance(token, NewToken)], done


def test_a_session_is_resumed_where_the_cache_still_has_it(engine: CheckingEngine, format: Format) -> None:
    loop, prompt = TokenLoop(engine), list(range(5, 305))
    answer, _ = greedy(loop, prompt, 20, session="s")
    cases = [
        ([*prompt, *answer, 7], 319),  # the last token was never computed
        ([*prompt, *answer[:5], 8], 305),
        *([([*prompt[:258], 8], 258)] if format == "onnx" else []),  # it moved its rows at 242 tokens
        (prompt[:200], 0),  # the cache has forgotten what came before
        ([*prompt[:150], 9], 150),
        ([*prompt[:10], 9], 0),
        ([*prompt[:5], 9], 5),  # the ring had not gone round
    ]
    given = [greedy(loop, ids, 4, session="s") for ids, _ in cases]
    assert [done.usage.reused for _, done in given] == [reused for _, reused in cases]
    assert [tokens for tokens, _ in given] == [greedy(TokenLoop(engine), ids, 4)[0] for ids, _ in cases]


def test_wrong_guesses_are_taken_back(engine: CheckingEngine) -> None:
    """Two layers see no further back than two windows, so what follows the same 40 tokens is the same."""
    before = list(range(5, 45))
    after, _ = greedy(TokenLoop(engine), before, 60)
    misleading = [id if number % 12 else id + 1 for number, id in enumerate(after, start=1)]
    prompt = [*before, *misleading, *before]
    guessed, done = greedy(TokenLoop(engine), prompt, 60, speculate=True)
    assert guessed == greedy(TokenLoop(engine), prompt, 60)[0] == after
    assert (done.usage.proposed or 0) > (done.usage.accepted or 0) > 0


def test_wrong_guesses_are_taken_back_wherever_rows_are_moved(engine: CheckingEngine) -> None:
    """Several hundred tokens, with guesses before each place where ONNX Runtime moves its rows."""
    pattern = [20, 21, 22, 23, 24, 25, 26]
    prompt = [id if number % 9 else 30 + number % 11 for number, id in enumerate(pattern * 30)]
    plain, _ = greedy(TokenLoop(engine), prompt, 450)
    guessed, done = greedy(TokenLoop(engine), prompt, 450, speculate=True)
    assert guessed == plain and (done.usage.proposed or 0) > 0


def test_stock_genai_goes_beyond_the_window(artifact: Artifact, format: Format) -> None:
    if format != "onnx":
        pytest.skip("genai reads ONNX")
    for answer in genai_answers(artifact.folder, ["the lamp is on " * 20, "the lamp is on " * 90], 60, stop=NEVER):
        engine = open_onnx(artifact, None)
        ours, _ = greedy(TokenLoop(engine), list(answer.prompt), 60)
        engine.close()
        assert answer.tokens == ours and len(answer.prompt) + 60 > WINDOW


def test_genai_as_an_engine_resumes_where_it_can(artifact: Artifact, format: Format) -> None:
    if format != "onnx":
        pytest.skip("genai reads ONNX")
    theirs, ours = TokenLoop(open_genai(artifact, None)), TokenLoop(open_onnx(artifact, None))
    prompt = list(range(5, 305))
    # At most 128 tokens are cached after 109 and 20 more, of which the last is not computed.
    cases = [(prompt, 0), ([*prompt, 7], 0), (prompt[:109], 0), ([*prompt[:90], 9], 90), ([*prompt, *prompt], 90)]
    for ids, reused in cases:
        (one, done), (other, _) = (greedy(loop, ids, 20, session="s") for loop in (theirs, ours))
        assert one == other and done.usage.reused == reused
    theirs.close()
    ours.close()


def test_a_saved_session_goes_on(artifact: Artifact, format: Format, tmp_path: Path) -> None:
    loop, prompt = TokenLoop(ENGINES[format](artifact, None)), list(range(5, 305))
    answer, _ = greedy(loop, prompt, 20, session="s")
    if format == "executorch":
        with pytest.raises(UnsupportedError, match="keeps its KV cache to itself"):
            loop.save_session("s", tmp_path / "s.npz", "digest")
        return
    assert loop.save_session("s", tmp_path / "s.npz", "digest") == 319
    expected, _ = greedy(loop, [*prompt, *answer, 7], 30, session="s")
    loop.forget()
    assert loop.load_session("s", tmp_path / "s.npz", "digest") == 319
    got, done = greedy(loop, [*prompt, *answer, 7], 30, session="s")
    assert got == expected and done.usage.reused == 319
    loop.load_session("s", tmp_path / "s.npz", "digest")
    _, done = greedy(loop, prompt[:100], 4, session="s")  # the file does not have its first rows any more
    assert done.usage.reused == 0
    loop.close()


def test_the_stock_runner_goes_beyond_the_window(artifact: Artifact, format: Format, llama_main: Path) -> None:
    if format != "executorch":
        pytest.skip("llama_main runs .pte programs")
    import tokenizers

    decode = tokenizers.Tokenizer.from_file(str(artifact.folder / "tokenizer.json")).decode
    source = open_llama_main(LocalHost(), [str(llama_main)], artifact, str(artifact.folder), 1, 60.0)
    here, compared = open_tokens(artifact), 0
    for number in range(40):
        ids = Tokenizer(artifact.folder).encode_prompt(f"{'the lamp is on ' * 30}{number}")
        ours, _ = greedy(here, ids, 6)
        if any("\ufffd" in decode([id]) for id in ours):  # the runner's Python door takes whole characters only
            continue
        assert greedy(source, ids, 6, stop_ids=artifact.manifest.tokens.stop)[0] == ours
        compared += 1
        if compared == 2:
            break
    here.close()
    assert compared == 2


def test_the_plan_counts_what_is_kept(artifact: Artifact, format: Format) -> None:
    memory, kept = artifact.manifest.memory, KEPT[format]
    assert memory.kept_tokens == kept
    assert memory.needed_bytes(CONTEXT) == memory.needed_bytes(kept) > memory.needed_bytes(WINDOW)


def test_no_ring_for_a_few_tokens_that_nobody_asked_for() -> None:
    """Android's context is 2,048 tokens, and the tiny model's window 2,047, as Phi-3-mini's."""
    for format, asked, ring in (("executorch", None, None), ("executorch", 2048, 2048), ("onnx", None, None)):
        job = resolve(
            ExportRequest(checkpoint="tiny", out=Path("out"), target="android", format=format, context_tokens=asked)
        )
        expected = 2047 if (format, asked) == ("executorch", None) else 2048
        assert (job.context_tokens, job.ring_tokens) == (expected, ring)


def test_stock_genai_computes_a_phi3_anew_after_4096_tokens(
    random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Which it cannot in a cache of the window, so that such an artifact keeps the whole context."""
    checkpoint = random_checkpoint(sliding_window=WINDOW, max_position_embeddings=4200)
    request = ExportRequest(
        checkpoint=str(checkpoint), out=tmp_path / "out", format="onnx", scheme="fp32", context_tokens=4200
    )
    artifact = export_model(request)
    (answer,) = genai_answers(artifact.folder, ["lamp " * 4080], 40, stop=NEVER)
    assert 4097 - 40 < len(answer.prompt) < 4097 and len(answer.tokens) == 40
