"""Decide with an exported policy: numpy and onnxruntime only, no lit-ppo, no torch.

    python onnx_signal.py EXPORT_FOLDER features.csv

features.csv has one row a bar, oldest first: `time`, then the features that policy.json lists, not scaled. Prints the
position decided at the close of each bar. Sends no orders.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder, table = Path(sys.argv[1]), Path(sys.argv[2])
policy = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), providers=["CPUExecutionProvider"])
if "account" in policy["inputs"]:
    sys.exit(
        f"this policy also sees {policy['network']['account_features'][1:]} of the account: feed the input `account`"
    )

names = [feature["name"] for feature in policy["features"]]
memory = [name for name in policy["inputs"] if name not in ("features", "held")]
state = {name: np.zeros(policy["inputs"][name]["shape"], np.float32) for name in memory}
held = np.array([policy["flat_index"]], np.int64)
seen = 0  # bars that have every feature
print("time,position,probability")
for row in csv.DictReader(table.open(newline="", encoding="utf-8")):
    features = np.array([float(row[name] or "nan") for name in names], np.float32)
    if np.isnan(features).any():
        continue  # the features' own warm-up
    _, chances, action, position, *after = session.run(None, {"features": features, "held": held, **state})
    state = dict(zip(memory, after, strict=True))
    seen += 1
    if seen > policy["warmup_bars"]:  # before, only the memory is filled
        held = action
        print(f"{row['time']},{float(position[0])},{chances[action[0]]:.6f}")
