"""What was learned, what was copied, what was lost: measured from texts and log-probabilities."""
