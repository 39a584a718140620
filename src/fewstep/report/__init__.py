"""Figures and one self-contained HTML page.

`figures` turns data into matplotlib figures and never shows them; `images` turns samples into PNG files without any
further package; `page` joins both into one file that needs no network.
"""
