"""The explorer: five pages in the browser that run the library live at a small size.

scenes: what a page computes and draws, as functions of its dials, without a browser; pages: marimo notebooks with the
dials; background: a training that can be watched and stopped; server: all pages under one address.
"""
