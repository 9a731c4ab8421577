"""The pages, marimo notebooks; `marimo edit` opens one with its code."""
