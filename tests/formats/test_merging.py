"""Merging methods on small tensors: sums are exact, the others are PEFT's, and randomness is counted by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.utils import merge_utils

from sdxl_ray.config.merging import Merging, read_blocks
from sdxl_ray.config.schema import Base
from sdxl_ray.config.schema_errors import validated
from sdxl_ray.errors import UserError
from sdxl_ray.formats.adapter import Layer, LowRank
from sdxl_ray.formats.block_strengths import BlockStrengths
from sdxl_ray.formats.layer_names import LayerNames
from sdxl_ray.formats.merging import Weighted, delta, merged_delta, merged_pair, residual
from sdxl_ray.models.base_model_files import component_configs, locate

LAYER = Layer("unet", "mid_block.attentions.0.proj_in")


def _pair(rank: int, alpha: float, seed: int, shape: tuple[int, ...] = (12, 10)) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=rng)
    return LowRank(down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=rng), alpha)


#: Other ranks, alphas and weights, one of them negative.
PAIRS = [Weighted(_pair(2, 4.0, 1), 0.8), Weighted(_pair(3, 3.0, 2), -0.6)]


@pytest.mark.parametrize("shape", [(12, 10), (8, 3, 3, 3)])
@pytest.mark.parametrize("method", ["linear", "concat"])
def test_a_sum_is_exact(method: Any, shape: tuple[int, ...]) -> None:
    pairs = [Weighted(_pair(2, 4.0, 1, shape), 0.8), Weighted(_pair(3, 3.0, 2, shape), -0.6)]
    wanted = 0.8 * delta(pairs[0].pair) - 0.6 * delta(pairs[1].pair)
    merged = merged_pair(LAYER, pairs, Merging(method=method))
    assert merged.pair.rank == 5
    assert merged.lost == 0
    torch.testing.assert_close(delta(merged.pair), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged_delta(LAYER, pairs, Merging(method=method)), wanted, rtol=1e-5, atol=1e-5)


def test_a_sum_of_more_ranks_than_the_matrix_has_stays_exact() -> None:
    pairs = [Weighted(_pair(7, 7.0, seed), 1.0) for seed in range(3)]
    merged = merged_pair(LAYER, pairs, Merging(method="linear"))
    assert merged.pair.rank == 10
    assert merged.lost == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(delta(merged.pair), sum(delta(p.pair) for p in pairs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_lower_rank_is_the_truncated_svd_and_its_residual_is_what_is_missing(rank: int) -> None:
    whole = merged_delta(LAYER, PAIRS, Merging())
    merged = merged_pair(LAYER, PAIRS, Merging(method="svd", rank=rank))
    singular = torch.linalg.svdvals(whole)
    missing = torch.linalg.norm(whole - delta(merged.pair))
    assert merged.pair.rank == rank
    torch.testing.assert_close(missing, torch.linalg.norm(singular[rank:]), rtol=1e-4, atol=1e-4)
    assert residual([merged]) == pytest.approx(float(missing / torch.linalg.norm(whole)), rel=1e-4)
    assert merged_pair(LAYER, PAIRS, Merging(method="svd")).pair.rank == 3


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_pruned_merges_are_those_of_peft_on_the_changes(method: Any) -> None:
    deltas = [delta(change.pair) for change in PAIRS]
    weights = torch.tensor([0.8, -0.6])
    merging = Merging(method=method, density=0.3, seed=5 if "dare" in method else None)
    ours = merged_delta(LAYER, PAIRS, merging)
    # The same random numbers: whatever the seed of a layer is, PEFT's function gives our result from it.
    from sdxl_ray.formats.merging import _seed

    torch.manual_seed(_seed(LAYER, 5))
    theirs = getattr(merge_utils, method)(deltas, weights, density=0.3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    held = merged_pair(LAYER, PAIRS, merging.model_copy(update={"rank": 10}))
    torch.testing.assert_close(delta(held.pair), theirs, rtol=1e-4, atol=1e-4)


def test_what_is_dropped_depends_on_seed_and_layer_alone() -> None:
    first = merged_delta(LAYER, PAIRS, Merging(method="dare_linear", seed=1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, merged_delta(LAYER, PAIRS, Merging(method="dare_linear", seed=1)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, merged_delta(LAYER, PAIRS, Merging(method="dare_linear", seed=2)))
    other = Layer("unet", "mid_block.attentions.0.proj_out")
    assert not torch.equal(first, merged_delta(other, PAIRS, Merging(method="dare_linear", seed=1)))


def test_a_density_of_1_prunes_nothing() -> None:
    wanted = merged_delta(LAYER, PAIRS, Merging())
    for method in ("dare_linear", "magnitude_prune"):
        ours = merged_delta(LAYER, PAIRS, Merging(method=method, density=1.0))
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"method": "tise"}, "method = 'tise': input should be 'linear'"),
        ({"method": "linear", "density": 0.5}, "density 0.5 prunes nothing with method linear"),
        ({"method": "ties", "density": 0.0}, "density = 0.0: input should be greater than 0"),
        ({"method": "ties", "density": float("nan")}, "density = nan"),
        ({"method": "ties", "seed": 3}, "nothing is random in method ties"),
        ({"method": "concat", "rank": 4}, "method concat keeps every rank"),
        ({"rank": 0}, "rank = 0: input should be greater than or equal to 1"),
        ({"rank": 4, "into": "model"}, "rank 4 is of a LoRA"),
        ({"method": "svd", "into": "model"}, "method svd is of a LoRA"),
    ],
)
def test_settings_that_a_method_cannot_have_are_refused(settings: Any, line: str) -> None:
    with pytest.raises(UserError) as refused:
        validated(Merging, settings, "merge")
    assert line in str(refused.value)


@pytest.fixture(scope="module")
def names() -> LayerNames:
    return LayerNames.of(component_configs(locate(Base())))


def test_strengths_go_by_the_longest_name_that_fits(names: LayerNames) -> None:
    layer = Layer("unet", "up_blocks.0.attentions.0.proj_in")
    sgm = ".".join(str(names.sgm.to_sgm(layer.module)).split(".")[:2])
    assert sgm.startswith("output_blocks.")
    for text, strength in (
        ("up=0.2", 0.2),
        ("down=0.2", 1.0),
        ("up=0.2,up_blocks.0=0.5", 0.5),
        ("up_blocks.0.attentions.0=3,up=0.2,up_blocks.0=0.5", 3.0),
        (f"{sgm}=-1", -1.0),
        ("", 1.0),
    ):
        assert BlockStrengths(read_blocks(text)).of(layer, names) == strength, text
    assert BlockStrengths({"text_encoder": 0.0}).of(Layer("text_encoder", "text_model.x"), names) == 0
    assert BlockStrengths({"text_encoder": 0.0}).of(Layer("text_encoder_2", "text_model.x"), names) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("down", "'down': write NAME=STRENGTH"),
        ("down=strong", "'down=strong': write NAME=STRENGTH"),
        ("down=nan", "write NAME=STRENGTH with a finite number"),
        ("down=1,down=2", "has 'down' twice"),
        ("dwon=1", "did you mean 'down'?"),
        ("up_blocks.9=1", "'up_blocks.9' is no block"),
    ],
)
def test_strengths_that_mean_no_block_are_refused(names: LayerNames, text: str, line: str) -> None:
    with pytest.raises(UserError) as refused:
        BlockStrengths(read_blocks(text)).require_known(names.shapes, names)
    assert line in str(refused.value)
