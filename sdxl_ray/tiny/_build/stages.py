"""The stages of the builder, each a function of the work folder: what it needs, what it leaves there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdxl_ray.cache_folder import cache_root
from sdxl_ray.tiny._build import stage_clip, stage_identity, scene_store, stage_unet, stage_vae
from sdxl_ray.tiny._build.further_designs import further_designs
from sdxl_ray.tiny._build.session import Session
from sdxl_ray.tiny._build.captions import with_article
from sdxl_ray.tiny._build.catalog import CLASSES, FURTHER_SETS
from sdxl_ray.tiny._build.designs import Designs
from sdxl_ray.tiny._build.layout import SEED, configs
from sdxl_ray.tiny._build.places import PLACES
from sdxl_ray.tiny._build.scenes import Scenery
from sdxl_ray.tiny._build.sprites import Sprites

_DECOYS = 8_000
_GENERATED = 200
#: Share of a stage. Trained weights lose what they know to an optimizer that knows nothing yet: a long rise.
_WARMUP = 0.03


@dataclass(frozen=True)
class StageJob:
    """What every stage is told: where it works, on what, for how many minutes, on how many scenes."""

    work: Path
    device: str
    minutes: float
    scenes: int


def scenery(*, further: bool = False) -> Scenery:
    sprites = Sprites(cache_root() / "picture-sets", FURTHER_SETS if further else None)
    return Scenery(Designs(sprites), SEED, further=further_designs(sprites) if further else ())


def make_scenes(job: StageJob) -> None:
    started = time.monotonic()

    def report(share: float) -> None:
        if share and round(share * 1000) % 100 == 0:
            left = (time.monotonic() - started) * (1 - share) / share
            sys.stderr.write(f"scenes {share:4.0%}, {left:.0f} s to go\n")

    drawn = scenery()
    scene_store.make(job.work / "scenes", drawn, job.scenes, report)
    np.save(job.work / "decoys.npy", scene_store.decoy_pixels(drawn, _DECOYS, SEED))


def make_vae(job: StageJob) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(SEED)
    model = started(job, "vae", AutoencoderKL.from_config(configs()["vae"]).to(job.device))
    session = Session(job.work, "vae", job.minutes, model, 1.5e-3, average=0.998, warmup=_WARMUP)
    scenes = _scenes(job)
    stage_vae.train(session, scenes, job.device)
    if session.rank:
        return
    torch.set_num_threads(session.world)  # the others have gone
    session.finish()
    model.requires_grad_(False)
    means, deviations = stage_vae.encode_all(model, scenes, job.device)
    spread = means.float().std((0, 2, 3))
    stage_vae.normalise(model, means)
    centered = (means.float() - means.float().mean((0, 2, 3), keepdim=True)) / spread[:, None, None]
    torch.save((centered.half(), (deviations.float() / spread[:, None, None]).half()), job.work / "latents.pt")
    torch.save(model.state_dict(), job.work / "vae-done.pt")


def make_decoder(job: StageJob) -> None:
    """Sharpens the decoder while the latents stay what the UNet learnt."""
    model = load_vae(job)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(("decoder", "post_quant_conv")))
    session = Session(job.work, "decoder", job.minutes, model, 1e-3, average=0.998)
    stage_vae.train(session, _scenes(job), job.device, decoder_only=True)
    session.finish()
    torch.save(model.state_dict(), job.work / "vae-sharp.pt")


def make_clip(job: StageJob) -> None:
    torch.manual_seed(SEED + 1)
    pair = stage_clip.ClipPair().to(job.device)
    session = Session(job.work, "clip", job.minutes, pair, 1e-3)
    stage_clip.train(session, _scenes(job), _decoys(job), job.device)
    torch.save(pair.state_dict(), job.work / "clip-done.pt")


def make_vision(job: StageJob) -> None:
    """The image encoder again, longer: the texts must stay what the UNet learns from."""
    pair = load_pair(job, "clip-done.pt")
    for name, weight in pair.named_parameters():
        weight.requires_grad_(any(part in name for part in ("vision_model", "visual_projection", "picture", "patches")))
    session = Session(job.work, "vision", job.minutes, pair, 1e-3, average=0.998, warmup=0.1)
    stage_clip.train(session, _scenes(job), _decoys(job), job.device, load_vae(job))
    session.finish()
    if session.rank == 0:
        torch.save(pair.state_dict(), job.work / "vision-done.pt")


def make_unet(job: StageJob) -> None:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(SEED + 2)
    parts = configs()
    model = started(job, "unet", UNet2DConditionModel.from_config(parts["unet"]).to(job.device))
    session = Session(job.work, "unet", job.minutes, model, 1e-3, average=0.999, warmup=_WARMUP)
    latents = torch.load(job.work / "latents.pt", weights_only=True)
    pair = load_pair(job, "clip-done.pt")
    stage_unet.train(session, _scenes(job), latents, pair, EulerDiscreteScheduler.from_config(parts["scheduler"]))
    session.finish()
    if session.rank == 0:
        torch.save(model.state_dict(), job.work / "unet-done.pt")


def make_generated(job: StageJob) -> None:
    """Images of classes by the generator when it was a quarter through: what fools a careless score."""
    pixels = []
    drawer = sketcher(job, torch.load(job.work / "unet-early.pt", weights_only=True)["averages"])
    rng = np.random.default_rng([SEED, 9])
    tokenize = scene_store.tokenizer()
    batch = 50
    for at in range(0, _GENERATED, batch):
        asked = zip(rng.choice(CLASSES, batch), rng.choice(list(PLACES), batch), strict=True)
        texts = [f"a photo of {with_article(str(name))} {PLACES[str(place)].phrases[0]}" for name, place in asked]
        pixels.append(drawer(tokenize(texts), int(at)))
        sys.stderr.write(f"generated {at / _GENERATED:4.0%}\n")
    np.save(job.work / "generated.npy", np.concatenate(pixels))


def make_identity(job: StageJob) -> None:
    torch.manual_seed(SEED + 3)
    drawn = scenery(further=True)
    model = stage_identity.Identity(len(drawn.kinds)).to(job.device)
    started(job, "identity", model.vit)
    session = Session(job.work, "identity", job.minutes, model, 1e-3, average=0.998, warmup=_WARMUP)
    stage_identity.train(session, drawn, np.load(job.work / "generated.npy"), load_vae(job), job.device)
    session.finish()
    if session.rank == 0:
        torch.save(model.vit.state_dict(), job.work / "identity-done.pt")


def started(job: StageJob, name: str, model: Any) -> Any:
    """The model with the weights that its stage goes on from, where there are some."""
    start = job.work / f"{name}-start.pt"
    if start.is_file():
        model.load_state_dict(torch.load(start, weights_only=True))
    return model


def load_vae(job: StageJob, name: str = "vae-done.pt") -> Any:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_config(configs()["vae"]).to(job.device)
    model.load_state_dict(torch.load(job.work / name, weights_only=True))
    return model


def load_pair(job: StageJob, name: str) -> stage_clip.ClipPair:
    pair = stage_clip.ClipPair().to(job.device)
    pair.load_state_dict(torch.load(job.work / name, weights_only=True))
    return pair


def load_identity(job: StageJob) -> Any:
    model = stage_identity.vit()
    model.load_state_dict(torch.load(job.work / "identity-done.pt", weights_only=True))
    return model


def sketcher(job: StageJob, weights: dict[str, Any], steps: int = 6, guidance: float = 4.0) -> Callable[..., Any]:
    """(tokens int16 [B, 32], seed) -> images uint8 [B, 64, 64, 3] by a UNet that is still being trained."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    parts = configs()
    model = UNet2DConditionModel.from_config(parts["unet"]).to(job.device)
    model.load_state_dict(weights)
    autoencoder, pair = load_vae(job), load_pair(job, "clip-done.pt")

    @torch.no_grad()
    def draw(tokens: Any, seed: int) -> Any:
        scheduler = EulerDiscreteScheduler.from_config(parts["scheduler"])
        scheduler.set_timesteps(steps)
        text, pooled = stage_unet.conditioning(pair, torch.from_numpy(tokens.astype(np.int64)).to(job.device))
        text, pooled = (torch.cat([torch.zeros_like(part), part]) for part in (text, pooled))
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]], device=job.device).expand(len(text), -1)
        shape = (len(tokens), 4, 16, 16)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(job.device)
        latents = noise * scheduler.init_noise_sigma
        for level in scheduler.timesteps:
            given = scheduler.scale_model_input(torch.cat([latents] * 2), level)
            added = {"text_embeds": pooled, "time_ids": ids}
            free, led = model(given, level, text, added_cond_kwargs=added, return_dict=False)[0].chunk(2)
            latents = scheduler.step(free + guidance * (led - free), level, latents, return_dict=False)[0]
        shown = autoencoder.decode(latents).sample
        return ((shown.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()

    return draw


def _scenes(job: StageJob) -> scene_store.Store:
    return scene_store.Store.open(job.work / "scenes")


def _decoys(job: StageJob) -> scene_store.SceneArray:
    decoys: scene_store.SceneArray = np.load(job.work / "decoys.npy")
    return decoys


@dataclass(frozen=True)
class Step:
    """A stage: what it runs, the files it needs and leaves, and its share of the builder's minutes (0: as it takes)."""

    run: Callable[[StageJob], None]
    needs: tuple[str, ...]
    leaves: str
    share: float = 0.0


#: In the order in which free cores take them. "unet" has whatever time is left.
STEPS: dict[str, Step] = {
    "scenes": Step(make_scenes, (), "decoys.npy"),
    "vae": Step(make_vae, ("decoys.npy",), "vae-done.pt", 0.15),
    "clip": Step(make_clip, ("decoys.npy",), "clip-done.pt", 0.14),
    "unet": Step(make_unet, ("vae-done.pt", "clip-done.pt"), "unet-done.pt", 0.74),
    "vision": Step(make_vision, ("vae-done.pt", "clip-done.pt"), "vision-done.pt", 0.22),
    "generated": Step(make_generated, ("unet-early.pt",), "generated.npy"),
    "identity": Step(make_identity, ("generated.npy",), "identity-done.pt", 0.28),
    "decoder": Step(make_decoder, ("vae-done.pt",), "vae-sharp.pt", 0.10),
}
