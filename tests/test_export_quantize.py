"""The quantisers' behaviour: what each option promises, on weights and inputs like a model's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from export.errors import CheckpointError
from export.weights.methods.gptq import Feedback, Moments, feedback_of, quantise_rows_with_feedback
from export.weights.methods.quantize import Levels, QuantisedRows, importance_of, quantise_rows
from export.weights.scratch import Scratch
from export.weights.slots import Slot, SlotId

ROWS, COLUMNS = 96, 256


def weights() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * 0.05


def inputs() -> Tensor:
    """[1024, columns]: correlated, of very different sizes, as after a norm."""
    random = torch.Generator().manual_seed(1)
    shared = torch.randn(1024, 32, generator=random) @ torch.randn(32, COLUMNS, generator=random)
    sizes = torch.randn(COLUMNS, generator=random).exp()
    return (shared / 6 + 0.3 * torch.randn(1024, COLUMNS, generator=random)) * sizes


def feedback(x: Tensor) -> Feedback:
    moments = Moments(x.shape[1])
    moments.add(x)
    return feedback_of(moments)


def quantise(
    weight: Tensor,
    *,
    levels: Levels = Levels.POSITIVE,
    bits: int = 4,
    block_size: int = 32,
    importance: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> QuantisedRows:
    return quantise_rows(
        weight, bits=bits, block_size=block_size, scale_dtype=scale_dtype, scratch=Scratch(), levels=levels,
        importance=importance,
    )  # fmt: skip


def with_feedback(weight: Tensor, found: Feedback, levels: Levels = Levels.ASYMMETRIC) -> QuantisedRows:
    return quantise_rows_with_feedback(
        weight, found, bits=4, block_size=32, scale_dtype=torch.float32, scratch=Scratch(), levels=levels
    )


def reference(
    weight: Tensor, divisors: tuple[float, ...], block_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The data-free quantiser in plain torch, float64: codes [rows, columns], scales [rows, blocks]."""
    blocks = weight.view(len(weight), -1, block_size)
    largest = blocks.abs().amax(-1)
    scales = torch.stack([(largest / divisor).to(dtype).float() for divisor in divisors])
    levels = (blocks / scales[..., None]).round().clamp(-8, 7)
    errors = (levels * scales[..., None] - blocks).double().square().sum(-1)
    best = errors.argmin(0)
    chosen = torch.gather(scales, 0, best[None])[0]
    return ((blocks / chosen[..., None]).round().clamp(-8, 7) + 8).to(torch.uint8).view_as(weight), chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_options_it_is_the_data_free_search_of_three_divisors(dtype: torch.dtype) -> None:
    weight = weights()
    rows = quantise(weight, scale_dtype=dtype)
    codes, scales = reference(weight, (7.0, 7.5, 8.0), 32, dtype)
    assert torch.equal(rows.scales.float(), scales)
    assert (rows.codes != codes).float().mean() < 1e-3  # a tie may go the other way: w * (1 / s) against w / s
    assert rows.zero_points is None


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 64, COLUMNS])
@pytest.mark.parametrize("levels", list(Levels))
@pytest.mark.parametrize("weighted", [False, True])
def test_codes_scales_and_zero_points_give_the_dequantised_weights(
    levels: Levels, weighted: bool, block_size: int, bits: int
) -> None:
    weight = weights()
    weight[0, :block_size] = 0
    weight[1, :block_size] = 0.02
    weight[2, :block_size] = -0.02
    importance = importance_of(inputs().square().mean(0)) if weighted else None
    rows = quantise(weight, levels=levels, bits=bits, block_size=block_size, importance=importance)
    zeros = 2 ** (bits - 1) if rows.zero_points is None else rows.zero_points.int()[..., None]
    codes = rows.codes.view(ROWS, -1, block_size).int()
    value = (codes - zeros) * rows.scales[..., None]
    assert torch.equal(value.view_as(weight), rows.dequantised)
    assert bool((rows.scales != 0).all()) and bool(rows.scales.isfinite().all())
    assert int(codes.max()) < 2**bits
    torch.testing.assert_close(
        rows.squared_error.view(ROWS, -1), (value - weight.view_as(value)).square().sum(-1), rtol=1e-4, atol=1e-9
    )
    assert bool((rows.dequantised[0, :block_size] == 0).all())
    assert bool((rows.scales > 0).all()) or levels is not Levels.POSITIVE


@pytest.mark.parametrize("weighted", [False, True])
def test_each_freedom_lowers_the_weighted_error(weighted: bool) -> None:
    weight = weights()
    importance = importance_of(inputs().square().mean(0)) if weighted else None
    count = torch.ones(COLUMNS) if importance is None else importance
    errors = [
        float(((quantise(weight, levels=levels, importance=importance).dequantised - weight).square() * count).sum())
        for levels in (Levels.POSITIVE, Levels.SIGNED, Levels.ASYMMETRIC)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_importance_lowers_the_error_of_the_output_and_feedback_lowers_it_further() -> None:
    weight, x = weights(), inputs()
    found = feedback(x)
    for levels in Levels:
        free = quantise(weight, levels=levels)
        weighted = quantise(weight, levels=levels, importance=found.importance)
        corrected = with_feedback(weight, found, levels)
        error = [float(((r.dequantised - weight) @ x.T).square().mean()) for r in (free, weighted, corrected)]
        assert error[2] < 0.6 * error[1] < 0.6 * error[0]


@pytest.mark.parametrize("step", [1, 7, 16, 50])
def test_chunks_of_rows_do_not_change_the_bytes(step: int) -> None:
    weight = weights()
    found = feedback(inputs())
    whole, searched = with_feedback(weight, found), quantise(weight, importance=found.importance)
    parts = [with_feedback(part.contiguous(), found) for part in torch.split(weight, step)]
    assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
    assert torch.equal(torch.cat([part.scales for part in parts]), whole.scales)
    free = [quantise(part.contiguous(), importance=found.importance) for part in torch.split(weight, step)]
    assert torch.equal(torch.cat([part.codes for part in free]), searched.codes)


def test_inputs_that_are_not_independent_raise_the_damping_and_dead_columns_are_rounded_to_nearest() -> None:
    weight, x = weights(), inputs()
    x[:, 5] = 0
    x[:, 9] = x[:, 8]
    found = feedback(x[:3])
    assert bool(found.upper.isfinite().all())
    place = int((found.order == 5).nonzero())
    assert bool((found.upper[place, place + 1 :] == 0).all())
    assert torch.equal(with_feedback(weight, found).codes, with_feedback(weight, feedback(x[:3])).codes)


def test_without_any_input_feedback_corrects_nothing() -> None:
    weight = weights()
    found = feedback(torch.zeros(4, COLUMNS))
    assert torch.equal(found.upper, torch.eye(COLUMNS))
    assert torch.equal(
        with_feedback(weight, found).scales,
        quantise(weight, levels=Levels.ASYMMETRIC, importance=found.importance).scales,
    )


def test_a_matrix_that_is_not_positive_definite_is_damped_more() -> None:
    moments = Moments(COLUMNS)
    moments.sum = torch.eye(COLUMNS)
    moments.sum[0, 1] = moments.sum[1, 0] = 1.2
    moments.tokens = 1
    found = feedback_of(moments)
    assert found.damping == pytest.approx(1.0)
    assert bool(found.upper.isfinite().all())


def test_upper_is_the_cholesky_factor_of_the_inverse() -> None:
    x = inputs()
    found = feedback(x)
    matrix = (x.T @ x / len(x)).double()
    matrix.diagonal().add_(0.01 * matrix.diagonal().mean())
    inverse = matrix[found.order][:, found.order].inverse()
    upper = torch.linalg.cholesky(inverse, upper=True)
    torch.testing.assert_close(found.upper.double(), upper / upper.diagonal()[:, None], rtol=1e-3, atol=1e-3)


def test_a_scale_too_small_for_float16_becomes_its_least_value() -> None:
    weight = torch.full((1, 32), 1e-9)
    rows = quantise(weight, scale_dtype=torch.float16)
    assert float(rows.scales) == 2.0**-24
    assert bool((rows.dequantised == 0).all())


def test_a_scale_beyond_float16_is_refused() -> None:
    weight = torch.full((1, 32), 1e6)
    with pytest.raises(CheckpointError, match="65504"):
        quantise(weight, scale_dtype=torch.float16)


def test_zero_points_are_packed_two_to_a_byte_the_even_block_low() -> None:
    rows = quantise(weights()[:, :96].contiguous(), levels=Levels.ASYMMETRIC)
    assert rows.zero_points is not None
    packed = rows.pack_zero_points()
    assert packed.shape == (ROWS, 2)
    assert torch.equal(packed[:, 0] & 15, rows.zero_points[:, 0])
    assert torch.equal(packed[:, 0] >> 4, rows.zero_points[:, 1])
    assert torch.equal(packed[:, 1], rows.zero_points[:, 2])


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_packed_stays_when_the_same_thread_quantises_again(bits: int) -> None:
    scratch, slot = Scratch(), Slot(SlotId("any", "codes"), "uint8", (ROWS, COLUMNS * bits // 8), 0, "file", bits=bits)

    def packed(weight: Tensor) -> Tensor:
        rows = quantise_rows(weight, bits=bits, block_size=32, scale_dtype=torch.float32, scratch=scratch)
        return rows.pack(slot)

    first = packed(weights())
    before = first.clone()
    packed(-weights())
    assert torch.equal(first, before)
