"""The composite falls when anything but subject fidelity is bought with it, and agrees with arithmetic by hand."""

from __future__ import annotations

import pytest

from sdxl_ray.errors import UserError
from sdxl_ray.metrics.quality import NEEDED, Measured, References, composite, learnt, quality, visible_loss

BASE = {"dino_i": 0.2, "clip_t": 0.30, "pres": 0.2, "class_kid": 0.0, "prior_loss": 0.1, "div": 0.5}
REAL = 0.8
REFERENCES = References(BASE, REAL, "clip-vit-b32")
GOOD = {"dino_i": 0.6, "clip_t": 0.28, "pres": 0.3, "class_kid": 1.0, "prior_loss": 0.125, "div": 0.4}


def test_it_agrees_with_arithmetic_by_hand() -> None:
    way, obeyed = 0.4 / 0.6, 1 - 0.02 / 0.12
    kept = ((1 - 0.1 / 0.6) + (1 - 1 / 8) + 0.1 / 0.125 + 0.4 / 0.5) / 4
    assert composite(GOOD, REFERENCES) == pytest.approx(way * obeyed * kept, abs=1e-12)


def test_the_base_is_0_and_real_photos_that_cost_nothing_are_1() -> None:
    assert composite(BASE, REFERENCES) == 0
    assert composite({**BASE, "dino_i": REAL}, REFERENCES) == 1
    assert composite({**BASE, "dino_i": 0.99, "clip_t": 0.4, "pres": 0.0, "div": 0.9}, REFERENCES) == 1
    assert composite({**GOOD, "dino_i": 0.1}, REFERENCES) == 0


@pytest.mark.parametrize(
    "worse",
    [
        {"clip_t": 0.24},
        {"pres": 0.6},
        {"class_kid": 4.0},
        {"prior_loss": 0.3},
        {"div": 0.1},
        {"dino_i": 0.5},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_it_falls_with_every_part(worse: dict[str, float]) -> None:
    assert composite({**GOOD, **worse}, REFERENCES) < composite(GOOD, REFERENCES) - 0.01


def test_more_fidelity_does_not_buy_what_overfitting_loses() -> None:
    more = {**GOOD, "dino_i": 0.8}
    assert composite(more, REFERENCES) > composite(GOOD, REFERENCES)
    assert composite({**more, "clip_t": 0.17}, REFERENCES) == 0  # whatever the prompt says, the same is drawn
    collapsed = {**more, "pres": 0.8, "class_kid": 8.0, "prior_loss": 0.4, "div": 0.02}
    assert composite(collapsed, REFERENCES) < composite(GOOD, REFERENCES) / 3


def test_the_scale_of_prompt_fidelity_is_the_encoders_own() -> None:
    tiny = References(BASE, REAL, "tiny-clip")
    assert composite(GOOD, tiny) > composite(GOOD, REFERENCES)
    assert visible_loss("clip-vit-b32") == pytest.approx(0.05)
    assert visible_loss("tiny-clip") == pytest.approx(0.25)


def test_parts_that_were_not_measured_are_left_out_but_not_the_needed_ones() -> None:
    assert composite({"dino_i": 0.8, "clip_t": 0.3}, REFERENCES) == 1
    for name in NEEDED:
        with pytest.raises(KeyError):
            composite({k: v for k, v in GOOD.items() if k != name}, REFERENCES)
    assert learnt(0.5, 0.4, 0.4) == 0  # photos that are less alike than the base's images teach nothing


def test_the_interval_is_that_of_its_only_uncertain_score() -> None:
    sure: dict[str, Measured] = {name: (value, None, None) for name, value in GOOD.items()}
    assert quality(sure, REFERENCES) == (composite(GOOD, REFERENCES),) * 3
    value, low, high = quality({**sure, "pres": (0.3, 0.25, 0.4)}, REFERENCES)
    assert low is not None and high is not None
    assert low == pytest.approx(composite({**GOOD, "pres": 0.4}, REFERENCES))
    assert high == pytest.approx(composite({**GOOD, "pres": 0.25}, REFERENCES))
    wide = quality({**sure, "pres": (0.3, 0.25, 0.4), "dino_i": (0.6, 0.5, 0.7)}, REFERENCES)
    assert wide[1] is not None and wide[2] is not None
    assert 0 <= wide[1] < low < value < high < wide[2] <= 1


def test_an_encoder_of_unknown_scale_is_an_error_that_names_those_known() -> None:
    with pytest.raises(UserError, match=r"clip='clip-vit-l14': quality needs .*\(clip-vit-b32, tiny-clip\)"):
        composite(GOOD, References(BASE, REAL, "clip-vit-l14"))
