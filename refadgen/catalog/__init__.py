"""From a catalogue to the model's inputs: columns, rows, images, prompts, and the product's place on the canvas.

    parquet ──scan, columns──► values ──rows──► CatalogRow ──fetch──► bytes ──images──► product image, mask
                                                    │                                            │
                                                    └──categories, scenes──► prompts             └──layout──► canvas, M′

`columns` maps a catalogue's columns to ours, or stops the job. `rows` reads one row. `fetch` and `web` read the bytes
of an image, but only from places that a foreign catalogue may reach. `images` and `pixels` decode them. `categories`
reads a shop's category, `scenes` has prompts for products without one. `placement` and `layout` put the product onto
the canvas. A bad row is a `RowError`. Imports neither Ray nor torch.
"""
