"""A human study of runs (the paper's Table 5): what is asked, the page that asks it, and the table of the answers.

runs, real ads ─► plan.py ─► study.json ─► app.py and page.html ─► answers/*.parquet ─► table.py
"""
