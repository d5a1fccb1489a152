"""The experiment's front door: what notebooks, the workflow and tools ask for by name.

Products: `plan` lists them, `ensure` finds or makes one, `find` only looks. What they hold is read
by the other functions, which make what is missing.
"""

from g2g_utils.experiment.make import ensure
from g2g_utils.experiment.novelty import familiar
from g2g_utils.experiment.parts import (
    evaluation_pairs,
    feature_networks,
    fidelity_features,
    grounding_options,
    latent_size,
    model,
    no_skill_methods,
    prior_regions,
    retrieval_rows,
    start_unet,
    text_encoder,
    training_images,
    training_logs,
    training_texts,
    untrained_unet,
)
from g2g_utils.experiment.plan import bundles, find, folder, key, needs, plan
from g2g_utils.experiment.presence import questions
from g2g_utils.experiment.product import arm_and_seed
from g2g_utils.experiment.recipes import fine_tune
from g2g_utils.experiment.scores import compared, method, methods, scores

__all__ = [
    "arm_and_seed",
    "bundles",
    "compared",
    "ensure",
    "evaluation_pairs",
    "familiar",
    "feature_networks",
    "fidelity_features",
    "find",
    "fine_tune",
    "folder",
    "grounding_options",
    "key",
    "latent_size",
    "method",
    "methods",
    "model",
    "needs",
    "no_skill_methods",
    "plan",
    "prior_regions",
    "questions",
    "retrieval_rows",
    "scores",
    "start_unet",
    "text_encoder",
    "training_images",
    "training_logs",
    "training_texts",
    "untrained_unet",
]
