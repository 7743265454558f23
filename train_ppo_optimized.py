"""The old optimised script, as a thin layer over `lit-ppo walk-forward`: profile `balanced` unless told otherwise.

python train_ppo_optimized.py --data_path bars.csv
"""

import sys

from lit_ppo.compat.drop_in import main

if __name__ == "__main__":
    sys.exit(main("train_ppo_optimized.py", default_profile="balanced"))
