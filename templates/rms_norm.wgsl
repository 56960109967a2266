$# Divide every row by its root mean square, and multiply by a weight if there is one.
{$ from "reduction.wgsl" import scratch, reduce with context $}
$$ set U, width = x.unit, x.shape[-1]
$$ set units = width // U
{{ scratch(1, lanes, threads, subgroup) }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % {{ lanes }}u;
    let row = (group.x + group.y * {{ across }}u) * {{ groups }}u + index / {{ lanes }}u;
    let start = min(row, {{ rows - 1 }}u) * {{ units }}u;
    var square = 0.0;
    for (var i = lane; i < {{ units }}u; i += {{ lanes }}u) {
        let v = {{ x.load_unit("start + i") }};
        square += {{ "dot(v, v)" if U == 4 else "v * v" }};
    }
{{ reduce("sum", ["square"], lanes, threads, subgroup) }}
    let scale = inverseSqrt(square / {{ width }}.0 + {{ literal(attr.eps) }});
    if (row < {{ rows }}u) {
        for (var i = lane; i < {{ units }}u; i += {{ lanes }}u) {
            let v = {{ x.load_unit("start + i") }} * scale{{ " * " + weight.load_unit("i") if weight is defined else "" }};
$$ if plain
            {{ out.store_unit("start + i", "v") }};
$$ else
$$ for k in range(U)
            {{ finish("v[%d]" % k if U == 4 else "v", "row", "i * %du + %du" % (U, k)) }}
$$ endfor
$$ endif
        }
    }
}
