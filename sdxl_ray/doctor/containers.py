"""Containers as Kubernetes takes them, and what its objects share: every field's name; any other is refused.

Names and requiredness are those of Kubernetes' API reference (core/v1 and meta/v1 of 1.37). What a field holds has its
fields here too where a pod of Ray usually sets some; where not it is `Open`, and `unread` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _as_text(amount: Any) -> Any:
    """YAML reads `cpu: 4` as a number, which Kubernetes takes as well."""
    return str(amount) if type(amount) is int else amount


#: What Kubernetes takes for the name of a part, the name of another object, a label's value, and an amount.
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
Quantity = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^[0-9]+(\.[0-9]+)?([numkMGTPE]|[KMGTPE]i)?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Pull = Literal["Always", "IfNotPresent", "Never"]
#: Settings whose names are not looked at.
Open = dict[str, Any]
Opens = list[dict[str, Any]]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def unread(part: Strict, place: str = "") -> Iterator[str]:
    """Where an object says something below which no name was looked at."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        here = f"{place}.{name}" if place else name
        if field.annotation in (Open, Opens):
            yield from [here] if value else []
        for index, inner in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(inner, Strict):
                yield from unread(inner, f"{here}.{index}" if isinstance(value, list) else here)


class Metadata(Strict):
    name: ObjectName | None = None
    generateName: str | None = None
    namespace: KubernetesName | None = None
    labels: dict[str, LabelValue] = {}
    annotations: dict[str, str] = {}
    finalizers: list[str] = []
    ownerReferences: Opens = []
    creationTimestamp: Any = None  # `null`, where a program wrote the file


class Expression(Strict):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class Selector(Strict):
    matchLabels: dict[str, LabelValue] = {}
    matchExpressions: list[Expression] = []


class Reference(Strict):
    name: ObjectName
    optional: bool | None = None


class KeyReference(Reference):
    key: str


class FieldReference(Strict):
    fieldPath: str
    apiVersion: str | None = None


class AmountReference(Strict):
    resource: str
    containerName: KubernetesName | None = None
    divisor: Quantity | None = None


class FileKey(Strict):
    volumeName: KubernetesName
    path: str
    key: str
    optional: bool | None = None


class EnvSource(Strict):
    secretKeyRef: KeyReference | None = None
    configMapKeyRef: KeyReference | None = None
    fieldRef: FieldReference | None = None
    resourceFieldRef: AmountReference | None = None
    fileKeyRef: FileKey | None = None


class EnvVar(Strict):
    name: Annotated[str, Field(pattern=r"^[-._A-Za-z][-._A-Za-z0-9]*$")]
    value: str | None = None
    valueFrom: EnvSource | None = None

    @model_validator(mode="after")
    def _one(self) -> EnvVar:
        if self.value and self.valueFrom is not None:
            raise ValueError(f"variable {self.name}: give value or valueFrom")
        return self


class EnvFrom(Strict):
    prefix: str | None = None
    secretRef: Reference | None = None
    configMapRef: Reference | None = None


class ResourceAmounts(Strict):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}
    claims: Opens = []


class ContainerPort(Strict):
    containerPort: Port
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,15}$")] | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    hostPort: Port | None = None
    hostIP: str | None = None


class Capabilities(Strict):
    add: list[str] = []
    drop: list[str] = []


class Profile(Strict):
    type: Literal["RuntimeDefault", "Localhost", "Unconfined"]
    localhostProfile: str | None = None


class Security(Strict):
    """What a pod and a container can both say."""

    runAsNonRoot: bool | None = None
    runAsUser: Count | None = None
    runAsGroup: Count | None = None
    seccompProfile: Profile | None = None
    appArmorProfile: Profile | None = None
    seLinuxOptions: Open = {}
    windowsOptions: Open = {}


class ContainerSecurity(Security):
    allowPrivilegeEscalation: bool | None = None
    capabilities: Capabilities | None = None
    privileged: bool | None = None
    procMount: str | None = None
    readOnlyRootFilesystem: bool | None = None


class PodSecurity(Security):
    fsGroup: Count | None = None
    fsGroupChangePolicy: Literal["Always", "OnRootMismatch"] | None = None
    seLinuxChangePolicy: str | None = None
    supplementalGroups: list[Count] = []
    supplementalGroupsPolicy: Literal["Merge", "Strict"] | None = None
    sysctls: Opens = []


class Exec(Strict):
    command: list[str] = []


class HttpGet(Strict):
    port: Any  # a number or a name
    path: str | None = None
    host: str | None = None
    scheme: Literal["HTTP", "HTTPS"] | None = None
    httpHeaders: Opens = []
    protocol: str | None = None


class TcpSocket(Strict):
    port: Any
    host: str | None = None


class Grpc(Strict):
    port: Port
    service: str | None = None
    mode: str | None = None


class Sleep(Strict):
    seconds: Count


class Probe(Strict):
    exec: Exec | None = None
    httpGet: HttpGet | None = None
    tcpSocket: TcpSocket | None = None
    grpc: Grpc | None = None
    initialDelaySeconds: Count | None = None
    timeoutSeconds: Count | None = None
    periodSeconds: Count | None = None
    successThreshold: Count | None = None
    failureThreshold: Count | None = None
    terminationGracePeriodSeconds: Count | None = None


class Hook(Strict):
    exec: Exec | None = None
    httpGet: HttpGet | None = None
    tcpSocket: TcpSocket | None = None
    sleep: Sleep | None = None


class Lifecycle(Strict):
    postStart: Hook | None = None
    preStop: Hook | None = None
    stopSignal: str | None = None


class VolumeMount(Strict):
    name: KubernetesName
    mountPath: str
    subPath: str | None = None
    subPathExpr: str | None = None
    readOnly: bool | None = None
    recursiveReadOnly: str | None = None
    mountPropagation: Literal["None", "HostToContainer", "Bidirectional"] | None = None
    bindMountOptions: list[str] = []


class Container(Strict):
    name: KubernetesName
    image: str | None = None
    imagePullPolicy: Pull | None = None
    command: list[str] = []
    args: list[str] = []
    workingDir: str | None = None
    resources: ResourceAmounts = ResourceAmounts()
    resizePolicy: Opens = []
    env: list[EnvVar] = []
    envFrom: list[EnvFrom] = []
    ports: list[ContainerPort] = []
    volumeMounts: list[VolumeMount] = []
    volumeDevices: Opens = []
    livenessProbe: Probe | None = None
    readinessProbe: Probe | None = None
    startupProbe: Probe | None = None
    lifecycle: Lifecycle | None = None
    restartPolicy: Literal["Always", "OnFailure", "Never"] | None = None
    restartPolicyRules: Opens = []
    securityContext: ContainerSecurity | None = None
    stdin: bool | None = None
    stdinOnce: bool | None = None
    tty: bool | None = None
    terminationMessagePath: str | None = None
    terminationMessagePolicy: Literal["File", "FallbackToLogsOnError"] | None = None
