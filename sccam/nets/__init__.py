"""Networks: trunks with three taps, and the three heads that read them."""
