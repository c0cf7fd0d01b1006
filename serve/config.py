"""ServeConfig: everything that decides what an endpoint serves, as frozen and strict sections.

A configuration is a YAML file (`serve/compare.yaml` or your own). The command line, `serve run serve.app:build`, a
KubeRay RayService and the tests read it through `load` and `override`. No secret is in it: it names where keys are.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from sdxl_ray.config import plain_data
from sdxl_ray.config.scalars import meaning, text_of
from sdxl_ray.config.schema import Base, BaseSetting, LocalPath, NonNegativeFloat, PositiveFloat, PositiveInt, Section
from sdxl_ray.config.schema_errors import validated
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

    @model_validator(mode="after")
    def _fused_alone(self) -> Variant:
        if self.fused and not (self.own_replicas and self.artifact):
            raise ValueError("fused changes the weights: set own_replicas and an artifact too")
        return self


class EngineSection(Section):
    """How one replica draws: `serve.engine.settings.EngineSettings` says what each is; null: what suits the device."""

    device: str | None = Field(None, description="cpu, cuda, cuda:1")
    dtype: Literal["fp32", "bf16"] | None = Field(None, description="of UNet and text encoders")
    max_batch: PositiveInt = Field(8, description="images of one size denoised together in one step")
    max_cached_adapters: PositiveInt = Field(8, description="adapters kept in memory; the least recently used goes")
    channels_last: bool | None = Field(None, description="memory layout of UNet and VAE")
    compile: bool | None = Field(None, description="torch.compile of the UNet's blocks before the replica is ready")
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field((), description="[height, width] that are warmed up")
    cached_prompts: Annotated[int, Field(ge=0)] = Field(64, description="encoded prompts kept in memory")


class Replicas(Section):
    """Processes that hold one set of weights, and what each gets of the cluster."""

    count: PositiveInt = 1
    cpus: NonNegativeFloat = Field(1.0, description="CPUs that Ray reserves for one replica")
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = Field("auto", description="auto: one where there is any")
    surge_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="extra replicas during an update, so that old ones go only when new ones are ready"
    )
    start_attempts: PositiveInt = Field(3, description="how often a replica that cannot start is tried again")


class IngressSection(Section):
    """The HTTP side: processes that check requests, admit or shed them, and wait for images."""

    replicas: PositiveInt = 1
    cpus: NonNegativeFloat = Field(0.0, description="CPUs that Ray reserves for one ingress; it computes little")
    max_connections: PositiveInt = Field(1000, description="requests that one ingress holds open")


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
    engine: EngineSection = EngineSection()
    replicas: Replicas = Replicas()
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
        ingresses, replicas = self.ingress.replicas, self.replicas.count
        if queued < asked:
            raise ValueError(f"queue.{kind} = {queued} is below limits.{limit} = {asked}")
        one = share(queued * replicas, ingresses)
        if one < asked:
            raise ValueError(
                f"queue.{kind} = {queued} is {one} for each of {ingresses} ingresses, below limits.{limit} = {asked}: "
                f"give at least {(asked - 1) * ingresses // replicas + 1}, or fewer ingress.replicas"
            )


def load(path: str) -> ServeConfig:
    """Read a configuration: a shipped name (`compare`) or a YAML file. Raises UserError, one line."""
    return parse(plain_data.read(path, _folder(), "serve configuration"), path)


def parse(plain: Mapping[str, Any], where: str = "serve configuration") -> ServeConfig:
    """Validate plain data. Raises UserError: an unknown key with its nearest spelling, or a wrong value."""
    return validated(ServeConfig, plain, where)


def override(config: ServeConfig, changes: Mapping[str, Any]) -> ServeConfig:
    """A new configuration with dotted paths replaced, as `sdxl_ray.config.recipe.override` does for recipes."""
    plain = config.model_dump(mode="json")
    for path, value in changes.items():
        section, _, name = path.partition(".")
        if section == "variants" and name and "." not in name:
            plain["variants"][name] = value  # a new name is no misspelt setting
        else:
            plain_data.assign(plain, path, value)
    return parse(plain)


def _folder() -> Traversable:
    return resources.files("serve")
