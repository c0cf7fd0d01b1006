"""The report of an extraction, from rows alone: what the smallest sufficient rank is, and what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdxl_ray.report.extraction import ExtractionFacts, compose, sizes_text, verdict, write

Row = dict[str, Any]


def _extraction(rank: int, part: str = "all") -> Row:
    return {
        "name": f"rank-{rank}", "part": part, "rank": rank, "energy": None, "lowest_rank": rank, "highest_rank": rank,
        "layers": 9, "parameters": 100 * rank, "squared": 4.0, "predicted": 1 / rank, "residual": 1 / rank,
        "diffusers_bytes": 1000 * rank, "kohya_bytes": 1100 * rank, "dtype": "float16", "artifact": "",
    }  # fmt: skip


def _score(model: str, value: float, metric: str = "dino_i") -> Row:
    encoder = "tiny-clip" if metric == "clip_t" else "tiny-identity"
    return {"model": model, "metric": metric, "value": value, "low": value - 0.1, "high": value + 0.1, "n": 8,
            "encoder": encoder}  # fmt: skip


def _facts(full: float, **ranks: float) -> ExtractionFacts:
    """base 0.2, `full`, and ranks by name ("r4=0.5"), as subject fidelity."""
    values = {"base": 0.2, "full": full} | {f"rank-{name[1:]}": value for name, value in ranks.items()}
    scores = [_score(model, value) for model, value in values.items()]
    scores += [_score(model, 0.6, "clip_t") for model in values] + [_score("real", 0.9)]
    rows = [_extraction(int(name[1:]), part) for name in ranks for part in ("unet", "all")]
    lost = [{"kind": "biases", "tensors": 3, "squared": 0.1, "share": 0.025}]
    return ExtractionFacts("dog", rows, lost, scores)


def test_the_smallest_rank_that_keeps_the_gain_is_named() -> None:
    facts = _facts(0.7, r4=0.5, r16=0.68, r64=0.7)
    assert facts.share("rank-4") == pytest.approx(0.6)
    assert verdict(facts).startswith("rank-16 is the smallest that keeps 95%") and "(96.0%)" in verdict(facts)


def test_where_no_rank_keeps_it_the_best_is_named() -> None:
    assert "none keeps 95%" in verdict(_facts(0.7, r4=0.5, r16=0.6))
    assert "the best, rank-16, keeps 80.0%" in verdict(_facts(0.7, r4=0.5, r16=0.6))


def test_a_model_that_learnt_nothing_has_no_share() -> None:
    facts = _facts(0.2, r4=0.2)
    assert facts.share("rank-4") is None
    assert verdict(facts) == ""


def test_the_composite_is_that_of_all_models(tmp_path: Path) -> None:
    facts = _facts(0.7, r4=0.5)
    quality = {model: facts.score(model, "quality") for model in ("base", "rank-4", "full")}
    values = [score.value for score in quality.values() if score is not None]
    assert values == pytest.approx([0, 0.3 / 0.7, 0.5 / 0.7])
    html, plots = write(facts, tmp_path)
    assert html.is_file() and (tmp_path / "report.md").is_file()
    assert {plot.name for plot in plots} == {
        f"{metric}-by-{axis}.png" for metric in ("quality", "dino_i", "clip_t") for axis in ("rank", "size")
    }


def test_without_scores_there_are_sizes_alone() -> None:
    facts = ExtractionFacts("dog", [_extraction(4)], [])
    assert "rank-4" in sizes_text(facts)
    assert [section.id for section in compose(facts).sections] == ["sizes", "scores"]
    assert verdict(facts) == ""
