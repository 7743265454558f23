"""A paper account from the JSON lines of `lit-ppo predict --follow`; gross of costs, and no order goes anywhere.

lit-ppo predict --ckpt results/42 --data live.csv --follow | python docs/examples/paper_trading.py
"""

import json
import sys


def trade(lines):
    """Yield (time, position, equity) after every decision; each is filled at the close that it was made at."""
    equity, position, last_close, last_time = 1.0, 0.0, None, ""
    for line in lines:
        decision = json.loads(line)
        if decision["time"] <= last_time:  # after a kill a line may come a second time, and never gets lost
            continue
        if last_close is not None:
            equity *= 1 + position * (decision["close"] / last_close - 1)
        position, last_close, last_time = decision["position"], decision["close"], decision["time"]
        yield last_time, position, equity


if __name__ == "__main__":
    for time, position, equity in trade(sys.stdin):
        print(f"{time}  {position:+g}  equity {equity:.6f}", flush=True)
