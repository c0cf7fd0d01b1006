"""One process that draws pictures of a base and its adapters in one continuous batch; knows no Ray and no HTTP.

`engine = Engine(base, adapters={...}, settings=EngineSettings())`, `await engine.start()`,
`await engine.draw(PictureRequest("a dog", seed=1))`, `await engine.stop()`.
"""

from serve.engine.engine import Engine
from serve.engine.request import (
    SCHEDULERS,
    AdapterUse,
    DeadlinePassed,
    Drawn,
    EngineStopped,
    PictureRequest,
    Times,
)
from serve.engine.settings import EngineSettings

__all__ = [
    "SCHEDULERS",
    "AdapterUse",
    "DeadlinePassed",
    "Drawn",
    "Engine",
    "EngineSettings",
    "EngineStopped",
    "PictureRequest",
    "Times",
]
