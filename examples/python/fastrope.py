"""fastrope for numpy arrays, through the C interface of the compiled form: nothing to build.

    FASTROPE_LIBRARY=build/compiled/libfastrope.so python3 ...   # -DFASTROPE_BUILD_COMPILED=ON -DBUILD_SHARED_LIBS=ON

q [heads, n_q, d], k [kv_heads, n_k, d], v [kv_heads, n_k, d_v] of float32, float64 or float16, of any strides but
that a row's elements lie next to each other. The structs below are those of fastrope/fastrope.h, member by member.
"""

import ctypes
import ctypes.util
import os
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_void_p

import numpy as np

_name = os.environ.get("FASTROPE_LIBRARY") or ctypes.util.find_library("fastrope")
if not _name:
    raise ImportError("libfastrope is not installed: FASTROPE_LIBRARY=/path/to/libfastrope.so names it")
_library = ctypes.CDLL(_name)

_TYPES = {np.dtype("float32"): 0, np.dtype("float64"): 1, np.dtype("float16"): 3}
_PATHS = {"automatic": 0, "exact": 1, "polynomial": 2, "toeplitz": 3}
_BIASES = {"alibi": 1, "t5": 2, "table": 3, "clamped_table": 4}


class _Tensor(Structure):
    _fields_ = [("data", c_void_p), ("type", c_int)]
    _fields_ += [(name, c_int64) for name in ("heads", "rows", "cols", "head_stride", "row_stride")]
    _fields_ += [("pages", c_void_p), ("page_count", c_int64), ("page_rows", c_int64), ("page_stride", c_int64)]
    _fields_ += [("row_scales", c_void_p), ("row_scale_count", c_int64), ("row_scale_stride", c_int64)]
    _fields_ += [("column_scales", c_void_p), ("column_scale_stride", c_int64)]


class _Matrix(Structure):
    _fields_ = [("data", c_void_p), ("rows", c_int64), ("cols", c_int64), ("row_stride", c_int64)]


class _Rope(Structure):
    _fields_ = [("struct_size", c_size_t), ("base", c_double), ("half_split", c_int), ("rotary_begin", c_int64)]
    _fields_ += [("rotary_dim", c_int64)]  # what follows is left at its defaults


class _Mask(Structure):
    _fields_ = [("kind", c_int), ("first", c_int64), ("last", c_int64)]


class _LagBias(Structure):
    _fields_ = [("kind", c_int), ("values", c_void_p), ("value_count", c_int64), ("heads", c_int64)]
    _fields_ += [("first_lag", c_int64), ("t5_bidirectional", c_int), ("t5_max_distance", c_int64)]


class _Options(Structure):
    _fields_ = [("struct_size", c_size_t), ("tolerance", c_double), ("path", c_int), ("rope", POINTER(_Rope))]
    _fields_ += [("rope_already_applied", c_int), ("mask", _Mask), ("bias", _LagBias), ("weights", c_int64 * 5)]
    _fields_ += [("has_scale", c_int), ("scale", c_double), ("softcap", c_double)]  # what follows is left at its defaults


_library.fastrope_last_error.restype = c_char_p
_library.fastrope_version.restype = c_char_p
_library.fastrope_target.restype = c_char_p
_library.fastrope_plan_report.restype = c_void_p
_library.fastrope_plan_report.argtypes = [c_void_p]
_library.fastrope_plan_workspace_bytes.restype = c_size_t
_library.fastrope_plan_workspace_bytes.argtypes = [c_void_p]
for _write in (_library.fastrope_report_text, _library.fastrope_report_json):
    _write.restype = c_size_t
    _write.argtypes = [c_void_p, c_char_p, c_size_t]
_library.fastrope_plan_run.argtypes = [c_void_p] * 7 + [c_size_t, c_void_p]
_library.fastrope_toeplitz_create.argtypes = [c_int, c_int64, c_int64, c_void_p, c_void_p]
for _destroy in (_library.fastrope_plan_destroy, _library.fastrope_toeplitz_destroy):
    _destroy.argtypes = [c_void_p]
    _destroy.restype = None


class Error(ValueError):
    """A call that was refused; the text has the values."""


def version():
    return _library.fastrope_version().decode()


def target():
    """The instruction set in use; Error where there is none, as for an unknown FASTROPE_TARGET."""
    name = _library.fastrope_target()
    if name is None:
        raise Error(_library.fastrope_last_error().decode())
    return name.decode()


def _require(status):
    if status != 0:
        raise Error(_library.fastrope_last_error().decode())


def _type_of(x):
    if x.dtype not in _TYPES:
        raise Error(f"elements are {x.dtype}, and may be {', '.join(map(str, _TYPES))}")
    return _TYPES[x.dtype]


def _tensor(name, x):
    if x.ndim != 3 or (x.shape[2] > 1 and x.strides[2] != x.itemsize):
        raise Error(f"{name} is to be [heads, rows, cols], a row's elements next to each other, got {x.shape} {x.strides}")
    return _Tensor(x.ctypes.data, _type_of(x), *x.shape, x.strides[0] // x.itemsize, x.strides[1] // x.itemsize)


def _matrix(x):
    return _Matrix(x.ctypes.data, *x.shape, x.strides[0] // x.itemsize)


def _options(rope_base=None, half_split=False, rotary_dim=0, causal=False, lags=None, bias=None, scale=None,
             softcap=0.0, tolerance=0.0, path="automatic"):
    """lags: (first, last) that may be attended to; bias: (kind, values, heads, first_lag), kind of _BIASES."""
    o = _Options(struct_size=ctypes.sizeof(_Options), tolerance=tolerance, path=_PATHS[path], softcap=softcap)
    if rope_base is not None:
        o.rope = ctypes.pointer(_Rope(ctypes.sizeof(_Rope), rope_base, half_split, 0, rotary_dim))
    if lags is not None:
        o.mask = _Mask(2, *lags)
    elif causal:
        o.mask = _Mask(1, 0, 0)
    if bias is not None:
        kind, values, heads, first_lag = bias
        o.kept = np.ascontiguousarray(values, dtype=np.float64)
        o.bias = _LagBias(_BIASES[kind], o.kept.ctypes.data, o.kept.size, heads, first_lag, 0, 0)
    if scale is not None:
        o.has_scale, o.scale = 1, scale
    return o


class Plan:
    """What make_plan gives: print it to see what each head runs and why."""

    def __init__(self, handle):
        self._handle = handle
        self._workspace = np.empty(_library.fastrope_plan_workspace_bytes(handle), np.uint8)

    def __del__(self):
        _library.fastrope_plan_destroy(self._handle)

    def _text(self, write):
        report = _library.fastrope_plan_report(self._handle)
        text = ctypes.create_string_buffer(write(report, None, 0) + 1)
        write(report, text, len(text))
        return text.value.decode()

    def __str__(self):
        return self._text(_library.fastrope_report_text)

    def to_json(self):
        return self._text(_library.fastrope_report_json)

    def run(self, q, k, v, out=None):
        """The result, [heads, n_q, d_v]; one call at a time, since the plan keeps its workspace."""
        if out is None:
            out = np.empty((q.shape[0], q.shape[1], v.shape[2]), q.dtype)
        x = [_tensor(*named) for named in (("q", q), ("k", k), ("v", v), ("out", out))]
        _require(_library.fastrope_plan_run(self._handle, *map(byref, x), None, self._workspace.ctypes.data,
                                            self._workspace.size, None))
        return out


def make_plan(q, k, v, **options):
    """A plan for these arrays; the options are those of _options."""
    handle, x = c_void_p(), [_tensor(*named) for named in (("q", q), ("k", k), ("v", v))]
    _require(_library.fastrope_plan_create(*map(byref, x), byref(_options(**options)), byref(handle)))
    return Plan(handle)


def attend(q, k, v, **options):
    """softmax(scale q k' + ..) v, [heads, n_q, d_v]; the options are those of _options."""
    return make_plan(q, k, v, **options).run(q, k, v)


class Toeplitz:
    """T[i, j] = generator[i - j + n_cols - 1], float32 or float64."""

    def __init__(self, generator, n_rows, n_cols):
        generator = np.ascontiguousarray(generator)
        self.shape, self.dtype, self._handle = (n_rows, n_cols), generator.dtype, c_void_p()
        rows = _matrix(generator.reshape(1, -1))
        _require(_library.fastrope_toeplitz_create(_type_of(generator), n_rows, n_cols, byref(rows),
                                                   byref(self._handle)))

    def __del__(self):
        _library.fastrope_toeplitz_destroy(self._handle)

    def __matmul__(self, x):
        """T x, x [n_cols, channels]."""
        x = np.ascontiguousarray(x, dtype=self.dtype)
        y = np.empty((self.shape[0], x.shape[1]), self.dtype)
        _require(_library.fastrope_toeplitz_apply(self._handle, byref(_matrix(x)), byref(_matrix(y)), None))
        return y
