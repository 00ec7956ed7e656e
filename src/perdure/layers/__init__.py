"""Layers and verbs on tensors that models and methods are made of. Knows no files, tasks or loops."""

import logging

# peft brings bitsandbytes where that is installed, which warns on some CPUs of a kernel that nothing here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
