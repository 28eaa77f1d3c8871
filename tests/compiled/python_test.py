"""examples/python/fastrope.py against numpy."""

import json

import numpy as np

import fastrope

random = np.random.default_rng(1)
q, k, v = (random.standard_normal((2, 50, 8)) for _ in range(3))


def reference(q, k, v):
    x = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2])
    x[:, np.triu(np.ones(x.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(x - x.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True) @ v


def refuses(call, part_of_message):
    try:
        call()
    except fastrope.Error as error:
        assert part_of_message in str(error), error
    else:
        raise AssertionError(f"{part_of_message}: nothing was refused")


for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 5e-3)):
    x = [a.astype(dtype) for a in (q, k, v)]
    expected = reference(*(a.astype(np.float64) for a in x))
    assert np.abs(fastrope.attend(*x, causal=True) - expected).max() < tolerance, dtype
    tokens_first = [np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2) for a in x]
    assert np.abs(fastrope.attend(*tokens_first, causal=True) - expected).max() < tolerance, "strides"

plan = fastrope.make_plan(q, k, v, rope_base=100.0, lags=(0, 9), bias=("alibi", [0.5, 0.25], 2, 0), scale=0.5, softcap=30)
assert fastrope.target() in str(plan) and "head 1: exact" in str(plan), plan
assert json.loads(plan.to_json())["n_q"] == 50
assert np.isfinite(plan.run(q, k, v)).all()
# One key, the row's own: what is attended to is its value.
assert np.abs(fastrope.attend(q, k, v, lags=(0, 0)) - v).max() < 1e-15

generator = random.standard_normal(300 + 200 - 1)
matrix = np.array([[generator[i - j + 199] for j in range(200)] for i in range(300)])
x = random.standard_normal((200, 3))
assert np.abs(fastrope.Toeplitz(generator, 300, 200) @ x - matrix @ x).max() < 1e-10

refuses(lambda: fastrope.attend(q, k, v[:, :9]), "n_k")
refuses(lambda: fastrope.attend(q, k, v, tolerance=-1.0), "tolerance must be finite")
refuses(lambda: fastrope.attend(q[0], k, v), "[heads, rows, cols]")
refuses(lambda: fastrope.attend(q, k.astype(np.int32), v), "int32")
print(f"fastrope {fastrope.version()}, target {fastrope.target()}")
