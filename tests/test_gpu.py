"""The WebGPU runtime on whatever adapter is there: adapters, memory, pipelines, submissions, timings and errors."""

from __future__ import annotations

import gc
import sys
import time
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from tilewright.runtime import timing
from tilewright.runtime.adapter import DeviceError, adapters, pick

if not adapters():
    pytest.skip("no GPU adapter, not even a software one", allow_module_level=True)

from tilewright.runtime.gpu import Copy, Gpu, Shader, ShaderError

ADD = """
@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> unused: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) { out[id.x] = a[id.x] + 1u; }
"""
COUNT = """
@group(0) @binding(0) var<storage, read_write> n: array<u32>;
@compute @workgroup_size(1)
fn main() { n[0] += 1u; }
"""
SPIN = """
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var x = id.x;
    for (var i = 0u; i < 20000u; i++) { x = x * 1664525u + 1013904223u; }
    out[id.x] = x;
}
"""


@pytest.fixture(scope="module")
def gpu():
    opened = Gpu(pick("auto"))
    yield opened
    opened.close()


def counter(gpu):
    """A buffer and the dispatch that adds one to its first word."""
    buffer = gpu.buffer(4, "counter")
    pipeline = gpu.pipeline(COUNT, ("write",), "count")
    return buffer, (pipeline, gpu.bind(pipeline, [(buffer, 0, 4)]), (1, 1, 1))


def words(octets):
    return octets.view(np.uint32).tolist()


# Adapters


def test_adapters_are_described_and_found_by_part_of_their_name():
    best = adapters()[0]
    assert pick("auto") == pick(best.name[1:].upper()) == best
    assert best.limits["max_buffer_size"] >= 256 << 20
    assert best.limits["max_compute_workgroups_per_dimension"] >= 65535
    assert "subgroup" not in best.features


def test_a_named_adapter_that_is_absent_lists_those_present():
    with pytest.raises(DeviceError, match="no adapter named 'foo'; there are: ") as error:
        pick("foo")
    assert adapters()[0].name in str(error.value)


def test_adapters_come_best_first_and_once(monkeypatch):
    def handle(name, kind, backend):
        info = {"device": name, "adapter_type": kind, "backend_type": backend, "description": ""}
        return SimpleNamespace(info=info, features={"subgroup"}, limits={"max-buffer-size": 1})

    handles = [
        handle("llvmpipe", "CPU", "Vulkan"),
        handle("Big/PCIe/SSE2", "DiscreteGPU", "OpenGL"),
        handle("Old", "IntegratedGPU", "OpenGL"),
        handle("Small", "IntegratedGPU", "Vulkan"),
        handle("Big", "DiscreteGPU", "Vulkan"),
        handle("Big", "DiscreteGPU", "Vulkan"),
    ]
    monkeypatch.setitem(sys.modules, "wgpu", SimpleNamespace(gpu=SimpleNamespace(enumerate_adapters_sync=lambda: handles)))
    found = adapters()
    assert [adapter.name for adapter in found] == ["Big", "Big", "Small", "Old", "llvmpipe"]
    assert found[0].features == {"subgroups"} and found[0].limits == {"max_buffer_size": 1}


def test_without_the_library_there_are_no_adapters(monkeypatch):
    monkeypatch.setitem(sys.modules, "wgpu", None)
    assert adapters() == []
    with pytest.raises(DeviceError, match="no GPU adapter found: a Vulkan"):
        pick("auto")


# Memory


def test_memory_starts_as_zeros_and_keeps_what_is_written(gpu):
    buffer = gpu.buffer(18, "odd")
    assert buffer.size == 20 and not gpu.read(buffer).any()
    gpu.write(buffer, 8, b"abcdef")
    assert gpu.read(buffer).tobytes() == b"\0" * 8 + b"abcdef" + b"\0" * 6
    assert gpu.read(buffer, 8, 5).tobytes() == b"abcde"
    gpu.write(buffer, 4, np.array([1, 2], ml_dtypes.bfloat16))
    assert gpu.read(buffer, 4, 4).view(ml_dtypes.bfloat16).tolist() == [1, 2]


def test_big_data_goes_in_pieces_from_a_memory_mapped_file(gpu, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (9 << 20) + 3, np.uint8)
    data.tofile(tmp_path / "weights")
    buffer = gpu.buffer(data.size)
    gpu.write(buffer, 0, np.memmap(tmp_path / "weights", np.uint8, "r"))
    assert np.array_equal(gpu.read(buffer, 0, data.size), data)


def test_a_write_takes_effect_before_the_next_submission_and_not_earlier(gpu):
    source, target = gpu.buffer(4), gpu.buffer(8)
    for place, value in enumerate([7, 8]):
        gpu.write(source, 0, np.uint32([value]))
        gpu.submit([Copy(source, 0, target, 4 * place, 4)])
    assert words(gpu.read(target)) == [7, 8]


def test_destroyed_memory_lives_while_a_bind_group_holds_it_and_is_refused_elsewhere(gpu):
    buffer, once = counter(gpu)
    buffer.destroy()
    gpu.poll(gpu.submit([gpu.replay([once])]))
    uses = (lambda: gpu.read(buffer), lambda: gpu.write(buffer, 0, b"abcd"), lambda: gpu.bind(once[0], [(buffer, 0, 4)]))
    for use in uses:
        with pytest.raises(DeviceError, match="buffer 'counter' was destroyed and cannot be used"):
            use()


def test_a_buffer_above_the_limit_is_refused(gpu):
    with pytest.raises(DeviceError, match=r"buffer 'embedding' needs [\d,]+ bytes but .* allows [\d,]+ in one buffer; split it"):
        gpu.buffer(gpu.limits["max_buffer_size"] + 1, "embedding")


def test_out_of_memory_says_what_was_asked_and_what_is_held(gpu, monkeypatch):
    import wgpu

    def refuse(**_):
        raise wgpu.GPUValidationError("Validation Error\n\nCaused by:\n  In wgpuDeviceCreateBuffer\n    Not enough memory left.")

    monkeypatch.setattr(gpu._device, "create_buffer", refuse)
    with pytest.raises(DeviceError, match=r"is out of memory: buffer 'weights' needs 1,024 bytes beside the [\d,]+ held"):
        gpu.buffer(1024, "weights")


# Pipelines


def test_a_dispatch_computes_and_unused_bindings_stay_in_the_layout(gpu):
    pipeline = gpu.pipeline(ADD, ("read", "read", "write"), "add")
    source, target = gpu.buffer(2048), gpu.buffer(1024)
    gpu.write(source, 0, np.arange(512, dtype=np.uint32))
    group = gpu.bind(pipeline, [(source, 1024, 1024), (source, 0, 4), (target, 0, 1024)])
    gpu.submit([gpu.replay([(pipeline, group, (4, 1, 1))])])
    assert words(gpu.read(target)) == list(range(257, 513))


def test_equal_shaders_share_a_pipeline_and_many_are_compiled_together(gpu):
    shaders = [Shader(COUNT.replace("1u", f"{step}u"), ("write",), f"add {step}") for step in (3, 5, 3)]
    pipelines = gpu.pipelines(shaders)
    assert pipelines[0] is pipelines[2] is gpu.pipeline(*shaders[0])
    buffer, _ = counter(gpu)
    group = gpu.bind(pipelines[0], [(buffer, 0, 4)])
    gpu.submit([gpu.replay([(pipeline, group, (1, 1, 1)) for pipeline in pipelines])])
    assert words(gpu.read(buffer)) == [11]


def test_a_trusted_shader_computes_the_same(gpu):
    out = []
    for trusted in (False, True):
        pipeline = gpu.pipeline(SPIN, ("write",), "spin", trusted)
        buffer = gpu.buffer(256)
        gpu.submit([gpu.replay([(pipeline, gpu.bind(pipeline, [(buffer, 0, 256)]), (1, 1, 1))])])
        out.append(words(gpu.read(buffer)))
    assert out[0] == out[1] and len(set(out[0])) == 64


@pytest.mark.parametrize("trusted", [False, True])
def test_a_refused_shader_shows_the_lines_around_the_error(gpu, trusted):
    with pytest.raises(ShaderError) as error:
        gpu.pipeline(COUNT.replace("1u", "step"), ("write",), "count", trusted)
    assert str(error.value).splitlines() == [
        "the shader 'count' was refused: no definition in scope for identifier: `step`",
        "    1 | ",
        "    2 | @group(0) @binding(0) var<storage, read_write> n: array<u32>;",
        "    3 | @compute @workgroup_size(1)",
        ">   4 | fn main() { n[0] += step; }",
        "      |                     ^^^^ unknown identifier",
    ]


def test_refusals_that_come_later_name_the_shader_too(gpu):
    with pytest.raises(ShaderError, match=r"'count' was refused: Shader validation error.*\n(.*\n)*>   4 \| fn main"):
        gpu.pipeline(COUNT.replace("+= 1u", "= n[0] + 1.5f"), ("write",), "count")
    with pytest.raises(ShaderError, match=r"the shader 'count' was refused: .*Unable to find entry point 'main'"):
        gpu.pipeline(COUNT.replace("main", "start"), ("write",), "count")
    with pytest.raises(ShaderError, match=r"the shader 'count' was refused: .*not available in the pipeline layout"):
        gpu.pipelines([Shader(COUNT, (), "count"), Shader(ADD, ("read", "read", "write"), "add")])


def test_a_bind_group_that_does_not_fit_is_refused(gpu):
    buffer, (pipeline, _, _) = counter(gpu)
    with pytest.raises(DeviceError, match=r"binding 2 ranges to 'count': .*\(2\) does not match .*\(1\)"):
        gpu.bind(pipeline, [(buffer, 0, 4)] * 2)
    with pytest.raises(DeviceError, match=r"binding 1 ranges to 'count': .*overflow"):
        gpu.bind(pipeline, [(buffer, 0, 8)])


# Submissions


def test_steps_run_in_their_order(gpu):
    buffer, once = counter(gpu)
    log = gpu.buffer(12)
    replay = gpu.replay([once, once])
    gpu.submit([replay, Copy(buffer, 0, log, 0, 4), replay, replay, Copy(buffer, 0, log, 4, 4), replay, Copy(buffer, 0, log, 8, 4)])
    assert words(gpu.read(log)) == [2, 6, 8]


def test_a_refused_submission_is_an_error_and_the_next_one_works(gpu):
    buffer, once = counter(gpu)
    too_many = gpu.limits["max_compute_workgroups_per_dimension"] + 1
    with pytest.raises(DeviceError, match=f"encoding: .*{too_many}"):
        gpu.submit([gpu.replay([(*once[:2], (too_many, 1, 1))])])
    with pytest.raises(DeviceError, match="encoding: Copy at offset 0 for 8 bytes"):
        gpu.submit([Copy(buffer, 0, gpu.buffer(8), 0, 8)])
    gpu.submit([gpu.replay([once])])
    assert words(gpu.read(buffer)) == [1]


def test_a_readback_arrives_while_a_later_submission_still_runs(gpu):
    if gpu.info.backend.startswith("OpenGL"):
        pytest.skip("OpenGL runs submissions one at a time and the host waits")
    buffer, once = counter(gpu)
    target, readback = gpu.buffer(1 << 14), gpu.readback(4)
    pipeline = gpu.pipeline(SPIN, ("write",), "spin")
    spin = (pipeline, gpu.bind(pipeline, [(target, 0, 1 << 14)]), (64, 1, 1))
    repeat, seconds = 1, 0.0
    while seconds < 0.2:  # a job that is long on this adapter
        repeat *= 2
        start = time.perf_counter()
        gpu.poll(gpu.submit([gpu.replay([spin] * repeat)]))
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    short = gpu.submit([gpu.replay([once]), Copy(buffer, 0, readback, 0, 4)])
    readback.request()
    long = gpu.submit([gpu.replay([spin] * repeat)])
    assert words(readback.wait(short)) == [1]
    early = time.perf_counter() - start
    gpu.poll(long)
    whole = time.perf_counter() - start
    assert early < whole / 2, f"the readback took {early:.3f} s of {whole:.3f} s"


def test_two_frames_in_turn_read_every_count_once(gpu):
    buffer, once = counter(gpu)
    replay, readbacks, indices, seen = gpu.replay([once]), [gpu.readback(8), gpu.readback(8)], {}, []
    for frame in range(21):
        if frame < 20:
            indices[frame] = gpu.submit([replay, Copy(buffer, 0, readbacks[frame % 2], 4, 4)])
            readbacks[frame % 2].request()
        if frame > 0:
            seen += words(readbacks[(frame - 1) % 2].wait(indices[frame - 1]))[1:]
    assert seen == list(range(1, 21))


def test_misused_readbacks_are_errors(gpu):
    buffer, once = counter(gpu)
    readback = gpu.readback(4, "token")
    with pytest.raises(DeviceError, match=r"submission \d+ was never made; the last is \d+"):
        gpu.poll(1 << 40)
    readback.request()
    with pytest.raises(DeviceError, match="buffer 'token' is being read and cannot be copied into; wait for it first"):
        gpu.submit([Copy(buffer, 0, readback, 0, 4)])
    assert words(readback.wait(gpu.submit([]))) == [0]
    readback.request()
    del readback  # wgpu may answer after it is gone
    gc.collect()
    gpu.poll(gpu.submit([gpu.replay([once])]))
    assert words(gpu.read(buffer)) == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_submissions_leave_nothing_behind(gpu):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    buffer, once = counter(gpu)
    replay, readback = gpu.replay([once]), gpu.readback(4)
    for round_ in range(3):
        for _ in range(1500):
            value = readback.wait(gpu.submit([replay, Copy(buffer, 0, readback, 0, 4)]))
        if round_ == 0:
            before = resident()
    assert words(value) == [4500]
    assert resident() - before < 4 << 20


# Measurements and the end


def test_the_subgroup_size_is_a_power_of_two(gpu):
    assert gpu.subgroup_size in ({4, 8, 16, 32, 64, 128} if "subgroups" in gpu.features else {0})


def test_every_pass_is_timed(gpu):
    buffer, once = counter(gpu)
    target = gpu.buffer(1 << 14)
    pipeline = gpu.pipeline(SPIN, ("write",), "spin")
    spin = (pipeline, gpu.bind(pipeline, [(target, 0, 1 << 14)]), (64, 1, 1))
    if "timestamp-query" not in gpu.features:
        with pytest.raises(DeviceError, match="has no timestamp queries"):
            timing.passes(gpu, [[once]])
        return
    start = time.perf_counter()
    first, slow, last = np.diff(timing.passes(gpu, [[once], [spin], [once]]))
    assert words(gpu.read(buffer)) == [2]
    assert 0 <= first < slow and 0 <= last < slow
    assert slow < time.perf_counter() - start
    assert timing.passes(gpu, [[once]] * 2100).shape == (2100, 2)  # more than one set of queries holds


def test_a_lost_or_closed_device_is_an_error_at_the_next_call():
    gpu = Gpu(pick("auto"))
    buffer, once = counter(gpu)
    gpu.buffer(4).destroy()
    gpu._device.destroy()
    for call in (lambda: gpu.submit([gpu.replay([once])]), lambda: gpu.buffer(4), lambda: gpu.read(buffer)):
        with pytest.raises(DeviceError, match="the GPU was lost"):
            call()
    gpu.close()
    gpu.close()
    calls = (lambda: gpu.submit([]), lambda: gpu.buffer(4), lambda: gpu.read(buffer), lambda: gpu.write(buffer, 0, b"abcd"))
    for call in (*calls, lambda: gpu.poll(1), lambda: gpu.pipeline(ADD, ("read",)), lambda: gpu.bind(once[0], [(buffer, 0, 4)])):
        with pytest.raises(DeviceError, match=r"was closed; open it again|'counter' was destroyed"):
            call()
