"""Measures of finished ads, each a scorer with the network that it asks. `table.py` says what each sees and does not.

    AdPicture (ad, placed product, M′, prompt) ─► scorer ─► one number or None an ad, by the measure's name

Scorers are made by `load.py` from the settings; one without weights is left out, with the reason.
"""
