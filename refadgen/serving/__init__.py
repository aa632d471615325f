"""The endpoint: an ad image for one product, now. Ray Serve; same package, same model, same image as the main job.

    HTTP ─► api ─► ads: cache? ─► segmentation replica: decode, mask, place ─► generation replica: step engine ─► answer

`app.build` assembles the deployments; `api` speaks HTTP and nothing else; `ads` follows one request; `engine` batches.
"""
