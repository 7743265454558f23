"""The old plain script, as a thin layer over `lit-ppo walk-forward`: profile `original` unless told otherwise.

python train_ppo.py --data_path bars.csv
"""

import sys

from lit_ppo.compat.drop_in import main

if __name__ == "__main__":
    sys.exit(main("train_ppo.py", default_profile="original"))
