"""Align vision-language models without human labels: synthetic images, synthetic answers, preference optimisation.

The core knows PyTorch and Hugging Face. The Lightning plugs stand beside it and import as ``synthalign.datamodules``,
``synthalign.modules`` and ``synthalign.callbacks``. Nothing heavy is imported until it is used.
"""

__version__ = "0.1.0"
