"""The embedded corpus and tiny base model: the whole job with nothing to download."""
