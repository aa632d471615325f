"""The endpoint: ad images of one product over HTTP, on Ray Serve. The same model and the same images as the main job.

    HTTP ─► api ─► ads: cache? ─► segmentation replica: decode, mask, place ─► generation replica: step engine ─► answer

`app.build` assembles the deployments. `guard` admits requests, `api` has the routes, `ads` handles one request, and the
step engine (refadgen/engine) batches images.
"""
