import os

import torch

# One thread per test process: with several processes, more threads than cores spend their time waiting for another.
# Processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
