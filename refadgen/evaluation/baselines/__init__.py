"""Other methods on the same products, prompts and seeds, through diffusers: each an `AdMethod` for the main job.

    python jobs/generate_catalog.py CATALOG --output OUT \
        method.class=refadgen.evaluation.baselines.edges:ControlNet \
        method.settings.base=SD15_FOLDER_OR_HUB_ID method.settings.controlnet=CONTROLNET_FOLDER_OR_HUB_ID

Weights come from folders, or from hub ids that the user names: safetensors, of a Stable Diffusion base also `.bin`.
No code of a repository runs.
"""
