"""The hospital's data, from its own file to rows a model may learn from; nothing here leaves the hospital.

The walk: ``schema.mapping_of`` (how the hospital writes its file) -> ``reading.read`` (every problem in one report) ->
``deidentify.deidentify`` -> ``split.split`` (by patient) -> ``vault.seal`` (at rest) -> ``vault.unseal`` (in memory) -> ``Parts.hospital``.
"""
