$# Tiles of both operands go through workgroup memory; an invocation keeps rows x cols sums.
$$ set high, wide = side * rows, side * cols
var<workgroup> tile_a: array<{{ scalar }}, {{ high * depth }}>;
var<workgroup> tile_b: array<{{ scalar }}, {{ wide * depth }}>;
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let layer = group.z + group.x / {{ tiles }}u * {{ across }}u;
    let batch = min(layer, {{ batch - 1 }}u);
    let top = group.y * {{ high }}u;
    let left = group.x % {{ tiles }}u * {{ wide }}u;
    let my_row = index / {{ side }}u * {{ rows }}u;
    let my_col = index % {{ side }}u * {{ cols }}u;
$$ for r in range(rows)
$$ for c in range(cols)
    var sum{{ r }}_{{ c }} = {{ scalar }}(0);
$$ endfor
$$ endfor
    for (var start = 0u; start < {{ k }}u; start += {{ depth }}u) {
        for (var t = index; t < {{ high * depth }}u; t += {{ threads }}u) {
            let row = top + t / {{ depth }}u;
            let col = start + t % {{ depth }}u;
            var kept = {{ scalar }}(0);
            if (row < {{ m }}u && col < {{ k }}u) {
$$ set left_operand = elements(at)
$$ set value = left_operand.load(a, "(batch * %du + row) * %du + col" % (m, k))
                {{ left_operand.statements() }}
                kept = {{ value }};
            }
            tile_a[t] = kept;
        }
        for (var t = index; t < {{ wide * depth }}u; t += {{ threads }}u) {
            let row = start + t / {{ wide }}u;
            let col = left + t % {{ wide }}u;
            var kept = {{ scalar }}(0);
            if (row < {{ k }}u && col < {{ n }}u) {
$$ set right_operand = elements(at)
$$ set value = right_operand.load(b, "(batch * %du + row) * %du + col" % (k, n))
                {{ right_operand.statements() }}
                kept = {{ value }};
            }
            tile_b[t] = kept;
        }
        workgroupBarrier();
        for (var d = 0u; d < {{ depth }}u; d += 1u) {
$$ for r in range(rows)
            let a{{ r }}_ = tile_a[(my_row + {{ r }}u) * {{ depth }}u + d];
$$ endfor
$$ for c in range(cols)
            let b{{ c }}_ = tile_b[d * {{ wide }}u + my_col + {{ c }}u];
$$ endfor
$$ for r in range(rows)
$$ for c in range(cols)
            sum{{ r }}_{{ c }} += a{{ r }}_ * b{{ c }}_;
$$ endfor
$$ endfor
        }
        workgroupBarrier();
    }
$$ for r in range(rows)
$$ for c in range(cols)
    if (layer < {{ batch }}u && top + my_row + {{ r }}u < {{ m }}u && left + my_col + {{ c }}u < {{ n }}u) {
        let i = (batch * {{ m }}u + top + my_row + {{ r }}u) * {{ n }}u + left + my_col + {{ c }}u;
$$ set after = elements(at, {made: "sum%d_%d" % (r, c)}, "o")
$$ set value = after.load(result, "i")
        {{ after.statements() }}
        {{ out.store("i", value) }};
    }
$$ endfor
$$ endfor
}
