"""Heads stay where projections leave them: operators that split [batch, n, heads * d] themselves need no Transpose around them.

before: %q = Transpose(Reshape(%x, [b, n, heads, d]), [0, 2, 1, 3])   %y = Transpose(Attention(%q, …), [0, 2, 1, 3])
after:  %y = Reshape(Attention(%x, …, q_num_heads=heads), [b, n, heads, d])
"""
from __future__ import annotations

from .patterns import Any, Pattern, op
from .rules import Found, Rule
from .view import attribute

FRONT = [0, 2, 1, 3]


def rows(name: str) -> Pattern:
    """Heads [batch, heads, n, d] that were [batch, n, heads, d]."""
    return op.Transpose(Any(name), perm=FRONT)


def _flat(found: Found, x: str) -> str:
    """[batch, n, heads, d] as [batch, n, heads * d]"""
    return found.reshape(x, [0, 0, -1])


def _sized(found: Found, *names: str) -> bool:
    """Whether heads and their width are known numbers."""
    return all(len(found.shape(found[n])) == 4 and all(isinstance(d, int) for d in found.shape(found[n])[2:]) for n in names)


def _rotary(found: Found) -> bool:
    if not _sized(found, "x"):
        return False
    node = found.view.producer[found.root]
    heads, width = (int(d) for d in found.shape(found["x"])[2:])
    kept = {n: attribute(node, n) for n in ("interleaved", "rotary_embedding_dim")}
    turned = found.node("RotaryEmbedding", _flat(found, found["x"]), *node.input[1:], num_heads=heads, **kept)
    found.node("Transpose", found.reshape(turned, [0, 0, heads, width]), out=found.root, perm=FRONT)
    return True


def _norm(found: Found) -> bool:
    kept = {n: attribute(found.view.producer[found.root], n) for n in ("epsilon", "stash_type")}
    found.node("Transpose", found.node("RMSNormalization", found["x"], found["w"], axis=-1, **kept), out=found.root, perm=FRONT)
    return True


def _attention(found: Found) -> bool:
    if not _sized(found, "q", "k", "v"):
        return False
    node = next(n for n in map(found.view.producer.__getitem__, found.match.nodes) if n.op_type == "Attention")
    if any(len(n) and found.view.users[n] for n in node.output[1:]) and len(node.output) > 3:
        return False
    shapes = [found.shape(found[n]) for n in "qkv"]
    kept = {a.name: attribute(node, a.name) for a in node.attribute}
    flat = found.view.fresh("attention")
    found.node("Attention", *(_flat(found, found[n]) for n in "qkv"), *node.input[3:], outputs=(flat, *node.output[1:]),
               **kept | {"q_num_heads": shapes[0][2], "kv_num_heads": shapes[1][2]})
    found.reshape(flat, [0, 0, int(shapes[0][2]), int(shapes[2][3])], out=found.root)
    return True


def _attentions(*rest: Pattern) -> Pattern:
    return op.Transpose(op.Attention(rows("q"), rows("k"), rows("v"), *rest), perm=FRONT)


others = tuple(Any(n) for n in ("mask", "past_k", "past_v", "length"))
turned = op.RotaryEmbedding(rows("x"), Any("cos"), Any("sin")) | op.RotaryEmbedding(rows("x"), Any("cos"), Any("sin"), Any("position"))
norm = op.RMSNormalization(rows("x"), Any("w"), axis=-1)
RULES = (Rule(norm, _norm), Rule(turned, _rotary), *(Rule(_attentions(*others[:n]), _attention) for n in (0, 1, 3, 4)))
