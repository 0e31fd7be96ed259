"""Settings of the whole test run."""

import torch

# The tests' tensors are tiny: a second thread would only wait, and on a busy machine be waited for.
torch.set_num_threads(1)
