"""Novel views of a product from one image by 3D Gaussian Splatting: one part of the paper's dual augmentation.

image, mask ─ depth ─▶ relief ─ gaussians ─▶ shell of surfels ─ rasterizer ─▶ picture, alpha ─▶ novel view
"""

from refadgen.dataset.multi_view.novel_views import NovelView, NovelViews

__all__ = ["NovelView", "NovelViews"]
