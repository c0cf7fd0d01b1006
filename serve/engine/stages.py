"""The line that every image goes through: text, denoising, decoding, each on a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sdxl_ray.errors import RunError, UserError
from sdxl_ray.io.artifact import Artifact
from sdxl_ray.models.base_model import vae_fix
from sdxl_ray.models.pipeline import decode
from serve.engine.adapter import AdapterStrength
from serve.engine.batch import RunningImage
from serve.engine.denoise_loop import DenoiseLoop
from serve.engine.image_job import RequestJob
from serve.engine.multi_lora import LoraLayers
from serve.engine.request import EngineFault, NotDrawable
from serve.engine.schedulers import ImageScheduler, make_scheduler
from serve.engine.settings import EngineSettings
from serve.engine.stage_thread import Stage
from serve.engine.text import TextEncoder
from serve.engine.warmup import compile_blocks


class Stages:
    """Owns the pipeline's models and the threads that run them."""

    def __init__(self, pipe: Any, settings: EngineSettings, adapters: Collection[Artifact]) -> None:
        """adapters: those whose layers are compiled for. Blocks until the line is ready, which may take minutes."""
        self._pipe, self._width = pipe, settings.width
        self._device = pipe.unet.conv_in.weight.device
        own = pipe.default_sample_size * pipe.vae_scale_factor
        self.sizes: tuple[tuple[int, int], ...] = settings.sizes or ((own, own),)
        lora = LoraLayers(pipe.unet, "unet", uniform=settings.compiled)
        encoder = TextEncoder(pipe, settings.cached_prompts)
        scale = pipe.vae_scale_factor
        latent_sizes = [(height // scale, width // scale) for height, width in self.sizes]
        work = partial(compile_blocks, pipe, lora, adapters, latent_sizes, settings.max_batch)
        self.denoiser = DenoiseLoop(
            pipe.unet,
            lora,
            max_batch=settings.max_batch,
            prepare=work if settings.compiled else lambda: None,
            finish=self._finish,
            preview=self._preview,
        )
        self._text = Stage[RequestJob](
            "text", partial(self._encode, encoder), partial(_end_all, "text encoding"), most=settings.max_batch
        )
        # One at a time: a finished image should not wait for another's decoding, and a batch gains no speed.
        self._decoding = Stage[RunningImage](
            "decode",
            self._decode,
            lambda running_images, error: _end_all("decoding", [running.job for running in running_images], error),
            most=1,
        )
        self.denoiser.ready.wait()
        if self.denoiser.broken is not None:
            self.stop()
            raise RunError(f"the engine cannot compile: {self.denoiser.broken}") from self.denoiser.broken

    def put(self, job: RequestJob) -> None:
        """From any thread: start a job; it ends by itself."""
        self._text.put(job)

    def tidy(self) -> None:
        """From any thread: give back the memory of adapters that are gone."""
        self.denoiser.tidy()

    def check(self) -> None:
        """Raise EngineFault when a thread has ended or the device computes no more; waits for a step at most."""
        for name, alive in (
            ("text", self._text.alive), ("denoising", self.denoiser.alive), ("decoding", self._decoding.alive),
        ):  # fmt: skip
            if not alive:
                raise EngineFault(f"the {name} thread has ended")
        probe(self._device)

    def stop(self) -> None:
        """End the threads, front to back; jobs that nobody abandoned are finished first."""
        self._text.stop()
        self.denoiser.stop()
        self._decoding.stop()

    def _encode(self, encoder: TextEncoder, jobs: Sequence[RequestJob]) -> None:
        begun = time.monotonic()
        wanted = [job for job in jobs if not job.let_go()]
        running_images = []
        for job, (hidden_RLC, pooled_RP) in zip(wanted, encoder.conditioning(wanted) if wanted else (), strict=True):
            try:
                running_images.append(self._running(job, hidden_RLC, pooled_RP))
            except UserError as error:
                job.end(error)
        for running in running_images:
            running.job.truncated = encoder.truncated(running.job)
            running.job.text_s = time.monotonic() - begun
            self.denoiser.put(running)

    def _running(self, job: RequestJob, hidden_RLC: Tensor, pooled_RP: Tensor) -> RunningImage:
        request, pipe = job.request, self._pipe
        generator = torch.Generator("cpu").manual_seed(request.seed)
        edges = (job.height // pipe.vae_scale_factor, job.width // pipe.vae_scale_factor)
        # In fp32 whatever the width: another precision must not mean another image (as in core.pipeline).
        noise_1CHW = torch.randn((1, pipe.unet.config.in_channels, *edges), generator=generator)
        scheduler = make_scheduler(request.scheduler, pipe.scheduler, _overrides(job.strengths, pipe.scheduler))
        sampler = ImageScheduler(scheduler, request.num_inference_steps, generator)
        # Integers up to 2048, which bf16 would round to multiples of 8.
        time_ids_6 = torch.tensor([job.height, job.width, 0, 0, job.height, job.width], dtype=torch.float32)
        return RunningImage(
            job,
            sampler,
            sampler.start(noise_1CHW.to(self._device, self._width)),
            hidden_RLC,
            pooled_RP,
            time_ids_6.to(self._device).expand(hidden_RLC.shape[0], 6),
        )

    def _finish(self, running: RunningImage) -> None:
        running.job.denoise_s = time.monotonic() - running.joined
        running.job.batch_mean = running.companions / running.step
        self._decoding.put(running)

    def _decode(self, running_images: Sequence[RunningImage]) -> None:
        for running in running_images:
            if running.job.let_go():
                continue
            begun = time.monotonic()
            seed = running.job.request.seed
            _require_finite(
                running.latents_1CHW, f"the UNet gave NaN or infinity for seed {seed}: lower guidance_scale"
            )
            image = self._image(running.latents_1CHW, f"the VAE gave NaN or infinity for seed {seed}")
            running.job.decode_s = time.monotonic() - begun
            running.job.end(image)

    def _preview(self, running: RunningImage) -> Callable[[], Image.Image]:
        foreseen_1CHW = running.foreseen_1CHW
        assert foreseen_1CHW is not None
        return lambda: self._image(foreseen_1CHW, "the preview holds NaN or infinity")

    def _image(self, latents_1CHW: Tensor, complaint: str) -> Image.Image:
        images_1CHW = decode(self._pipe.vae, latents_1CHW)
        _require_finite(images_1CHW, f"{complaint}: {vae_fix(self._pipe.vae)}")
        image: Image.Image = self._pipe.image_processor.postprocess(images_1CHW, output_type="pil")[0]
        return image


def probe(device: torch.device) -> None:
    """Compute a little on a device; one that has lost its context fails at everything. Raises EngineFault."""
    try:
        torch.ones(1, device=device).add(1).item()
    except torch.OutOfMemoryError:
        pass  # full, but it answers
    except Exception as error:
        raise EngineFault.of(f"device {device}", error) from error


def _end_all(what: str, jobs: Sequence[RequestJob], error: BaseException) -> None:
    reported = error if isinstance(error, UserError | RunError) else EngineFault.of(what, error)
    for job in jobs:
        job.end(reported)


def _require_finite(numbers: Tensor, complaint: str) -> None:
    if not bool(torch.isfinite(numbers).all()):
        raise RunError(complaint)


def _overrides(strengths: Sequence[AdapterStrength], own: Any) -> dict[str, Any]:
    """What adapters change in the scheduler's config; raises NotDrawable where they need different ones."""
    wanted = {s.adapter.name: {**own.config, **s.adapter.overrides} for s in strengths}
    if len({repr(sorted(config.items(), key=lambda item: item[0])) for config in wanted.values()}) > 1:
        names = ", ".join(sorted(wanted))
        raise NotDrawable("adapters", f"adapters {names} were trained for different predictions: use one of them")
    return dict(strengths[0].adapter.overrides) if strengths else {}
