"""Decide with an exported policy: numpy and onnxruntime only, no lit-ppo, no torch.

    python onnx_signal.py EXPORT_FOLDER features.csv
    python onnx_signal.py EXPORT_FOLDER features.csv --follow | python paper_trading.py

features.csv has one row a bar, oldest first: `time`, then the features that policy.json lists, not scaled. Prints the
position decided at the close of each bar. With --follow it waits for rows that are appended, and each decision is one
JSON line, with the row's `close` where the table has one; begun anew it decides the same from the first row on, so
whoever reads it goes by `time`. `-` reads the table from standard input. Sends no orders.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def whole_lines(table, follow):
    """Yield lines; one that is being written is waited for until it has its end."""
    line = ""
    while True:
        line += table.readline()
        if line.endswith("\n"):
            yield line
            line = ""
        elif follow:
            time.sleep(0.02)
        else:
            yield from [line] if line else []
            return


follow = "--follow" in sys.argv
folder, name = [argument for argument in sys.argv[1:] if argument != "--follow"]
table = sys.stdin if name == "-" else Path(name).open(newline="", encoding="utf-8")  # noqa: SIM115  until we end
policy = json.loads((Path(folder) / "policy.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(Path(folder) / "policy.onnx"), providers=["CPUExecutionProvider"])
if "account" in policy["inputs"]:
    sys.exit(
        f"this policy also sees {policy['network']['account_features'][1:]} of the account: feed the input `account`"
    )

names = [feature["name"] for feature in policy["features"]]
memory = [name for name in policy["inputs"] if name not in ("features", "held")]
state = {name: np.zeros(policy["inputs"][name]["shape"], np.float32) for name in memory}
held = np.array([policy["flat_index"]], np.int64)
seen, last, before = 0, "", 0.0  # bars that have every feature; time of the last row; position before
if not follow:
    print("time,position,probability")
for row in csv.DictReader(whole_lines(table, follow and name != "-")):
    if row["time"] <= last:
        print(f"{row['time']} comes again, or too late: it was decided on, and stands", file=sys.stderr)
        continue
    last = row["time"]
    features = np.array([float(row[name] or "nan") for name in names], np.float32)
    if np.isnan(features).any():
        continue  # the features' own warm-up
    _, chances, action, position, *after = session.run(None, {"features": features, "held": held, **state})
    state = dict(zip(memory, after, strict=True))
    seen += 1
    if seen <= policy["warmup_bars"]:
        continue  # only the memory is filled
    held, decided, chance = action, float(position[0]), round(float(chances[action[0]]), 6)
    if follow:
        line = {"time": last, "position": decided, "change": decided - before, "probability": chance}
        print(json.dumps(line | ({"close": float(row["close"])} if "close" in row else {})), flush=True)
    else:
        print(f"{last},{decided},{chance:.6f}")
    before = decided
