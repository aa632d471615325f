"""A small virtual photo studio: products, product photographs and ads with ground truth.

Words and captions live in `scenes`, pictures in `render`. The words import without Mitsuba; rendering needs the extra
`refadgen[studio]`.
"""
