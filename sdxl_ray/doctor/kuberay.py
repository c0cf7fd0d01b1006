"""KubeRay's `ray.io/v1` objects and network policies: every field's name; any other key is refused.

Names, requiredness and limits are those of `ray-operator/apis/ray/v1/*_types.go` of KubeRay 1.7 and of Kubernetes' API
reference (networking.k8s.io/v1; see `pods` for core/v1), but that a cluster must say who may use it. The cluster
itself would drop an unknown key without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sdxl_ray.config.schema_errors import validated
from sdxl_ray.doctor.containers import (
    ContainerSecurity,
    Count,
    EnvFrom,
    EnvSource,
    EnvVar,
    KubernetesName,
    Metadata,
    ObjectName,
    Open,
    Port,
    Pull,
    Quantity,
    ResourceAmounts,
    Selector,
    Strict,
    VolumeMount,
)
from sdxl_ray.doctor.pods import PodTemplate
from sdxl_ray.errors import UserError, nearest


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]
    secretName: ObjectName | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: Count | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    image: str | None = None
    imagePullPolicy: Pull | None = None
    command: list[str] = []
    args: list[str] = []
    resources: ResourceAmounts | None = None
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    volumeMounts: list[VolumeMount] = []
    securityContext: ContainerSecurity | None = None


class Credential(Strict):
    value: str | None = None
    valueFrom: EnvSource | None = None


class EmbeddedStorage(Strict):
    claimName: ObjectName | None = None
    size: Quantity | None = None
    storageClassName: str | None = None
    accessModes: list[str] = []
    subPath: str | None = None
    deletionPolicy: str | None = None


class FaultTolerance(Strict):
    backend: Literal["redis", "rocksdb"] | None = None
    redisAddress: str | None = None
    redisUsername: Credential | None = None
    redisPassword: Credential | None = None
    externalStorageNamespace: str | None = None
    storage: EmbeddedStorage | None = None


class PodGroup(Strict):
    """What the head and a group of workers both say."""

    template: PodTemplate
    rayStartParams: dict[str, str] = {}
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}


class HeadGroup(PodGroup):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    headService: Open = {}
    enableIngress: bool | None = None
    ingressOptions: Open = {}


class ScaleStrategy(Strict):
    workersToDelete: list[str] = []


class WorkerGroup(PodGroup):
    groupName: KubernetesName
    replicas: Count | None = None
    minReplicas: Count
    maxReplicas: Count
    idleTimeoutSeconds: Count | None = None
    numOfHosts: Annotated[int, Field(ge=1)] | None = None
    priority: int | None = None
    scaleStrategy: ScaleStrategy | None = None
    suspend: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> WorkerGroup:
        wanted = self.minReplicas if self.replicas is None else self.replicas
        if not self.minReplicas <= wanted <= self.maxReplicas:
            raise ValueError(f"group {self.groupName}: replicas must lie between minReplicas and maxReplicas")
        return self


class TlsOptions(Strict):
    enabled: bool | None = None


class ClusterUpgrade(Strict):
    type: Literal["Recreate", "None"] | None = None


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")] | None = None
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: FaultTolerance | None = None
    tlsOptions: TlsOptions | None = None
    networkPolicy: Open = {}
    historyServerOptions: Open = {}
    headServiceAnnotations: dict[str, str] = {}
    upgradeStrategy: ClusterUpgrade | None = None
    managedBy: str | None = None
    suspend: bool | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []

    @property
    def pods(self) -> list[PodTemplate]:
        """The head's template, then those of the workers."""
        return [self.headGroupSpec.template, *(group.template for group in self.workerGroupSpecs)]


class SubmitterConfig(Strict):
    backoffLimit: Count | None = None


class JobSpec(Strict):
    entrypoint: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"] | None = None
    submitterPodTemplate: PodTemplate | None = None
    submitterConfig: SubmitterConfig | None = None
    runtimeEnvYAML: str | None = None
    metadata: dict[str, str] = {}
    jobId: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    shutdownAfterJobFinishes: bool | None = None
    deletionStrategy: Open = {}
    ttlSecondsAfterFinished: Count | None = None
    activeDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    preRunningDeadlineSeconds: Annotated[int, Field(ge=1)] | None = None
    backoffLimit: Count | None = None
    managedBy: str | None = None
    suspend: bool | None = None
    clusterSelector: dict[str, str] = {}
    rayClusterSpec: ClusterSpec | None = None


class UpgradeOptions(Strict):
    gatewayClassName: str
    stepSizePercent: Count
    intervalSeconds: Count
    maxSurgePercent: Count | None = None


class Upgrade(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"] | None = None
    clusterUpgradeOptions: UpgradeOptions | None = None


class ServiceSpec(Strict):
    serveConfigV2: str | None = None
    upgradeStrategy: Upgrade | None = None
    serveService: Open = {}
    excludeHeadPodFromServeSvc: bool | None = None
    rayClusterDeletionDelaySeconds: Count | None = None
    serviceUnhealthySecondThreshold: Count | None = None
    deploymentUnhealthySecondThreshold: Count | None = None
    managedBy: str | None = None
    suspend: bool | None = None
    rayClusterConfig: ClusterSpec


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec
    status: Any = None  # where the file was read from a cluster, which wrote it


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec
    status: Any = None


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: ServiceSpec
    status: Any = None


class IpBlock(Strict):
    cidr: str
    except_: Annotated[list[str], Field(alias="except")] = []


class Peer(Strict):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None
    ipBlock: IpBlock | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    port: Any = None  # a number or a name
    endPort: Port | None = None


class NetworkIngress(Strict):
    from_: Annotated[list[Peer], Field(alias="from")] = []
    ports: list[PolicyPort] = []


class Egress(Strict):
    to: list[Peer] = []
    ports: list[PolicyPort] = []


class PolicySpec(Strict):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]] = []
    ingress: list[NetworkIngress] = []
    egress: list[Egress] = []


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
