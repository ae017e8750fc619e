"""Reads a site's scans with the exported model, the site's own tokenizer and its own head."""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizer import ScanTokenizer

from cutlayer.server_worker.exported_model import load  # without Cutlayer: load_model.py in the model's folder

site = sys.argv[1]
model = load("runs/own-tokenizer/model", head=f"{site}-head.safetensors")
tokenizer = ScanTokenizer(width=64).eval()
learned = load_file(f"{site}-tokenizer.safetensors")
tokenizer.load_state_dict({name: value for name, value in learned.items() if not name.startswith("optimizer/")})

with Path("scans/data.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
scans = torch.from_numpy(np.stack([np.asarray(Image.open(f"scans/{row['scan']}"))[:, :, None] for row in rows]))
with torch.no_grad():
    found = model.predict({"scan": tokenizer(scans)}).argmax(dim=1)
right = sum(int(guess) == int(row["label"]) for guess, row in zip(found, rows, strict=True))
print(f"{site}: {right} of {len(rows)} scans are read right")
