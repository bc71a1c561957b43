"""raystyle: teach a causal language model one author's style from raw text, prove it, serve it, on Ray."""

__version__ = "0.1.0"
