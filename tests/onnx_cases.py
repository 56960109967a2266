"""The node tests of the onnx package: which of them are ours, and how one is run."""
from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tilewright.sessions import Session

PLAIN = {"FLOAT", "INT32", "INT64", "BOOL", "INT8", "UINT8", "INT4", "UINT4"}
REASONS = Path(__file__).with_name("onnx_failures.txt")


@cache
def plain_cases() -> dict[str, Any]:
    """Cases by name, without those that the package makes of function bodies, whose inputs and outputs are tensors of the plain dtypes."""
    from onnx import TensorProto
    from onnx.backend.test.loader import load_model_tests
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")

    def plain(value: Any) -> bool:
        kind = value.type
        return kind.HasField("tensor_type") and TensorProto.DataType.Name(kind.tensor_type.elem_type) in PLAIN
    return {c.name: c for c in found if "_expanded" not in c.name and all(map(plain, (*c.model.graph.input, *c.model.graph.output)))}


def known_failures() -> dict[str, str]:
    """The reason of every case that is known to fail: lines `name: reason`."""
    lines = (line for line in REASONS.read_text().splitlines() if line and not line.startswith("#"))
    return {name: reason.strip() for name, _, reason in (line.partition(":") for line in lines)}


def play(case: Any, gpu, record) -> None:
    """Raise AssertionError, or what the compiler raises, unless the case's outputs are within its own tolerances."""
    names = [v.name for v in case.model.graph.input]
    session = Session(case.model, case.name, gpu, record)
    try:
        for inputs, outputs in case.data_sets:
            got = session.run(dict(zip(names, map(array, inputs), strict=False)))
            for (name, found), wanted in zip(got.items(), map(array, outputs), strict=True):
                assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
                np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=case.rtol, atol=case.atol, err_msg=name)
    finally:
        session.forget()


def array(value: Any) -> np.ndarray:
    from onnx import TensorProto, numpy_helper
    return np.asarray(numpy_helper.to_array(value)) if isinstance(value, TensorProto) else np.asarray(value)


def failure(case: Any, gpu, record) -> str:
    """What goes wrong with a case, or nothing."""
    try:
        play(case, gpu, record)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""
