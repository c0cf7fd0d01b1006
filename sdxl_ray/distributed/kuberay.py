"""The fields of KubeRay's `ray.io/v1` objects, and of their pods, that `cluster/` uses; any other key is refused.

Names, requiredness and limits are those of `ray-operator/apis/ray/v1/*_types.go` of KubeRay 1.7 and of Kubernetes' API
reference (core/v1, networking.k8s.io/v1). The cluster itself would drop an unknown key without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdxl_ray.errors import UserError, nearest
from sdxl_ray.schema_errors import validated

#: What Kubernetes takes for the name of an object, a label's value, and an amount.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name | None = None
    labels: dict[str, LabelValue] = {}


class SecretKey(Strict):
    name: Name
    key: str


class EnvSource(Strict):
    secretKeyRef: SecretKey


class EnvVar(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    valueFrom: EnvSource | None = None

    @model_validator(mode="after")
    def _one(self) -> EnvVar:
        if (self.value is None) == (self.valueFrom is None):
            raise ValueError(f"variable {self.name}: give value or valueFrom")
        return self


class Amounts(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class ContainerPort(Strict):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,15}$")]
    containerPort: Port


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: bool


class Container(Strict):
    name: Name
    image: str
    resources: Amounts
    env: list[EnvVar] = []
    ports: list[ContainerPort] = []
    securityContext: ContainerSecurity


class PodSecurity(Strict):
    runAsNonRoot: bool
    runAsUser: Annotated[int, Field(ge=1)]


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    serviceAccountName: Name
    securityContext: PodSecurity
    terminationGracePeriodSeconds: Count | None = None
    tolerations: list[Toleration] = []
    containers: Annotated[list[Container], Field(min_length=1)]


class PodTemplate(Strict):
    metadata: Metadata
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secretName: Name


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: Count


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    rayStartParams: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _ordered(self) -> WorkerGroup:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"group {self.groupName}: replicas must lie between minReplicas and maxReplicas")
        return self


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]

    @property
    def pods(self) -> list[PodTemplate]:
        """The head's template, then those of the workers."""
        return [self.headGroupSpec.template, *(group.template for group in self.workerGroupSpecs)]


class JobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]
    runtimeEnvYAML: str
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Count
    activeDeadlineSeconds: Annotated[int, Field(ge=1)]
    backoffLimit: Count
    rayClusterSpec: ClusterSpec


class Upgrade(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class ServiceSpec(Strict):
    serveConfigV2: str
    upgradeStrategy: Upgrade
    rayClusterConfig: ClusterSpec


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec


class Selector(Strict):
    matchLabels: dict[str, LabelValue] = {}


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: Port


class Ingress(Strict):
    from_: Annotated[list[Peer], Field(alias="from", min_length=1)]
    ports: list[PolicyPort] = []


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]


class NetworkPolicy(Strict):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


KINDS: dict[str, type[Strict]] = {kind.__name__: kind for kind in (RayCluster, RayJob, RayService, NetworkPolicy)}


class ObjectList(Strict):
    apiVersion: Literal["v1"]
    kind: Literal["List"]
    items: list[dict[str, Any]]


def parse(plain: dict[str, Any], where: str) -> list[Any]:
    """The objects of one YAML document, a `List` taken apart. Raises UserError that begins with `where`."""
    kind = str(plain.get("kind"))
    if kind == "List":
        return [found for item in validated(ObjectList, plain, where).items for found in parse(item, where)]
    if kind not in KINDS:
        raise UserError(f"{where}: no kind {kind!r}: {nearest(kind, KINDS)}")
    return [validated(KINDS[kind], plain, where)]


def cluster_of(manifest: Any) -> ClusterSpec | None:
    """The Ray cluster inside an object, or None."""
    spec = manifest.spec
    return (
        spec
        if isinstance(spec, ClusterSpec)
        else getattr(spec, "rayClusterSpec", getattr(spec, "rayClusterConfig", None))
    )
