"""BIDS datasets: what goes in, which atlas, and what comes out under which name."""
