"""The rwl layer: a persistent write-back log of one image, on persistent memory or SSD.

Imports nothing: whoever needs one pure module of the layer (its format, say) loads that module alone. The plugin is
:data:`fusecache_rwl.plugin.plugin`.
"""
