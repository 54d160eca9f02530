"""The entry point that registers the model in lmms-eval."""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

MANIFEST = ModelManifest(
    model_id="omnizip_jax", chat_class_path="omnizip_jax.evaluation.lmms.model.OmniZip"
)
