"""One process that draws images of a base and its adapters in one continuous batch; knows no Ray and no HTTP.

    from serve.engine.engine import ServingEngine
    from serve.engine.request import ImageRequest

    engine = ServingEngine(base, adapters={...}); await engine.start()
    await engine.draw(ImageRequest("a dog", seed=1)); await engine.stop()

Nothing is imported here: what a request is is known to processes that never load torch.
"""
