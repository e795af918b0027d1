"""A pet or a dead letter in one file, to inspect elsewhere, replay offline, or send to staging.

``file`` writes and reads captures, ``redaction`` leaves embeddings out of them, and ``replay`` repeats in memory what
happened to the captured pet.
"""
