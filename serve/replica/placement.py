"""Which variants share weights: the base and its LoRAs on one set of replicas, each full artifact on its own.

`plan(config)` opens every artifact once, where the endpoint is built. A broken one stops its variant, by name and with
the reason; the others are served. What comes out is plain data, since it crosses a process border.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sdxl_ray.config.schema import Base
from sdxl_ray.errors import UserError
from sdxl_ray.models.base_model_files import component_configs, locate
from sdxl_ray.models.opening import open_artifact
from serve.config import ServeConfig, Variant
from serve.deployment_config import DeploymentConfig, merged

VariantKind = Literal["base", "lora", "full", "unknown"]
SHARED = "weights"


@dataclass
class ReplicaGroup:
    """One set of weights: a deployment.

    artifact: folder of the full artifact that gives the weights. adapters: folders of the LoRAs that may be named.
    fused: the LoRA that is added into the weights. variants: the model ids that it answers for. deployment_config: Ray
    Serve's settings of the deployment, as configured.
    """

    artifact: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    fused: str | None = None
    variants: list[str] = field(default_factory=list)
    deployment_config: DeploymentConfig = field(default_factory=dict)


@dataclass
class VariantPlacement:
    """Where a variant is served. `group` None: it is stopped, for `reason`.

    artifact: its hash. folder: of the artifact; of another tool's file, the one that it was imported to.
    """

    kind: VariantKind
    artifact: str = ""
    folder: str | None = None
    group: str | None = None
    reason: str | None = None


@dataclass
class Placement:
    """The whole endpoint. edge: pixels of the base's own (square) images."""

    edge: int
    groups: dict[str, ReplicaGroup]
    places: dict[str, VariantPlacement]

    def combined(self, model: str) -> list[str]:
        """The LoRAs that a request may combine with a model, itself among them; none with a LoRA in its weights."""
        group = self.groups.get(self.places[model].group or "", ReplicaGroup())
        return [name for name in group.adapters if name != group.fused]

    def plain(self) -> dict[str, Any]:
        """For Ray."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Placement:
        """The opposite of `plain`."""
        groups = {name: ReplicaGroup(**group) for name, group in plain["groups"].items()}
        return cls(plain["edge"], groups, {name: VariantPlacement(**place) for name, place in plain["places"].items()})


def plan(config: ServeConfig) -> Placement:
    """Look at the base and the artifacts, and lay the variants out. Raises UserError when the base is not there."""
    places: dict[str, VariantPlacement] = {}
    groups: dict[str, ReplicaGroup] = {}
    for name, variant in config.variants.items():
        places[name] = place = _place(name, variant, config.base)
        if place.group is not None:
            group = groups.setdefault(place.group, ReplicaGroup())
            group.variants.append(name)
            group.artifact = place.folder if place.kind == "full" else None
            group.fused = name if variant.fused else None
            if variant.deployment_config and place.group == SHARED:
                raise UserError(
                    f"variants.{name}.deployment_config: a LoRA shares the replicas of the base: set own_replicas too, "
                    "or the file's own deployment_config"
                )
            group.deployment_config = merged(config.deployment_config, variant.deployment_config)
    loras = {name: place.folder for name, place in places.items() if place.kind == "lora"}
    for group in groups.values():
        group.adapters = {name: str(folder) for name, folder in loras.items() if places[name].group is not None}
        if group.fused:  # weights with one LoRA in them are no base for another
            group.adapters = {group.fused: group.adapters[group.fused]}
    return Placement(_own_edge(config, groups), groups, places)


def _place(name: str, variant: Variant, base: Base) -> VariantPlacement:
    if variant.artifact is None:
        return VariantPlacement("base", group=SHARED)
    try:
        artifact = open_artifact(variant.artifact, base)
    except UserError as error:
        return VariantPlacement("unknown", reason=str(error))
    alone = artifact.manifest.kind == "full" or variant.own_replicas
    if variant.fused and artifact.manifest.kind == "full":
        return VariantPlacement(
            "full", artifact.hash, reason=f"variant {name!r} is a full artifact: only a LoRA can be fused"
        )
    group = f"{SHARED}-{name}" if alone else SHARED
    return VariantPlacement(artifact.manifest.kind, artifact.hash, str(artifact.folder), group)


def _own_edge(config: ServeConfig, groups: dict[str, ReplicaGroup]) -> int:
    """Pixels of a side as the UNet was trained; from the base, or from a full artifact that needs no base."""
    full = [group.artifact for group in groups.values() if group.artifact is not None]
    needs_base = len(full) < len(groups) or not groups
    configs = component_configs(locate(config.base if needs_base else Base(id=full[0])))
    doublings = len(configs["vae"]["block_out_channels"]) - 1
    return int(configs["unet"]["sample_size"]) << doublings
