"""Every kernel computes what its op means: all cases, over schedules with and without subgroups and within the default limits."""
from __future__ import annotations

from dataclasses import replace

import pytest
from cases import Case, cases
from tilewright.compiler.device import DEFAULT_LIMITS, Device
from tilewright.compiler.kernel import Site
from tilewright.templates import KERNELS
from tilewright.testing import check, schedules

SOME = 2        # schedules of a case and form: software adapters take up to half a second to compile one


def forms(device: Device) -> list[Device]:
    """The device, as if without subgroups, and as if with the limits only that every device keeps."""
    return [device, device.without("subgroups"), replace(device, name=f"{device.name} within default limits", limits=dict(DEFAULT_LIMITS))]


@pytest.mark.parametrize("case", [c for c in cases() if not c.kernel.endswith("_matrix")], ids=lambda case: f"{case.kernel}: {case.label}")
def test_every_kernel_against_numpy(gpu, device, case: Case):
    kernel = KERNELS[case.kernel]
    if "f16" in case.label.split()[-1] and "shader-f16" not in device.features:
        pytest.skip(f"{device.name} has no shader-f16")
    for form in forms(device):
        if Site(case.graph, case.graph.ops[0], form).bindings > form.limit("max_storage_buffers_per_shader_stage"):
            assert form.limits == DEFAULT_LIMITS        # where fusion does not make such an op
            continue
        assert list(schedules(case.graph, kernel, form)), f"{case.kernel} has no schedule for {case.label} on {form.name}"
        check(gpu, case.graph, kernel, form, case.feeds, limit=SOME)
