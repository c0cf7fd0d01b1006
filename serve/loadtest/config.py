"""LoadTest: where the endpoint is, which arms it has, and what is sent to them.

url: http://127.0.0.1:8000
arms:
  base: {model: base}
  tuned: {model: lora}
  mixed: {model: [base, lora]}                      # requests take turns, so one batch holds both
  two: {model: base, adapters: [{name: lora, scale: 0.5}, {name: other}]}
rates: [2, 4]                                       # and whatever else a load profile has
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.load_profile import LoadProfile
from sdxl_ray.config.schema import Section
from sdxl_ray.config.schema_errors import validated

DEFAULT_STEPS, DEFAULT_GUIDANCE = 20, 4.0


class LoadAdapter(Section):
    """One LoRA of a request; the strengths of the block groups multiply its scale."""

    name: str
    scale: float = 1.0
    down: float = 1.0
    mid: float = 1.0
    up: float = 1.0


class LoadArm(Section):
    """What is asked for under one name: a model, with adapters perhaps. Several models take turns."""

    model: Annotated[tuple[str, ...], Field(min_length=1)]
    adapters: tuple[LoadAdapter, ...] = ()


class LoadTest(LoadProfile):
    """A load profile, and the endpoint and the arms that it is for."""

    url: str = Field("http://127.0.0.1:8000", description="of the endpoint, without /v1")
    api_key_env: str | None = Field(None, description="environment variable that holds the API key")
    arms: dict[str, LoadArm] = Field({}, description="name -> model; default: every model of the endpoint")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as http://127.0.0.1:8000")
        return url.rstrip("/").removesuffix("/v1")

    @property
    def mix(self) -> dict[int, float]:
        """Step counts and their weights."""
        return self.steps or {DEFAULT_STEPS: 1.0}

    @property
    def guidance(self) -> float:
        return DEFAULT_GUIDANCE if self.guidance_scale is None else self.guidance_scale

    @property
    def identity(self) -> str:
        """SHA-256 of what decides the rows; the endpoint's address and its key do not."""
        plain = self.model_dump(mode="json", exclude={"url", "api_key_env"})
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def names() -> list[str]:
    """Names of the load tests shipped with the package."""
    return plain_data.shipped(_folder())


def load_config(name_or_path: str, changes: Mapping[str, Any]) -> LoadTest:
    """A shipped load test by name or a YAML file, with dotted settings laid over it. Raises UserError, one line."""
    plain = plain_data.read(name_or_path, _folder(), "load test")
    # Defaults are filled in, so that what the file leaves out can be set; whether it is whole is asked at the end.
    whole = {**LoadTest.model_construct().model_dump(mode="json"), **plain}
    for path, value in changes.items():
        if path.startswith("arms.") and path.count(".") > 1:  # an arm's name is the user's own
            whole["arms"].setdefault(path.split(".")[1], {})
        plain_data.assign(whole, path, value)
    return parse(whole, name_or_path)


def parse(plain: Mapping[str, Any], where: str) -> LoadTest:
    """Plain data as a LoadTest. Raises UserError, one line."""
    return validated(LoadTest, plain, where)


def _folder() -> Traversable:
    return resources.files("serve") / "loadtest"
