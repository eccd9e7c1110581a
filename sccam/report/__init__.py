"""What a run did, to look at: one picture, and a page."""
