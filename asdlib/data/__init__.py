"""From folders of recordings to resident audio: index, decoding, store, conditions, import, download,
synthetic machines.
"""
