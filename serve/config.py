"""ServeConfig: everything that decides what an endpoint serves, as frozen and strict sections.

A configuration is a YAML file (`serve/compare.yaml` or your own). The command line, `serve run serve.app:build`, a
KubeRay RayService and the tests read it through `load` and `override`. No secret is in it: it names where keys are.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.scalars import meaning, text_of
from sdxl_ray.config.schema import Base, BaseSetting, LocalPath, PositiveFloat, PositiveInt, Section
from sdxl_ray.config.schema_errors import validated
from serve.deployment_config import DeploymentConfig, check, merged, new_name, replica_bounds
from serve.engine.settings import EngineSettings
from serve.http.admission import share

#: A variant's name is a model id in URLs, a deployment's name and a metric's tag.
VariantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _artifact(value: Any) -> Any:
    """`dog: runs/dog/artifact` is short for `dog: {artifact: runs/dog/artifact}`; `dog: base` is the base."""
    if meaning(value) is None or value == "base":
        return {}
    return value if isinstance(value, dict | Variant) else {"artifact": text_of(value)}


def _origin(text: str) -> str:
    """An origin as browsers send it: a scheme, a host in lower case, a port where it is not the scheme's own."""
    if text == "*":
        return text
    url = urlsplit(text)
    port, usual = url.port, {"http": 80, "https": 443}.get(url.scheme)
    host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
    origin = f"{url.scheme}://{host}" + (f":{port}" if port not in (None, usual) else "")
    if "*" in text:
        raise ValueError("write each origin in full; '*' alone is every origin")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            "write an origin: scheme and host, for example https://app.example.org or http://localhost:3000"
        )
    if text != origin:
        raise ValueError(f"browsers send this origin as {origin!r}: write that")
    return text


def _public_url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username:
        raise ValueError("write a URL without a query, for example https://example.org or https://example.org/images")
    return text


class Variant(Section):
    """One model id: the base, or what an artifact makes of it."""

    artifact: LocalPath | None = Field(None, description="artifact folder of a run; default: the base itself")
    own_replicas: bool = Field(False, description="a LoRA on replicas of its own, for a comparison of isolated arms")
    fused: bool = Field(False, description="a LoRA added into the weights; it needs own_replicas")
    deployment_config: DeploymentConfig = Field(
        {}, description="Ray Serve's settings of this variant's own replicas, over those of the whole file"
    )

    @model_validator(mode="after")
    def _replicas_of_its_own(self) -> Variant:
        if self.deployment_config and not self.artifact:
            raise ValueError("the base shares its replicas: set the file's own deployment_config instead")
        return self

    @model_validator(mode="after")
    def _fused_alone(self) -> Variant:
        if self.fused and not (self.own_replicas and self.artifact):
            raise ValueError("fused changes the weights: set own_replicas and an artifact too")
        return self


class IngressSection(Section):
    """The HTTP side: processes that check requests, admit or shed them, and wait for images."""

    deployment_config: DeploymentConfig = Field(
        {},
        description="Ray Serve's settings of these processes: num_replicas, ray_actor_options, max_ongoing_requests "
        "(requests that one holds open, default 1000) ...",
    )


class Limits(Section):
    """What one request may ask."""

    n: Annotated[int, Field(ge=1, le=10)] = 10
    steps: Annotated[int, Field(ge=1, le=1000)] = 100
    guidance_scale: Annotated[float, Field(gt=0, le=1000)] = 50.0
    prompt_characters: Annotated[int, Field(ge=1, le=100_000)] = 4096
    min_edge: Annotated[int, Field(ge=8, multiple_of=8)] | None = Field(None, description="default: see `Range`")
    max_edge: Annotated[int, Field(ge=8, multiple_of=8, le=8192)] | None = Field(None, description="see `Range`")
    work: PositiveInt = Field(
        400, description="pixels x steps x n of a request, in denoising steps of one image of the base's own size"
    )
    adapters: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="adapters of one image, a LoRA model among them"
    )
    body_bytes: Annotated[int, Field(ge=1024, le=2**24)] = 65_536


class Queue(Section):
    """What may be under way at once, for each replica of a set of weights; more is shed with 429."""

    images: PositiveInt = Field(32, description="images in the batch or waiting")
    work: PositiveInt = Field(1600, description="their work, in denoising steps of one image of the base's own size")
    timeout_s: PositiveFloat = Field(60.0, description="an image that takes longer is given up with 503")
    retries: Annotated[int, Field(ge=0, le=5)] = Field(1, description="tries again when the replica of an image dies")


class ApiKeys(Section):
    """Where keys are, never the keys. Requests need one when the variable or the file holds any."""

    variable: str = Field("SDXL_RAY_API_KEYS", description="environment variable: keys separated by commas")
    file: LocalPath | None = Field(None, description="file with a key per line; # starts a comment")


class ImageLinkSettings(Section):
    """Images that a response links to (`response_format=url`)."""

    keep_seconds: Annotated[int, Field(ge=0, le=604_800)] = Field(
        3600, description="how long an address works; 0: responses hold the images themselves, and no addresses"
    )
    memory_mib: PositiveInt = Field(256, description="memory for them; the oldest go first when it is full")


class ServeConfig(Section):
    """An endpoint: its base, its variants, and how they are run and guarded."""

    base: BaseSetting = Base()
    variants: Annotated[
        dict[VariantName, Annotated[Variant, BeforeValidator(_artifact)]], Field(min_length=1, max_length=256)
    ] = {"base": Variant()}
    host: str = Field("127.0.0.1", min_length=1, description="beyond loopback needs API keys or allow_open")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0: any free one")
    allow_open: bool = Field(False, description="serve beyond loopback without API keys")
    engine: EngineSettings = EngineSettings()
    deployment_config: DeploymentConfig = Field(
        {},
        description="Ray Serve's settings of the replicas of each set of weights, validated by Ray: num_replicas (a "
        "number or auto), autoscaling_config, ray_actor_options, max_ongoing_requests, health_check_period_s ...",
    )
    ingress: IngressSection = IngressSection()
    limits: Limits = Limits()
    queue: Queue = Queue()
    api_keys: ApiKeys = ApiKeys()
    images: ImageLinkSettings = ImageLinkSettings()
    public_url: Annotated[str, AfterValidator(_public_url)] | None = Field(
        None,
        description="address of this endpoint as clients reach it, for links to images: https://example.org/images; "
        "default: from the headers of each request",
    )
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        Field(max_length=100),
    ] = Field(
        (),
        description="web sites whose pages may use the API from a browser, for example [https://app.example.org]; "
        "['*']: every site, which needs API keys or allow_open",
    )
    log_prompts: bool = Field(False, description="prompts in the request log")

    @model_validator(mode="after")
    def _one_request_fits(self) -> ServeConfig:
        for kind, limit in (("images", "n"), ("work", "work")):
            self._require_room(kind, getattr(self.queue, kind), limit, getattr(self.limits, limit))
        least, most = self.limits.min_edge, self.limits.max_edge
        if least is not None and most is not None and least > most:
            raise ValueError(f"limits.min_edge = {least} is above limits.max_edge = {most}")
        if self.engine.max_cached_adapters < self.limits.adapters:
            raise ValueError(
                f"engine.max_cached_adapters = {self.engine.max_cached_adapters} is below "
                f"limits.adapters = {self.limits.adapters}"
            )
        return self

    @model_validator(mode="after")
    def _every_origin_or_some(self) -> ServeConfig:
        if "*" in self.cors_origins and len(self.cors_origins) > 1:
            raise ValueError("cors_origins has '*', which is every origin, beside others: leave either out")
        return self

    def _require_room(self, kind: str, queued: int, limit: str, asked: int) -> None:
        """The largest request must fit into what one ingress may admit, or it would be shed for ever."""
        ingresses = replica_bounds(self.ingress.deployment_config)[1]
        replicas = max(1, min(replica_bounds(config)[0] for config in self._of_weights()))
        if queued < asked:
            raise ValueError(f"queue.{kind} = {queued} is below limits.{limit} = {asked}")
        one = share(queued * replicas, ingresses)
        if one < asked:
            raise ValueError(
                f"queue.{kind} = {queued} is {one} for each of {ingresses} ingresses, below limits.{limit} = {asked}: "
                f"give at least {(asked - 1) * ingresses // replicas + 1}, or fewer "
                "ingress.deployment_config.num_replicas"
            )

    def _of_weights(self) -> list[DeploymentConfig]:
        """The `deployment_config` of every set of weights."""
        own = [merged(self.deployment_config, variant.deployment_config) for variant in self.variants.values()]
        return [self.deployment_config, *own]


def load(path: str) -> ServeConfig:
    """Read a configuration: a shipped name (`compare`) or a YAML file. Raises UserError, one line."""
    return parse(plain_data.read(path, _folder(), "serve configuration"), path)


def parse(plain: Mapping[str, Any], where: str = "serve configuration") -> ServeConfig:
    """Validate plain data. Raises UserError: an unknown key with its nearest spelling, or a wrong value.

    Imports Ray where a `deployment_config` has settings.
    """
    config = validated(ServeConfig, plain, where, new_name)
    check(config.deployment_config, "deployment_config", where)
    check(config.ingress.deployment_config, "ingress.deployment_config", where)
    for name, variant in config.variants.items():
        if variant.deployment_config:
            path = f"variants.{name}.deployment_config"
            check(variant.deployment_config, path, where)
            check(merged(config.deployment_config, variant.deployment_config), path, where)
    return config


def override(config: ServeConfig, changes: Mapping[str, Any]) -> ServeConfig:
    """A new configuration with dotted paths replaced, as `sdxl_ray.config.recipe.override` does for recipes."""
    plain = config.model_dump(mode="json")
    for path, value in changes.items():
        section, _, name = path.partition(".")
        above, passed_through, below = path.partition("deployment_config.")
        if section == "variants" and name and "." not in name:
            plain["variants"][name] = value  # a new name is no misspelt setting
        elif passed_through:  # Ray's settings need not be there yet
            plain_data.assign(plain, f"{above}deployment_config", _nested(below, value), new_name)
        else:
            plain_data.assign(plain, path, value, new_name)
    return parse(plain)


def _nested(path: str, value: Any) -> dict[str, Any]:
    """`("a.b", 1)` -> `{"a": {"b": 1}}`."""
    name, _, below = path.partition(".")
    return {name: _nested(below, value) if below else value}


def _folder() -> Traversable:
    return resources.files("serve")
