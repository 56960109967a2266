$# Merge the parts of a row's attention: a part weighs exp(its top - the largest top).
{$ from "reduction.wgsl" import scratch, reduce with context $}
{$ from "rounding.wgsl" import rounding_memory, round_quad with context $}
$$ set S, D = parts.shape[2], parts.shape[3] - 2
$$ set ahead = 8 if S % 8 == 0 else 4 if S % 4 == 0 else 2 if S % 2 == 0 else 1
{{ scratch(1, lanes, lanes, subgroup) }}
var<workgroup> weights: array<f32, {{ S }}>;
$$ if rounding
var<workgroup> kept: array<f32, {{ D }}>;
{{ rounding_memory(lanes, subgroup >= 8) }}
$$ endif
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y * {{ parts.shape[1] }}u + group.x;
    let start = head * {{ S * (D + 2) }}u;
    var top = -1e30;
    for (var s = index; s < {{ S }}u; s += {{ lanes }}u) { top = max(top, {{ parts.load("start + s * %du + %du" % (D + 2, D)) }}); }
{{ reduce("max", ["top"], lanes, lanes, subgroup) }}
$$ if sinks is defined
    let sink = {{ sinks.load("group.x") }};
    top = max(top, sink);
$$ endif
    var total = 0.0;
    for (var s = index; s < {{ S }}u; s += {{ lanes }}u) {
        let weight = exp({{ parts.load("start + s * %du + %du" % (D + 2, D)) }} - top);
        weights[s] = weight;
        total += weight * {{ parts.load("start + s * %du + %du" % (D + 2, D + 1)) }};
    }
{{ reduce("sum", ["total"], lanes, lanes, subgroup) }}
$$ if sinks is defined
    total += exp(sink - top);
$$ endif
    workgroupBarrier();
    for (var i = index; i < {{ D }}u; i += {{ lanes }}u) {
        var value = 0.0;
        for (var s = 0u; s < {{ S }}u; s += {{ ahead }}u) {
$$ for k in range(ahead)
            let part{{ k }} = {{ parts.load("start + (s + %du) * %du + i" % (k, D + 2)) }};
$$ endfor
$$ for k in range(ahead)
            value += weights[s + {{ k }}u] * part{{ k }};
$$ endfor
        }
        let merged = value / max(total, 1e-30);
$$ if rounding
        kept[i] = merged;
$$ endif
$$ if not rounding or outs | length > 2
        {{ out.store("head * %du + i" % D, "merged") }};
$$ endif
    }
$$ if rounding
    workgroupBarrier();
    let quad = min(index, {{ D // 4 - 1 }}u);
    let plain = vec4<f32>(kept[4u * quad], kept[4u * quad + 1u], kept[4u * quad + 2u], kept[4u * quad + 3u]);
$$ if rounding.weight
    let weighing = {{ rounding.weight.load4("group.x * %du + quad" % (D // 4)) }};
$$ endif
{{ round_quad(rounding.integers, rounding.scales, "plain", "weighing" if rounding.weight else "", "head * %du + quad" % (D // 4),
              "index < %du" % (D // 4), subgroup >= 8) }}
$$ endif
}
