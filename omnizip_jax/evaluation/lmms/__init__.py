"""A plug-in for lmms-eval: `python -m lmms_eval --model omnizip_jax`, and tasks for it.

lmms-eval finds ``manifest`` by its entry point, and ``model`` through it. Only these two import
lmms-eval, and the rest of the package imports nothing from here.
"""

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"  # for lmms-eval's --include_path
