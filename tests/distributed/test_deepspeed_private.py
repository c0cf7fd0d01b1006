"""What `_deepspeed_private.py` uses of DeepSpeed is there and does what it says, on engines of one process.

A failure here names what a new version of DeepSpeed has changed: mend the function, then raise the cap in
pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.bucket import free_port

pytestmark = pytest.mark.filterwarnings("ignore")  # DeepSpeed's own

Build = Callable[[int], Any]


@pytest.fixture(scope="module")
def private() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        from sdxl_ray.distributed import _deepspeed_private

        yield _deepspeed_private


@pytest.fixture(scope="module")
def build(private: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Engines of two parameter groups that have made one step, one of each stage for the module."""
    import deepspeed

    engines: dict[int, Any] = {}

    def built(stage: int) -> Any:
        if stage not in engines:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
            groups = [{"params": list(layer.parameters())} for layer in model]
            config = {
                "train_batch_size": 1,
                "zero_optimization": {"stage": stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
            }
            engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=config)
            engine.backward(engine(torch.ones(1, 8)).sum())
            engine.step()
            engines[stage] = engine
        return engines[stage]

    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": free_port()}.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        private.skip_shm_op()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield built
        finally:
            for engine in engines.values():
                engine.destroy()
            dist.destroy_process_group()


def named(uses: Callable[[], Any], what: str) -> Any:
    """The result of `uses`; a name that is gone fails with one line."""
    import deepspeed

    try:
        return uses()
    except AttributeError as error:
        pytest.fail(f"deepspeed {deepspeed.__version__}: _deepspeed_private.{what} has to change: {error}")


def test_the_op_that_no_stage_calls_is_not_compiled(private: Any) -> None:
    import deepspeed.ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    assert "deepspeed_shm_comm" in ALL_OPS, "renamed: skip_shm_op skips nothing"
    named(private.skip_shm_op, "skip_shm_op")
    assert deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_a_shard_is_the_parameter_without_its_shape(private: Any, build: Build) -> None:
    weight = build(3).module[0].weight
    flat = named(lambda: private.shard(weight), "shard")
    assert flat.dim() == 1
    padded = torch.cat([flat, flat.new_full((3,), 9.0)])
    whole = named(lambda: private.unpadded(weight, padded), "unpadded")
    assert whole.shape == (8, 8)
    assert torch.equal(whole.flatten(), flat[: whole.numel()])


def test_small_parameters_are_gathered_from_their_shards_again(private: Any, build: Build) -> None:
    engine = build(3)
    bias = engine.module[0].bias
    assert named(lambda: engine.optimizer.persistent_parameters, "gather_persistent"), "a bias is a small parameter"
    private.shard(bias).fill_(0.25)
    bias.data = torch.zeros(8)  # of before the shard was written
    named(lambda: private.gather_persistent(engine.optimizer), "gather_persistent")
    assert torch.equal(bias.data, torch.full((8,), 0.25))


def test_groups_are_filled_inside_only(private: Any, build: Build) -> None:
    engine = build(3)
    groups = named(lambda: private.stepping_optimizer(engine), "stepping_optimizer").param_groups
    assert [len(group["params"]) for group in groups] == [0, 0]

    def inside() -> list[int]:
        with private.filled_groups(engine.optimizer):
            return [len(group["params"]) for group in groups]

    assert named(inside, "filled_groups") == [1, 1]
    assert [len(group["params"]) for group in groups] == [0, 0]


def test_moments_of_every_group_are_found(private: Any, build: Build) -> None:
    from deepspeed.utils import safe_get_full_optimizer_state

    engine = build(1)
    # The names are checked, since setting an attribute that nothing reads any more would not fail.
    named(lambda: engine.optimizer._hp_optimizer_states_linked, "link_moments")
    named(lambda: private.link_moments(engine.optimizer), "link_moments")
    for layer in engine.module:
        moment = safe_get_full_optimizer_state(layer.weight, "exp_avg")
        assert moment is not None and moment.abs().sum() > 0


@pytest.mark.parametrize("stage", [1, 3])
def test_the_optimizer_that_steps_is_the_clients(private: Any, build: Build, stage: int) -> None:
    engine = build(stage)
    assert isinstance(named(lambda: private.stepping_optimizer(engine), "stepping_optimizer"), torch.optim.AdamW)
    assert not isinstance(engine.optimizer, torch.optim.AdamW)


def test_a_loss_scaler_has_what_a_run_resumes_with(private: Any, build: Build) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    scaler = private.loss_scaler(build(1))
    assert scaler is not None and not scaler.dynamic, "loss_scaler: a scaler of fp32 is static"
    dynamic = DynamicLossScaler(2**4, 2.0, 1000, 1.0, 2, False)  # an engine has one under fp16, which no CPU runs
    assert dynamic.dynamic and dynamic.cur_scale == 2**4
    assert {"cur_scale", "cur_iter", "cur_hysteresis"} <= vars(dynamic).keys(), "loss_scaler: counters are gone"
