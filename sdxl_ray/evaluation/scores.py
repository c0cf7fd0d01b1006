"""The scores, as terms over prompts, seeds and photos: pure arithmetic on encoders' vectors.

Every function takes unit rows and gives `Terms`, or None where there is too little to score. The names of arrays carry
their shapes: P prompts, S seeds, N images, R photos, L patches, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sdxl_ray.metrics.bootstrap import Terms

Rows = npt.NDArray[Any]

#: Fewer photos say more about themselves than about the subject.
LEAST_PHOTOS = 2
#: Metric -> whether more is better. `pres` is a leak, `class_kid` and `prior_loss` are distances from the base.
METRICS: dict[str, bool] = {
    "dino_i": True,
    "clip_i": True,
    "clip_t": True,
    "pres": False,
    "class_kid": False,
    "prior_loss": False,
    "div": True,
}


def fidelity(images_PSD: Rows, photos_RD: Rows) -> Terms | None:
    """Subject fidelity (DINO-I, CLIP-I): cosine of every image to every held-out photo (arXiv 2208.12242)."""
    if len(photos_RD) < LEAST_PHOTOS:
        return None
    cosines_PSR = _fp64(images_PSD) @ _fp64(photos_RD).T
    return Terms(cosines_PSR, ("prompt", "seed", "photo"), _count(images_PSD))


def alignment(images_PSD: Rows, texts_PD: Rows) -> Terms:
    """Prompt fidelity (CLIP-T): cosine of every image to its own prompt."""
    cosines_PS = np.einsum("psd,pd->ps", _fp64(images_PSD), _fp64(texts_PD))
    return Terms(cosines_PS, ("prompt", "seed"), _count(images_PSD))


def named(photos_RD: Rows, texts_PD: Rows) -> Terms | None:
    """Real photos against the plain words for their class, which a subject that looks unlike its class cannot fit.

    So much prompt fidelity has to be lost for an image to be of the subject at all.
    """
    if len(photos_RD) < LEAST_PHOTOS:
        return None
    cosines_RP = _fp64(photos_RD) @ _fp64(texts_PD).T
    return Terms(cosines_RP.mean(axis=1), ("photo",), len(photos_RD))


def leak(images_ND: Rows, photos_RD: Rows) -> Terms | None:
    """PRES: cosine of the images of the plain class to the subject's photos; lower means less leaked."""
    if len(photos_RD) < LEAST_PHOTOS:
        return None
    return Terms(_fp64(images_ND) @ _fp64(photos_RD).T, ("picture", "photo"), len(images_ND))


def among(photos_RD: Rows) -> Terms | None:
    """Real photos against each other: what fidelity would be if the images were photos."""
    if len(photos_RD) < LEAST_PHOTOS:
        return None
    cosines_RR = _fp64(photos_RD) @ _fp64(photos_RD).T
    return Terms(_without_self(cosines_RR), ("photo", "photo"), len(photos_RD))


def between(others_ND: Rows, photos_RD: Rows) -> Terms | None:
    """Another subject's photos against these: what fidelity is for the class alone."""
    if min(len(photos_RD), len(others_ND)) < LEAST_PHOTOS:
        return None
    return Terms(_fp64(others_ND) @ _fp64(photos_RD).T, ("other", "photo"), len(others_ND))


def class_distance(images_ND: Rows, base_ND: Rows) -> Terms | None:
    """Kernel distance (KID's MMD, arXiv 1801.01401) between a model's class images and the base's, seed by seed.

    The unbiased estimate for pairs (Gretton et al., JMLR 13, 2012, eq. 4) with the kernel (x.y + 1)^3 of unit rows:
    exactly 0 for the base itself, and below 0 by chance. torchmetrics' KID is for two independent sets (it counts a
    image against its own twin), draws subsets from the ambient generator and has no interval over images.
    """
    if len(images_ND) != len(base_ND):
        raise ValueError(f"{len(images_ND)} and {len(base_ND)} images are no pairs")
    if len(images_ND) < 2:
        return None
    x_ND, y_ND = _fp64(images_ND), _fp64(base_ND)
    cross_NN = _kernel(x_ND, y_ND)
    terms_NN = _kernel(x_ND, x_ND) + _kernel(y_ND, y_ND) - cross_NN - cross_NN.T
    return Terms(_without_self(terms_NN), ("picture", "picture"), len(x_ND))


def diversity(patches_PSLD: Rows) -> Terms | None:
    """DIV: 1 - cosine of patch features at the same place, between images of one prompt that differ in their seed.

    In the place of LPIPS, which needs torchvision: like it, features of a network compared place by place. 0 for one
    image repeated. LPIPS weights its layers by human judgement, so the numbers are not LPIPS's.
    """
    prompts, seeds = patches_PSLD.shape[:2]
    if seeds < 2:
        return None
    rows_PSLD = _fp64(patches_PSLD)
    rows_PSLD = rows_PSLD / np.maximum(np.linalg.norm(rows_PSLD, axis=-1, keepdims=True), 1e-12)
    flat_PSK = rows_PSLD.reshape(prompts, seeds, -1)
    distance_PSS = 1 - flat_PSK @ flat_PSK.transpose(0, 2, 1) / patches_PSLD.shape[2]
    return Terms(_without_self(distance_PSS), ("prompt", "seed", "seed"), prompts * seeds)


def denoising(loss_N: Rows) -> Terms:
    """Prior loss: the denoising loss of each class image at fixed noise and timesteps."""
    return Terms(_fp64(loss_N), ("picture",), len(loss_N))


def _kernel(x_ND: Rows, y_ND: Rows) -> Rows:
    kernel: Rows = (x_ND @ y_ND.T + 1) ** 3
    return kernel


def _without_self(square: Rows) -> Rows:
    """The same with NaN on the diagonal of the last two axes."""
    square = square.copy()
    index = np.arange(square.shape[-1])
    square[..., index, index] = np.nan
    return square


def _fp64(rows: Rows) -> npt.NDArray[np.float64]:
    return np.asarray(rows, np.float64)


def _count(images_PSD: Rows) -> int:
    return int(images_PSD.shape[0] * images_PSD.shape[1])
