"""The node tests of the ONNX standard, on the GPU and in numpy, held to the tolerances that they bring.

`onnx_failures.txt` lists the cases that fail and why; a case in the list that passes fails these tests, as does one that is not and does not.
"""
import pytest
from tilewright.compiler.device import REFERENCE

pytest.importorskip("onnx", reason="the ONNX frontend needs the package onnx")
import onnx_cases

SHARDS = 16     # so that several processes share them; names are not known before the package has made the cases


def check(shard: int, gpu, record, failures: dict[str, str]) -> None:
    wrong = []
    for name in sorted(onnx_cases.plain_cases())[shard::SHARDS]:
        said = onnx_cases.failure(onnx_cases.plain_cases()[name], gpu, record)
        if said and name not in failures:
            wrong.append(f"{name}: {said}")
        if not said and name in failures:
            wrong.append(f"{name} passes: take it from {onnx_cases.REASONS.name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_on_the_gpu(gpu, device, shard):
    check(shard, gpu, device, onnx_cases.known_failures())


@pytest.mark.parametrize("shard", range(SHARDS))
def test_in_numpy(shard):
    check(shard, None, REFERENCE, onnx_cases.known_failures())


def test_the_list_names_cases():
    unknown = onnx_cases.known_failures().keys() - onnx_cases.plain_cases().keys()
    assert not unknown, f"{onnx_cases.REASONS.name} lists {', '.join(sorted(unknown))}, which are no cases"
    assert all(onnx_cases.known_failures().values()), "every case in the list has a reason"
