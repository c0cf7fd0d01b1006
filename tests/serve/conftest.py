"""One endpoint for the tests of this folder: base and two LoRAs on two replicas, a full model on one or two."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serve.config import ServeConfig, parse
from tests.serve.client import Client
from tests.serve.engine.plain import make_lora, manifest

#: Quick to follow the load, as far as Serve's own 10 s between reports of it allow.
SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0,
    "downscale_delay_s": 0,
    "look_back_period_s": 11,
}


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> dict[str, Path]:
    """`round` and `wordy` are LoRAs (the second has text encoders too), `whole` is a full model."""
    folder = tmp_path_factory.mktemp("artifacts")
    for seed, kind in enumerate(("round", "wordy")):
        make_lora(folder / kind, kind, seed)
    shutil.copytree(embedded, folder / "whole")
    weights = folder / "whole" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.weight"] *= 1.1
    save_file(tensors, weights, {"format": "pt"})
    manifest(folder / "whole", kind="full")
    return {name: folder / name for name in ("round", "wordy", "whole")}


@pytest.fixture(scope="session")
def config(artifacts: dict[str, Path]) -> ServeConfig:
    """A little of everything, and queues short enough to be full; one variant that cannot be served."""
    return parse(
        {
            "variants": {
                "base": None,
                **{name: str(path) for name, path in artifacts.items()},
                "whole": {"artifact": str(artifacts["whole"]), "deployment_config": {"autoscaling_config": SCALING}},
                "lost": "/nowhere",
            },
            "port": 0,
            "engine": {"max_batch": 4, "max_cached_adapters": 2},
            "deployment_config": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}},
            "limits": {"n": 4, "adapters": 2},
            "queue": {"images": 4},
        }
    )


@pytest.fixture(scope="package")
def url(ray_cluster: None, config: ServeConfig) -> Iterator[str]:
    """The endpoint's address."""
    from serve.local import running

    with running(config, timeout_s=300) as address:
        yield address


@pytest.fixture
def client(url: str) -> Client:
    """Requests to the endpoint."""
    return Client(url)
