"""A virtual photo studio: renders products, product photographs and ads with ground truth.

`scenes` has the words and captions and imports without Mitsuba. Rendering needs the extra `refadgen[studio]`.
"""
