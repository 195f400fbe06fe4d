"""How often there is something to record, for whoever makes the steps."""

PROBE_SHARE = 0.05  # of the training examples, at the default cadence
CHUNK_STEPS = 256
CHUNK_SECONDS = 0.5  # a chunk of slow steps ends sooner, so that tables and screen keep up
