"""SPD-GAN (Slightly Perturbed Distribution GAN): forget data on which forgetting can be seen.

`SPDGAN` moves a forget set slightly off its distribution, so that a model does well on it only if
it learned the moved data themselves. Nothing here is imported by `import fastunlearn`.
"""

from fastunlearn.spdgan.closeness import Closeness, closeness
from fastunlearn.spdgan.config import SPDGANConfig
from fastunlearn.spdgan.model import SPDGAN, FitReport
from fastunlearn.spdgan.pictures import pictures

__all__ = ["SPDGAN", "Closeness", "FitReport", "SPDGANConfig", "closeness", "pictures"]
