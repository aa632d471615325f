"""Two ads of one product from the pipeline, without Ray: python examples/pictures.py"""

from PIL import Image

from refadgen.catalog.layout import place
from refadgen.config import LayoutConfig, SegmentationConfig
from refadgen.model import RefAdGenPipeline
from refadgen.segmentation import ProductMasker

photo = Image.open("catalogs/images/er-bottle.jpg").convert("RGB")
pipeline = RefAdGenPipeline.from_pretrained("mini")  # or a folder of your own
found = ProductMasker(SegmentationConfig()).segment(photo, "bottle")
placed = place(photo, found.alpha, LayoutConfig(), pipeline.config.width_px, pipeline.config.height_px)
product, mask = Image.fromarray(placed.canvas), Image.fromarray(placed.mask)
prompts = ["a bottle on a marble slab in front of a pink wall", "a bottle on grass in front of a leafy hedge"]
for index, ad in enumerate(pipeline([product] * 2, [mask] * 2, prompts, seeds=[7, 8]).images):
    ad.save(f"ad-{index}.png")
