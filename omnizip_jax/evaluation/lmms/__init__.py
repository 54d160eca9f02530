"""A model for lmms-eval, and tasks for it: `python -m lmms_eval --model omnizip_jax`.

lmms-eval finds the ``manifest`` by its entry point and makes the ``model``, which answers what
``messages`` take apart; ``asked`` is behind the tasks that lie in ``tasks/``. Only ``manifest`` and
``model`` import lmms-eval, and nothing here is imported by the rest of the package.
"""
