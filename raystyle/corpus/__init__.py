"""Raw text to rows. Imports no torch; only `prepare` imports ray."""
