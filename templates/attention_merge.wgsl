$# Merge the parts of a row's attention: a part weighs exp(its top - the largest top). `teams` invocations share a unit of the result;
$# each asks for its parts of it before anything else is known, so that memory is waited for once.
{$ from "reduction.wgsl" import scratch, reduce with context $}
{$ from "rounding.wgsl" import rounding_memory, round_quad with context $}
$$ set S, D = parts.shape[2], parts.shape[3] - 4
$$ set U = parts.unit
$$ set units, P = D // U, parts.shape[3] // U
$$ set teams = lanes // units
$$ set held = (S + teams - 1) // teams
$$ set V, zero = ("vec4<f32>", "vec4<f32>()") if U == 4 else ("f32", "0.0")
$$ macro header(s, which)
{{ parts.load4("start + %s * %du + %du" % (s, P, units)) + "." + "xy"[which] if U == 4 else parts.load("start + %s * %du + %du" % (s, P, D + which)) }}
$$- endmacro
{{ scratch(1, lanes, lanes, subgroup) }}
var<workgroup> weights: array<f32, {{ S }}>;
var<workgroup> merged: array<{{ V }}, {{ teams * units }}>;
$$ if rounding
{{ rounding_memory(lanes, subgroup >= 8) }}
$$ endif
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y * {{ parts.shape[1] }}u + group.x;
    let start = head * {{ S * P }}u;
    let team = min(index / {{ units }}u, {{ teams - 1 }}u);
    let column = index % {{ units }}u;
$$ for i in range(held)
    let part{{ i }} = {{ parts.load_unit("start + %s * %du + column" % ("(team + %du)" % (i * teams) if (i + 1) * teams <= S
                                         else "min(team + %du, %du)" % (i * teams, S - 1), P)) }};
$$ endfor
$$ if rounding and rounding.weight
    let weighing = {{ rounding.weight.load4("group.x * %du + column" % units) }};
$$ endif
    var top = -1e30;
    for (var s = index; s < {{ S }}u; s += {{ lanes }}u) { top = max(top, {{ header("s", 0) }}); }
{{ reduce("max", ["top"], lanes, lanes, subgroup) }}
$$ if sinks is defined
    let sink = {{ sinks.load("group.x") }};
    top = max(top, sink);
$$ endif
    var total = 0.0;
    for (var s = index; s < {{ S }}u; s += {{ lanes }}u) {
        let weight = exp({{ header("s", 0) }} - top);
        weights[s] = weight;
        total += weight * {{ header("s", 1) }};
    }
{{ reduce("sum", ["total"], lanes, lanes, subgroup) }}
$$ if sinks is defined
    total += exp(sink - top);
$$ endif
    workgroupBarrier();
    var value = {{ zero }};
$$ for i in range(held)
    {{ "" if (i + 1) * teams <= S else "if (team + %du < %du) " % (i * teams, S) }}{ value += weights[{{ "team + %du" % (i * teams) if (i + 1) * teams <= S else
                                    "min(team + %du, %du)" % (i * teams, S - 1) }}] * part{{ i }}; }
$$ endfor
$$ if teams > 1
    if (index < {{ teams * units }}u) { merged[index] = value; }
    workgroupBarrier();
$$ for t in range(1, teams)
    value {{ "= merged[column]" if t == 1 else "+= merged[column + %du]" % ((t - 1) * units) }};
$$ endfor
    value += merged[column + {{ (teams - 1) * units }}u];
$$ endif
    let plain = value / max(total, 1e-30);
$$ if not rounding or outs | length > 2
    if (index < {{ units }}u) {
        {{ (out.store4 if U == 4 else out.store)("head * %du + column" % units, "plain") }};
    }
$$ endif
$$ if rounding
{{ round_quad(rounding.integers, rounding.scales, "plain", "weighing" if rounding.weight else "", "head * %du + column" % units,
              "index < %du" % units, subgroup >= 8) }}
$$ endif
}
