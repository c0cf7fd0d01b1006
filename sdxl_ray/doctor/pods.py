"""Pods as Kubernetes takes them: containers, volumes, and where they may run. See `containers`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sdxl_ray.doctor.containers import (
    Container,
    Count,
    KubernetesName,
    LabelValue,
    Metadata,
    ObjectName,
    Open,
    Opens,
    PodSecurity,
    Quantity,
    Reference,
    Selector,
    Strict,
)


class EmptyDir(Strict):
    medium: Literal["", "Memory", "HugePages"] | None = None
    sizeLimit: Quantity | None = None
    mode: Count | None = None


class VolumeClaim(Strict):
    claimName: ObjectName
    readOnly: bool | None = None


class Item(Strict):
    key: str
    path: str
    mode: Count | None = None
    user: Count | None = None


class Files(Strict):
    """What a volume of a secret and one of a config map both say."""

    items: list[Item] = []
    defaultMode: Count | None = None
    defaultUser: Count | None = None
    optional: bool | None = None


class ConfigFiles(Files):
    name: ObjectName | None = None


class SecretFiles(Files):
    secretName: ObjectName | None = None


class HostPath(Strict):
    path: str
    type: str | None = None


class Nfs(Strict):
    server: str
    path: str
    readOnly: bool | None = None


class Volume(Strict):
    name: KubernetesName
    emptyDir: EmptyDir | None = None
    persistentVolumeClaim: VolumeClaim | None = None
    configMap: ConfigFiles | None = None
    secret: SecretFiles | None = None
    hostPath: HostPath | None = None
    nfs: Nfs | None = None
    csi: Open = {}
    downwardAPI: Open = {}
    ephemeral: Open = {}
    image: Open = {}
    projected: Open = {}
    awsElasticBlockStore: Open = {}
    azureDisk: Open = {}
    azureFile: Open = {}
    cephfs: Open = {}
    cinder: Open = {}
    fc: Open = {}
    flexVolume: Open = {}
    flocker: Open = {}
    gcePersistentDisk: Open = {}
    gitRepo: Open = {}
    glusterfs: Open = {}
    iscsi: Open = {}
    photonPersistentDisk: Open = {}
    portworxVolume: Open = {}
    quobyte: Open = {}
    rbd: Open = {}
    scaleIO: Open = {}
    storageos: Open = {}
    vsphereVolume: Open = {}


class Toleration(Strict):
    key: str | None = None
    operator: Literal["Exists", "Equal", "Lt", "Gt"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None


class Preference(Strict):
    """Both kinds of rules of an affinity; the rules themselves are lists of terms, or one selector of nodes."""

    preferredDuringSchedulingIgnoredDuringExecution: Opens = []


class NodeAffinity(Preference):
    requiredDuringSchedulingIgnoredDuringExecution: Open = {}


class PodAffinity(Preference):
    requiredDuringSchedulingIgnoredDuringExecution: Opens = []


class Affinity(Strict):
    nodeAffinity: NodeAffinity | None = None
    podAffinity: PodAffinity | None = None
    podAntiAffinity: PodAffinity | None = None


class Spread(Strict):
    maxSkew: Annotated[int, Field(ge=1)]
    topologyKey: str
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    labelSelector: Selector | None = None
    matchLabelKeys: list[str] = []
    minDomains: Count | None = None
    nodeAffinityPolicy: Literal["Honor", "Ignore"] | None = None
    nodeTaintsPolicy: Literal["Honor", "Ignore"] | None = None


class HostAlias(Strict):
    ip: str
    hostnames: list[str] = []


class Dns(Strict):
    nameservers: list[str] = []
    searches: list[str] = []
    options: Opens = []


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    initContainers: list[Container] = []
    ephemeralContainers: Opens = []
    volumes: list[Volume] = []
    serviceAccountName: ObjectName | None = None
    serviceAccount: ObjectName | None = None
    automountServiceAccountToken: bool | None = None
    imagePullSecrets: list[Reference] = []
    securityContext: PodSecurity | None = None
    nodeSelector: dict[str, LabelValue] = {}
    nodeName: str | None = None
    affinity: Affinity | None = None
    tolerations: list[Toleration] = []
    topologySpreadConstraints: list[Spread] = []
    terminationGracePeriodSeconds: Count | None = None
    activeDeadlineSeconds: Count | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    priorityClassName: str | None = None
    priority: int | None = None
    preemptionPolicy: Literal["PreemptLowerPriority", "Never"] | None = None
    runtimeClassName: ObjectName | None = None
    schedulerName: str | None = None
    schedulingGates: Opens = []
    schedulingGroup: Open = {}
    readinessGates: Opens = []
    evictionResponders: Opens = []
    resourceClaims: Opens = []
    resources: Open = {}
    overhead: dict[str, Quantity] = {}
    os: Open = {}
    dnsPolicy: Literal["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] | None = None
    dnsConfig: Dns | None = None
    enableServiceLinks: bool | None = None
    hostAliases: list[HostAlias] = []
    hostIPC: bool | None = None
    hostNetwork: bool | None = None
    hostPID: bool | None = None
    hostUsers: bool | None = None
    hostname: str | None = None
    hostnameOverride: str | None = None
    setHostnameAsFQDN: bool | None = None
    shareProcessNamespace: bool | None = None
    subdomain: str | None = None


class PodTemplate(Strict):
    metadata: Metadata = Metadata()
    spec: PodSpec
