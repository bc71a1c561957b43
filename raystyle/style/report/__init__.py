"""The page that a person reads: `page.page`, and what it is made of."""
