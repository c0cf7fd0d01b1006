"""Images: prompts x models at the same seeds, with the real photos beside them."""

from __future__ import annotations

from sdxl_ray.report.document import Gallery, Paragraph, ReportBlock, ReportSection, Tile, TileRows
from sdxl_ray.report.facts import ComparisonFacts, ReportImage
from sdxl_ray.report.scores import FINAL
from sdxl_ray.report.sections import models

#: Shown of all that was drawn; the rest lies in the comparison's folder.
PROMPTS, CLASS_PROMPTS, SEEDS, PHOTOS = 8, 2, 2, 6


def section(facts: ComparisonFacts) -> ReportSection:
    title, lead = "Images", "The same prompts and seeds for every model."
    subjects = tuple(dict.fromkeys(p.subject for p in facts.images if p.purpose == "subject"))
    each = max(2, PROMPTS // max(1, len(subjects)))
    blocks: list[ReportBlock] = [
        gallery for subject in subjects if (gallery := _gallery(facts, subject, each)) is not None
    ]
    if not blocks:
        blocks.append(Paragraph("There are no images: the comparison's records name none.", tone="muted"))
    return ReportSection("pictures", title, lead, tuple(blocks))


def photos(facts: ComparisonFacts, subject: str) -> tuple[Tile, ...]:
    """The held-out photos of a subject."""
    # Every split that was evaluated lists them again.
    found = list({p.relative: p for p in facts.images if p.purpose == "real" and p.subject == subject}.values())
    return tuple(
        Tile(f"real photo {number} of {subject}", p.path, p.relative)
        for number, p in enumerate(found[:PHOTOS], start=1)
    )


def tile(image: ReportImage | None, model: str, prompt: str, seed: int) -> Tile:
    """One image as a tile; None, or a file that is gone, as an empty one."""
    alt = f"{model}: {prompt} (seed {seed})"
    there = image is not None and image.path is not None and image.path.is_file()
    if image is None or not there:
        return Tile(f"{alt}: no image", None, label="no image")
    return Tile(alt, image.path, image.relative)


def _gallery(facts: ComparisonFacts, subject: str, prompts: int) -> Gallery | None:
    drawn = [p for p in facts.images if p.subject == subject and p.purpose != "real" and p.split == FINAL]
    at = {(p.model, p.purpose, p.prompt, p.seed): p for p in drawn}
    shown = [name for name in models.names(facts) if any(p.model == name for p in drawn)]
    if not shown:
        return None
    groups = []
    for purpose, most in (("subject", prompts), ("class", CLASS_PROMPTS)):
        known = [p.prompt for p in drawn if p.purpose == purpose]
        order = [prompt for prompt in facts.card.settings.prompts if prompt in known]
        for prompt in list(dict.fromkeys([*order, *known]))[:most]:
            seeds = sorted({p.seed for p in drawn if p.purpose == purpose and p.prompt == prompt})[:SEEDS]
            rows = tuple(
                (f"seed {seed}", tuple(tile(at.get((m, purpose, prompt, seed)), m, prompt, seed) for m in shown))
                for seed in seeds
            )
            groups.append(TileRows(prompt if purpose == "subject" else f"{prompt} (the plain class)", rows))
    caption = f"{subject}: real photos that no arm was trained on, and what each model draws."
    return Gallery(caption, tuple(shown), tuple(groups), photos(facts, subject))
