"""README's third row of what was measured: exact and polynomial attention by length.

d = 8, logits at most 0.5, causal, tolerance 1e-2, float, one thread.
    FASTROPE_LIBRARY=.../libfastrope.so python3 time_by_length.py [LONGEST (16384)]
"""

import sys
import time

import numpy as np

import fastrope

HEAD_SIZE, LOGITS, TOLERANCE = 8, 0.5, 1e-2


def rows_of_length(random, n, length):
    x = random.standard_normal((1, n, HEAD_SIZE)).astype(np.float32)
    return x * (length / np.linalg.norm(x, axis=2, keepdims=True))


def seconds(plan, q, k, v, out):
    """The least of five."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        plan.run(q, k, v, out)
        times.append(time.perf_counter() - begin)
    return min(times)


def main():
    longest = int(sys.argv[1]) if len(sys.argv) > 1 else 16384
    random = np.random.default_rng(1)
    length = (LOGITS * HEAD_SIZE**0.5) ** 0.5  # |q| |k| / sqrt(d) is the largest logit
    print(f"fastrope {fastrope.version()}, target {fastrope.target()}")
    print(f"{'n':>7} {'exact, ms':>10} {'polynomial, ms':>15} {'times':>6} {'error':>9}")
    n = 1024
    while n <= longest:
        q, k = rows_of_length(random, n, length), rows_of_length(random, n, length)
        v = random.standard_normal((1, n, HEAD_SIZE)).astype(np.float32)
        options = {"rope_base": 10000.0, "causal": True}
        exact = fastrope.make_plan(q, k, v, **options)
        fast = fastrope.make_plan(q, k, v, tolerance=TOLERANCE, path="polynomial", **options)
        expected, out = np.empty_like(v), np.empty_like(v)
        slow_time, fast_time = seconds(exact, q, k, v, expected), seconds(fast, q, k, v, out)
        error = np.abs(out - expected).max() / np.abs(v).max()
        print(f"{n:7} {1e3 * slow_time:10.2f} {1e3 * fast_time:15.2f} {slow_time / fast_time:6.1f} {error:9.1e}")
        if error > TOLERANCE:
            sys.exit("the error is beyond the tolerance")
        n *= 2
    print(fast)


main()
