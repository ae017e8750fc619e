"""Processor time of a look at a user's files before training: headers alone, and everything decoded."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cutlayer.broker.manifest import ImageSpec
from cutlayer.edge_agent.data_columns import FileColumn
from cutlayer.edge_agent.data_images import ImageReader
from cutlayer.edge_agent.data_table import Table

NUM_FILES = 500


def main() -> None:
    """Write JPEG files of 640 x 480, and print a table."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number}.jpg" for number in range(NUM_FILES)]
        for name in names:
            coarse = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(Path(folder, name), quality=90)
        reader = ImageReader(ImageSpec(height=224, width=224, channels=3, patch=16), "crop")
        column = FileColumn(Table(Path(folder), {"image": names}, Path(folder)), "image", reader)
        for what, is_full in (("header", False), ("full", True)):
            began_s = time.process_time()
            reasons = list(column.check(np.arange(NUM_FILES), is_full=is_full))
            assert not any(reasons)
            milliseconds = (time.process_time() - began_s) * 1_000 / NUM_FILES
            print(f"check={what}: {milliseconds:.2f} ms of a processor a file")


if __name__ == "__main__":
    main()
