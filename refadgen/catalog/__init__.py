"""From a catalogue row to what the model takes: columns, rows, images, scenes, and where the product stands.

    parquet columns ──columns──► rows ──fetch──► bytes ──images──► product image, mask ──layout──► canvas, M'
                                   └──scenes──► prompts

`columns` maps a catalogue's columns to ours and stops the job where that cannot be; `rows` reads one row; `fetch` gets
its bytes without reaching what a foreign catalogue must not reach; `images` decodes them; `scenes` has prompts for
products that bring none; `layout` puts the product onto the canvas. A bad row is a `RowError`; knows no Ray, no torch.
"""
