$# Copy rows of a table by index; an index below 0 stands for the last token of the row's slot.
$$ set blocks, quads = table.shape[1] // table.block, table.block // table.unit
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let block = group.x * {{ lanes }}u + index;
    let row = group.y;
    var id = {{ index.load("row") }};
$$ if last is defined
    if (id < 0) { id = {{ last.load("min(u32(%s), %du)" % (slot.load("row"), last.shape[0] - 1)) }}; }
$$ endif
$$ if pieces
    id -= {{ attr.first }};
    let inside = f32(id >= 0 && id < {{ table.shape[0] }});
$$ endif
    let line = u32(clamp(id, 0, {{ table.shape[0] - 1 }})) * {{ blocks }}u;
    if (block < {{ blocks }}u) {
        {{ table.fetch("line + block", "w") }}
$$ for j in range(quads)
        let v{{ j }} = {{ table.quad("w", j) }}{{ " * inside" if pieces }};
$$ for k in range(table.unit)
        {{ finish("v%d[%d]" % (j, k) if table.unit == 4 else "v%d" % j, "row", "block * %du + %du" % (table.block, j * table.unit + k)) }}
$$ endfor
$$ endfor
    }
}
