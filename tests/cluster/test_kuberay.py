"""KubeRay's objects: known fields only, a token, a policy, and the same commands as everywhere."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from sdxl_ray.config.recipe import load, override, parse_assignments
from sdxl_ray.config.search_space import divide, load_space
from sdxl_ray.doctor import kuberay
from sdxl_ray.doctor.cluster_files import environment
from sdxl_ray.doctor.containers import unread
from sdxl_ray.errors import UserError
from tests.cluster.files import KUBERAY, objects, plain, text, unshared


@pytest.mark.parametrize("name", KUBERAY)
def test_an_unknown_key_of_a_kuberay_file_is_refused(name: str) -> None:
    """At every mapping of the file, one after another."""
    places = 0
    for spoilt, path in _spoilt(plain(name)):
        if path[-1:] in (("labels",), ("matchLabels",), ("rayStartParams",), ("requests",), ("limits",)):
            continue  # any key may be there
        with pytest.raises(UserError, match=r"^file: .*replcias") as refused:
            kuberay.parse(spoilt, "file")
        assert "\n" not in str(refused.value)
        assert not str(refused.value).endswith("choose from ")
        places += 1
    assert places >= 7


def test_a_misspelt_key_inside_a_list_is_told_its_nearest_name() -> None:
    for name, path, wrong, right in (
        ("kuberay-cluster", ("spec", "workerGroupSpecs", 0), "replcias", "replicas"),
        ("kuberay-network", ("spec", "ingress", 1, "from", 0), "podSelecter", "podSelector"),
    ):
        spoilt = place = unshared(plain(name))
        for key in path:
            place = place[key]
        place[wrong] = place.pop(right)
        at = ".".join(str(key) for key in (*path, wrong))
        with pytest.raises(UserError) as refused:
            kuberay.parse(spoilt, "file")
        assert str(refused.value) == f"file: no setting {at!r}: did you mean {right!r}?"


#: Of a pod that mounts, chooses its machine and is looked after; our own files need none of it.
POD = """
nodeSelector: {cloud.google.com/gke-accelerator: nvidia-l4}
priorityClassName: training
imagePullSecrets: [{name: registry}]
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: gpu, operator: Exists}]}]
topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}
securityContext: {fsGroup: 100, seccompProfile: {type: RuntimeDefault}}
volumes:
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: 8Gi}}
  - {name: runs, persistentVolumeClaim: {claimName: runs}}
  - {name: keys, secret: {secretName: my.keys, items: [{key: a, path: b}]}}
initContainers:
  - {name: wait, image: busybox, command: [sleep, "1"]}
containers:
  - name: ray-worker
    image: ray
    imagePullPolicy: IfNotPresent
    resources: {limits: {cpu: 4, memory: 16Gi}}
    envFrom: [{secretRef: {name: keys}}]
    env:
      - {name: MY_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    volumeMounts: [{name: shm, mountPath: /dev/shm, readOnly: false}]
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 5}
    lifecycle: {preStop: {exec: {command: [ray, stop]}}}
    securityContext: {capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
"""


def _with_pod(changed: str = POD) -> dict[str, Any]:
    cluster: dict[str, Any] = unshared(plain("kuberay-cluster"))
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"] = yaml.safe_load(changed)
    return cluster


def test_a_pod_may_say_what_kubernetes_takes() -> None:
    (cluster,) = kuberay.parse(_with_pod(), "file")
    terms = "spec.workerGroupSpecs.0.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    assert list(unread(cluster)) == [terms]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("nodeSelector", "nodeSelecter"),
        ("volumes", "volums"),
        ("sizeLimit", "sizeLimits"),
        ("claimName", "claimNam"),
        ("volumeMounts", "volumeMount"),
        ("mountPath", "montPath"),
        ("envFrom", "envform"),
        ("livenessProbe", "livenesProbe"),
        ("periodSeconds", "periodSecond"),
        ("preStop", "prestop"),
        ("nodeAffinity", "nodeAfinity"),
        ("maxSkew", "maxskew"),
    ],
)
def test_a_misspelt_key_of_a_pod_is_told_its_nearest_name(right: str, wrong: str) -> None:
    spoilt = _with_pod(POD.replace(f"{right}:", f"{wrong}:"))
    with pytest.raises(UserError, match=rf"^file: no setting '.*\.{wrong}': did you mean '{right}'\?$"):
        kuberay.parse(spoilt, "file")


def test_a_cluster_that_does_not_say_who_may_use_it_is_refused() -> None:
    cluster = plain("kuberay-cluster")
    del cluster["spec"]["authOptions"]
    with pytest.raises(UserError, match=r"spec\.authOptions: field required"):
        kuberay.parse(cluster, "file")


def test_a_job_for_a_cluster_that_is_there_needs_none_of_its_own() -> None:
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "one"}}
    spec = {"entrypoint": "python -m sdxl_ray doctor", "clusterSelector": {"ray.io/cluster": "sdxl-ray"}}
    (parsed,) = kuberay.parse({**job, "spec": spec}, "file")
    assert kuberay.cluster_of(parsed) is None


def _spoilt(plain: Any) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    def places(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        if isinstance(value, dict):
            yield path
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                yield from places(inner, (*path, key))

    for path in places(plain, ()):
        place = spoilt = unshared(plain)
        for key in path:
            place = place[key]
        place["replcias"] = 1
        yield spoilt, path


def test_every_kuberay_cluster_asks_for_the_token_of_a_secret() -> None:
    """X3. Where KubeRay has to reach the dashboard from its own pod, a policy says that nobody else does."""
    clusters = [(found, kuberay.cluster_of(found)) for found in objects()]
    asked = [(found, cluster) for found, cluster in clusters if cluster is not None]
    assert len(asked) == 5
    (policy,) = [found.spec for found in objects() if found.kind == "NetworkPolicy"]
    for found, cluster in asked:
        assert cluster.authOptions.mode == "token" and cluster.authOptions.secretName == "sdxl-ray-token"
        host = cluster.headGroupSpec.rayStartParams["dashboard-host"]
        assert host == ("127.0.0.1" if found.kind == "RayCluster" else "0.0.0.0")
        for pod in cluster.pods:
            assert policy.podSelector.matchLabels.items() <= pod.metadata.labels.items()
            assert pod.spec.securityContext.runAsNonRoot
            assert not any(one.securityContext.allowPrivilegeEscalation for one in pod.spec.containers)
    assert policy.policyTypes == ["Ingress"]
    ours, operator, clients = policy.ingress
    assert ours.from_[0].podSelector == policy.podSelector and ours.from_[0].namespaceSelector is None
    assert operator.from_[0].podSelector.matchLabels == {"app.kubernetes.io/name": "kuberay-operator"}
    assert {port.port for port in operator.ports} == {8265, 52365, 8000}
    assert clients.from_[0].namespaceSelector is None and {port.port for port in clients.ports} == {8000}
    (service,) = [cluster for found, cluster in asked if found.kind == "RayService"]
    for pod in service.pods:
        (keys,) = [one for one in pod.spec.containers[0].env if one.name == "SDXL_RAY_API_KEYS"]
        assert keys.valueFrom.secretKeyRef.name == "sdxl-ray-api-keys"
    assert "kind: Secret" not in "".join(text(name) for name in KUBERAY)


def test_the_head_has_no_gpu_and_workers_scale() -> None:
    for found in objects():
        if (cluster := kuberay.cluster_of(found)) is None:
            continue
        assert cluster.enableInTreeAutoscaling and cluster.headGroupSpec.rayStartParams["num-gpus"] == "0"
        assert not any(
            "gpu" in name for one in cluster.headGroupSpec.template.spec.containers for name in one.resources.limits
        )
        (group,) = cluster.workerGroupSpecs
        (worker,) = group.template.spec.containers
        assert worker.resources.limits["nvidia.com/gpu"] == worker.resources.requests["nvidia.com/gpu"] == "1"
        assert group.maxReplicas > group.minReplicas
        assert {image for pod in cluster.pods for image in [one.image for one in pod.spec.containers]} == {worker.image}


def test_jobs_run_the_same_commands() -> None:
    from sdxl_ray.__main__ import COMMANDS
    from sdxl_ray.config.experiment import load_experiment

    jobs = {found.metadata.labels["sdxl-ray/job"]: found.spec for found in objects() if found.kind == "RayJob"}
    assert set(jobs) == {"train", "tune", "compare"}
    for name, job in jobs.items():
        words = shlex.split(job.entrypoint)
        assert words[:4] == ["python", "-m", "sdxl_ray", name]
        assert words[words.index("--address") + 1] == "auto"
        assert job.runtimeEnvYAML == jobs["train"].runtimeEnvYAML
        environment(yaml.safe_load(job.runtimeEnvYAML), name)
        if name == "train":
            override(load(words[4]), parse_assignments([word for word in words if "=" in word])).require_complete()
        settings = parse_assignments([word for word in words if "=" in word])
        # Workers are none yet, so what asks for GPUs must be said (`distributed.cluster.gpus_per_worker`).
        assert settings["resources.gpus_per_worker"] == 1
        if name == "compare":
            load_experiment(words[4]).runs({"resources.gpus_per_worker": 1})
        if name == "tune":
            mine, changes = divide(settings)
            space = load_space(words[4], mine)
            assert space.max_concurrent_trials == job.rayClusterSpec.workerGroupSpecs[0].maxReplicas
            space.check(space.start(changes))
    assert {"train", "tune", "compare"} <= set(COMMANDS)
