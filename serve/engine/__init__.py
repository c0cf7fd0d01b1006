"""One process that draws pictures of a base and its adapters in one continuous batch; knows no Ray and no HTTP.

`engine = Engine(base, adapters={...}, settings=EngineSettings())`, `await engine.start()`,
`await engine.draw(PictureRequest("a dog", seed=1))`, `await engine.stop()`.
"""

from serve.engine.engine import Engine
from serve.engine.request import (
    SCHEDULERS,
    AdapterBroken,
    AdapterUse,
    DeadlinePassed,
    Drawn,
    EngineFault,
    EngineStopped,
    NotDrawable,
    PictureRequest,
    Times,
)
from serve.engine.settings import EngineSettings

__all__ = [
    "SCHEDULERS",
    "AdapterBroken",
    "AdapterUse",
    "DeadlinePassed",
    "Drawn",
    "Engine",
    "EngineFault",
    "EngineSettings",
    "EngineStopped",
    "NotDrawable",
    "PictureRequest",
    "Times",
]
