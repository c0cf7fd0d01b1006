"""Common claims about LoRA and DreamBooth: where each is from, what was measured here, what arithmetic gives for SDXL.

A verdict is of what is shown: measured numbers first, arithmetic where only that can be had. `open` means that neither
says it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdxl_ray.display.units import bytes_text, count_text, seconds_text
from sdxl_ray.report.arithmetic import GPU, RANKS, Sdxl
from sdxl_ray.report.document import Cell, DataTable, ReportSection, absent, joined, score_text
from sdxl_ray.report.facts import BOTH, DREAMBOOTH, LORA, NO_PRIOR, ArmFacts, ComparisonFacts, main_metric
from sdxl_ray.report.metrics import Absent, Gain, metric_of
from sdxl_ray.report.sections.choice import NOTICEABLE
from sdxl_ray.report.sections.inference import seconds_per_image

ClaimVerdict = Literal["holds", "holds in part", "does not hold", "open"]
_TONES: dict[str, Literal["good", "bad", "muted", ""]] = {
    "holds": "good",
    "holds in part": "",
    "does not hold": "bad",
    "open": "muted",
}


@dataclass(frozen=True)
class Claim:
    """measured: here, on this base; real: by arithmetic for SDXL 1.0 at 1024 px; origin: paper or page it is from."""

    claim: str
    measured: str | Absent
    real: str
    verdict: ClaimVerdict
    origin: str = ""


def section(facts: ComparisonFacts) -> ReportSection:
    found = claims(facts, Sdxl())
    rows = tuple(
        (
            Cell(claim.claim, tone="strong", small=claim.origin),
            absent(claim.measured.reason) if isinstance(claim.measured, Absent) else Cell(claim.measured),
            Cell(claim.real),
            Cell(claim.verdict, tone=_TONES[claim.verdict]),
        )
        for claim in found
    )
    table = DataTable("Each claim with its origin.", ("claim", "measured here", "the real SDXL", "verdict"), rows, True)
    lead = (
        "What papers and guides say of the two methods, what this comparison measured, and what arithmetic gives for "
        "SDXL 1.0. A verdict is of what was measured, else of the arithmetic; open: neither decides it."
    )
    return ReportSection(
        "claims", "Common claims about LoRA and DreamBooth, measured here", lead, (table, _grid(Sdxl()))
    )


def claims(facts: ComparisonFacts, sdxl: Sdxl) -> list[Claim]:
    """Every claim, with its verdict and where it is from."""
    return [replace(rule(facts, sdxl), origin=origin) for rule, origin in _RULES.items()]


def _parameters(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    ratios = [(rank, sdxl.unet / sdxl.trained(rank)) for rank in RANKS]
    targets, nearest = sdxl.nearest_to(10_000)
    real = (
        f"{joined([f'rank {rank}: {ratio:,.0f}x' for rank, ratio in ratios])} (attention); "
        f"nearest to the claim: rank 1 on {targets} alone, {nearest:,.0f}x. The figure is GPT-3's."
    )
    return Claim(
        "10,000 times fewer trainable parameters", _ratio(facts, "trainable", count_text), real, "does not hold"
    )


def _memory(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    ratios = [row.ratio for row in sdxl.memory()]
    real = f"{min(ratios):.1f} to {max(ratios):.1f} times on one {GPU}, by optimizer, batch and checkpointing (below)"
    verdict: ClaimVerdict = "holds" if min(ratios) >= 3 else "holds in part" if max(ratios) >= 3 else "does not hold"
    return Claim("3 times less GPU memory", _ratio(facts, "peak_bytes", bytes_text), real, verdict)


def _file(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    sizes = [(rank, sdxl.file_bytes(rank) / 1e6) for rank in RANKS]
    real = joined([f"rank {rank}: {size:.1f} MB" for rank, size in sizes]) + " in fp16"
    inside = [rank for rank, size in sizes if size <= 6.05]
    verdict: ClaimVerdict = "holds in part" if 0 < len(inside) < len(sizes) else "holds" if inside else "does not hold"
    return Claim("Files of 1 to 6 MB", _of(facts, (LORA, BOTH), "artifact_bytes", bytes_text), real, verdict)


def _standalone(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    unet, whole = sdxl.unet_bytes / 1e9, sdxl.pipeline_bytes / 1e9
    real = f"the fp16 UNet is {unet:.2f} GB; what stands alone, the whole fp16 pipeline, {whole:.2f} GB"
    measured = _of(facts, (DREAMBOOTH, NO_PRIOR), "artifact_bytes", bytes_text)
    verdict: ClaimVerdict = (
        "holds" if abs(whole - 5) < 0.5 else "holds in part" if abs(unet - 5) < 0.5 else "does not hold"
    )
    return Claim("A standalone DreamBooth checkpoint of about 5 GB", measured, real, verdict)


def _photos(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    few = [arm for arm in facts.arms if isinstance(arm.photos, int) and arm.photos <= 5]
    name, parts, sides = main_metric(facts), [], []
    metric = metric_of(name)
    for arm in few:
        gain = facts.gain(arm.name, name)
        if isinstance(gain, Gain):
            parts.append(f"{arm.name}, {arm.photos} photos: {metric.short} {score_text(gain, signed=True)} to the base")
            if isinstance(arm.photos, int) and arm.photos >= 3:  # fewer are reported, but no claim is made of them
                sides.append(gain.direction(metric.better))
    claim, real = "3 to 5 photos suffice", "not a matter of arithmetic"
    if not sides:
        gains = [facts.gain(arm.name, name) for arm in few]
        why = next((gain.reason for gain in gains if isinstance(gain, Absent)), "no arm with 3 to 5 photos was scored")
        return Claim(claim, Absent(why), real, "open")
    return Claim(claim, "; ".join(parts), real, _by_sides(sides))


def _few_steps(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    real = (
        f"4 steps without guidance are {sdxl.distilled_ratio():.0f} times less arithmetic an image than 30 with it; "
        "whether quality survives needs a distilled LoRA"
    )
    drawn = {model: seconds_per_image(facts, model) for model in [arm.name for arm in facts.arms]}
    known = [f"{model} {seconds_text(seconds)}" for model, seconds in drawn.items() if seconds]
    now = f"; an image of {facts.card.settings.steps} steps takes {', '.join(known)}" if known else ""
    claim, fewer = "High quality in fewer steps, in real time", _fewer(facts)
    if not fewer:
        return Claim(claim, Absent(f"no arm is distilled{now}"), real, "open")
    return Claim(claim, f"without distillation, {'; '.join(fewer)}{now}", real, "open")


def _fewer(facts: ComparisonFacts) -> list[str]:
    """What each arm keeps of its subject fidelity at the fewest steps that were drawn."""
    metric, said = metric_of(main_metric(facts)), []
    for arm in facts.arms:
        points = sorted(
            (n, s) for (m, name, n), s in facts.scores.drawn.items() if (m, name) == (arm.name, metric.name)
        )
        if len(points) > 1:
            (few, there), (many, most) = points[0], points[-1]
            said.append(f"{arm.name}: {metric.short} {there.value:.3f} at {few} steps, {most.value:.3f} at {many}")
    return said


def _speed(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    real = (
        f"{sdxl.arithmetic_ratio():.2f} times less arithmetic a sample; a step at batch 1 with AdamW at best "
        f"{sdxl.step_ratio():.2f} times shorter, as no optimizer passes over every weight"
    )
    lora, full = facts.of_method(LORA), facts.of_method(DREAMBOOTH) or facts.of_method(NO_PRIOR)
    claim = "LoRA trains faster"
    if lora is None or full is None:
        return Claim(claim, Absent("it takes a LoRA arm and a DreamBooth arm"), real, "holds")
    fast, slow = lora.cost.samples_per_s, full.cost.samples_per_s
    if isinstance(fast, Absent) or isinstance(slow, Absent):
        return Claim(claim, fast if isinstance(fast, Absent) else Absent(_reason(slow)), real, "holds")
    text = f"{fast / slow:.2f} times the samples/s ({lora.name} {fast:.1f}, {full.name} {slow:.1f})"
    times = (lora.cost.train_s, full.cost.train_s)
    if not isinstance(times[0], Absent) and not isinstance(times[1], Absent):
        text += f"; all steps {seconds_text(times[0])} against {seconds_text(times[1])}"
    if max(fast, slow) < NOTICEABLE * min(fast, slow):
        text += f"; under {NOTICEABLE} times is even"
    return Claim(claim, text, real, "holds" if fast >= NOTICEABLE * slow else "does not hold")


def _forgets(facts: ComparisonFacts, sdxl: Sdxl) -> Claim:
    parts, sides = [], []
    for method in (DREAMBOOTH, NO_PRIOR):
        arm = facts.of_method(method)
        for name in ("pres", "class_kid", "prior_loss", "div") if arm is not None else ():
            assert arm is not None
            gain, metric = facts.gain(arm.name, name), metric_of(name)
            if isinstance(gain, Gain):
                parts.append(f"{arm.name} {metric.short} {score_text(gain, metric.digits, signed=True)}")
                sides.append(gain.direction(metric.better))
    parts += _prior_effect(facts)
    real = "not a matter of arithmetic; published: PRES .493 with the prior loss, .664 without (arXiv 2208.12242)"
    if not sides:
        return Claim("DreamBooth forgets", Absent("no DreamBooth arm has scores of preservation"), real, "open")
    forgot = sides.count("worse")
    verdict: ClaimVerdict = "holds" if forgot == len(sides) else "holds in part" if forgot else "does not hold"
    if not forgot and "unknown" in sides:
        verdict = "open"
    return Claim("DreamBooth forgets", f"against the base: {'; '.join(parts)}", real, verdict)


def _prior_effect(facts: ComparisonFacts) -> list[str]:
    with_prior, without = facts.of_method(DREAMBOOTH), facts.of_method(NO_PRIOR)
    if with_prior is None or without is None:
        return []
    lead = facts.lead(without.name, with_prior.name, "pres")
    if isinstance(lead, Absent):
        return []
    return [f"leaving out the prior loss moves PRES by {score_text(lead, signed=True)}"]


_LORA_PAPER = "LoRA paper, of GPT-3 175B (arXiv 2106.09685, abstract)"
_LORA_DIFFUSION = "github.com/cloneofsimo/lora, of Stable Diffusion 1.5"
#: Rule -> where its claim is from.
_RULES: dict[Callable[[ComparisonFacts, Sdxl], Claim], str] = {
    _parameters: _LORA_PAPER,
    _memory: _LORA_PAPER,
    _file: _LORA_DIFFUSION,
    _standalone: "guides to Stable Diffusion (2 to 7 GB); no single source",
    _photos: "DreamBooth paper (arXiv 2208.12242, abstract)",
    _few_steps: "LCM-LoRA report (arXiv 2311.05556), of distilled LoRAs",
    _speed: f"{_LORA_DIFFUSION}: twice as fast as DreamBooth",
    _forgets: "DreamBooth paper, language drift (arXiv 2208.12242, section 3.2)",
}


def _by_sides(sides: Sequence[str]) -> ClaimVerdict:
    if all(side == "better" for side in sides):
        return "holds"
    if any(side == "better" for side in sides):
        return "holds in part"
    return "open" if "unknown" in sides else "does not hold"


def _ratio(facts: ComparisonFacts, attribute: str, write: Callable[[Any], str]) -> str | Absent:
    """Full tuning over each LoRA arm."""
    full = facts.of_method(DREAMBOOTH) or facts.of_method(NO_PRIOR)
    loras = [arm for arm in facts.arms if arm.method in (LORA, BOTH)]
    if full is None or not loras:
        return Absent("it takes a LoRA arm and a DreamBooth arm")
    whole = getattr(full.cost, attribute)
    if isinstance(whole, Absent):
        return whole
    parts = []
    for arm in loras:
        small = getattr(arm.cost, attribute)
        if isinstance(small, Absent):
            return small
        ratio = whole / small
        parts.append(f"{arm.name} {ratio:,.0f}x" if ratio >= 20 else f"{arm.name} {ratio:.2f}x")
        parts[-1] += f" ({write(small)})"
    return f"{', '.join(parts)} less than {full.name} ({write(whole)})"


def _of(facts: ComparisonFacts, methods: tuple[str, ...], attribute: str, write: Callable[[Any], str]) -> str | Absent:
    arms: list[ArmFacts] = [arm for arm in facts.arms if arm.method in methods]
    values = [(arm.name, getattr(arm.cost, attribute)) for arm in arms]
    known = [f"{name} {write(value)}" for name, value in values if not isinstance(value, Absent)]
    if known:
        return ", ".join(known)
    return Absent(_reason(values[0][1]) if values else f"no arm is {' or '.join(methods)}")


def _reason(value: object) -> str:
    return value.reason if isinstance(value, Absent) else ""


def _grid(sdxl: Sdxl) -> DataTable:
    rows = tuple(
        (
            Cell(row.optimizer, tone="strong"),
            Cell(str(row.batch), number=True),
            Cell("yes" if row.checkpointing else "no"),
            Cell(bytes_text(row.lora_bytes), number=True),
            Cell(bytes_text(row.full_bytes), number=True),
            Cell(f"{row.ratio:.1f}x", number=True),
        )
        for row in sdxl.memory()
    )
    titles = ("optimizer", "batch", "checkpointing", "LoRA, rank 16", "every weight", "times")
    return DataTable(f"Memory of the real SDXL on one {GPU} at 1024 px, as sdxl-ray plan counts it.", titles, rows)
