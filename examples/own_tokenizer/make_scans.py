"""Writes a folder as a site might have it: 1,000 scans of digits as PNG, and a table that names them."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

folder = Path("scans")
(folder / "images").mkdir(parents=True, exist_ok=True)
digits = load_digits()
with (folder / "data.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["scan", "label", "split"])
    for row in range(1_000):
        name = f"images/{row:04}.png"
        pixels = Image.fromarray((digits.images[row] * 15).astype(np.uint8))
        pixels.resize((16, 16), Image.Resampling.BICUBIC).save(folder / name)
        table.writerow([name, digits.target[row], "test" if row % 5 == 0 else "train"])
