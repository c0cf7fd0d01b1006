"""Storage: where runs are kept, a folder of this machine or the URL of a store (`s3://`, `gs://`, `abfss://`, others).

    storage = Storage.of("s3://bucket/runs")
    storage.require_usable()

address.py      what `--storage` may say, and how messages show it
filesystems.py  pyarrow's file system of a URL
deadline.py     every call to a store: one time limit, tries, one line for whatever goes wrong
bounded.py      a file system with that limit, for Ray Train
mirror.py       `Storage`: a local folder, and its copy in a store
"""

from sdxl_ray.io.storage.address import is_url, shown
from sdxl_ray.io.storage.mirror import Storage

__all__ = ["Storage", "is_url", "shown"]
