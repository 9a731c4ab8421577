"""The judgement: dictionaries against dictionaries, codes against supports (numpy, scipy, torch blocks)."""
