"""The alphabet of dimensions used in every shape comment, einsum and einops pattern.

B rows of a batch        T tokens in a row        D model width
N query heads            K key/value heads        H head width
F feed-forward width     V vocabulary             L layers
G groups of a batch      C choices (responses) of a group, `[G, K]` in prose
R responses of a batch   S query or key block     r LoRA rank
M microbatches of a step P patches of a medium
"""
