$# A tile of X Wᵀ a workgroup by the products of small matrices that subgroups have in hardware
$# (https://github.com/gpuweb/gpuweb/blob/main/proposals/subgroup-matrix.md): tiles of x and w go through workgroup memory as f16, `tile_k`
$# columns at a time, w dequantised on the way, and a subgroup sums `sub_rows` by `sub_cols` products in f32. Rows of the tiles are two
$# quads apart more than they are long, so that those of a small matrix lie in different memory banks.
$$ set K, N, Q = x.shape[-1], w.shape[-2], tile_k // 4
$$ set pitch = Q + 2
$$ set m, n, k = matrices.m, matrices.n, matrices.k
$$ set down, across, along = sub_rows // m, sub_cols // n, tile_k // k
$$ set wide = tile_cols // sub_cols
$$ set subgroups = tile_rows // sub_rows * wide
$$ set threads = subgroups * subgroup
$$ set x_count, w_each = tile_rows * Q, tile_k // w.block
$$ set w_count = tile_cols * w_each
$$ set x_steps, w_steps = (x_count + threads - 1) // threads, (w_count + threads - 1) // threads

$# Variables of kernels with matrices take whole groups of 16 bytes: matrices must begin on 16 bytes, and drivers align a variable no more than
$# its elements ask for.
$$ macro memory()
var<workgroup> xs: array<vec4<f16>, {{ tile_rows * pitch }}>;
var<workgroup> ws: array<vec4<f16>, {{ tile_cols * pitch }}>;
var<workgroup> sums: array<f32, {{ subgroups * m * n }}>;
$$ endmacro

$# The parameters of `main`: what tells a subgroup's invocations from others' must be known to be the same for all of them.
$$ macro place()
@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32
$$- endmacro

$# Name the i-th item of `count` that the invocation loads: its line, and its place of `each` in the line.
$$ macro item(name, i, count, each)
$$ set at = "index + %du" % (i * threads) if i else "index"
        let {{ name }}_item = {{ at if (i + 1) * threads <= count else "min(%s, %du)" % (at, count - 1) }};
        let {{ name }}_line = {{ name }}_item / {{ each }}u;
        let {{ name }}_step = {{ name }}_item % {{ each }}u;
$$- endmacro

$# Open the block that keeps the i-th item, if the invocation has one.
$$ macro kept(i, count)
{{ "" if (i + 1) * threads <= count else "if (index < %du) " % (count - i * threads) }}{
$$- endmacro

$# Ask memory for the invocation's share of the columns from `at` on; `keep` puts it into workgroup memory.
$$ macro ask(at, x_row, w_row)
$$ for i in range(w_steps)
$$ set me = "w%d" % i
{{ item(me, i, w_count, w_each) }}
        {{ w.fetch("(%s) * %du + %s / %du + %s_step" % (w_row.replace("line", me + "_line"), K // w.block, at, w.block, me), me) }}
$$ endfor
$$ for i in range(x_steps)
$$ set me = "x%d" % i
{{ item(me, i, x_count, Q) }}
        let {{ me }} = {{ x.half4("(%s) * %du + %s / 4u + %s_step" % (x_row.replace("line", me + "_line"), K // 4, at, me)) }};
$$ endfor
$$ endmacro

$$ macro keep()
$$ for i in range(w_steps)
$$ set me = "w%d" % i
        {{ kept(i, w_count) }}
            let {{ me }}_to = {{ me }}_line * {{ pitch }}u + {{ me }}_step * {{ w.block // 4 }}u;
$$ for j in range(w.block // 4)
            ws[{{ me }}_to + {{ j }}u] = vec4<f16>({{ w.quad(me, j) }});
$$ endfor
        }
$$ endfor
$$ for i in range(x_steps)
$$ set me = "x%d" % i
        {{ kept(i, x_count) }} xs[{{ me }}_line * {{ pitch }}u + {{ me }}_step] = {{ me }}; }
$$ endfor
$$ endmacro

$$ macro multiply()
$$ for s in range(along)
        {
$$ for i in range(down)
            let left{{ i }} = subgroupMatrixLoad<{{ matrices.left }}, row_major>(
                &xs, x_from + {{ i * m * pitch + s * k // 4 }}u, {{ pitch }}u);
$$ endfor
$$ for j in range(across)
            let right{{ j }} = subgroupMatrixLoad<{{ matrices.right }}, col_major>(
                &ws, w_from + {{ j * n * pitch + s * k // 4 }}u, {{ pitch }}u);
$$ for i in range(down)
            sum{{ i }}_{{ j }} = subgroupMatrixMultiplyAccumulate(left{{ i }}, right{{ j }}, sum{{ i }}_{{ j }});
$$ endfor
$$ endfor
        }
$$ endfor
$$ endmacro

$# Sum the tile. x_row: the row of x of line `line` of the tile; w_row: the same for w. The next columns are asked for before those at hand
$# are multiplied, so that memory answers meanwhile.
$$ macro products(x_row, w_row)
    let team = min(subgroup, {{ subgroups - 1 }}u);     // no more than there are, which makes front ends' checks of what is loaded fall away
    let x_from = {{ "team / %du" % wide if wide > 1 else "team" }} * {{ sub_rows * pitch }}u;
    let w_from = {{ "team %% %du * %d" % (wide, sub_cols * pitch) if wide > 1 else "0" }}u;
$$ for i in range(down)
$$ for j in range(across)
    var sum{{ i }}_{{ j }} = {{ matrices.sums }}();
$$ endfor
$$ endfor
    {
{{ ask("0u", x_row, w_row) }}
{{ keep() }}
    }
    for (var at = 0u; at < {{ K }}u; at += {{ tile_k }}u) {
        workgroupBarrier();
        let next = min(at + {{ tile_k }}u, {{ K - tile_k }}u);
{{ ask("next", x_row, w_row) }}
{{ multiply() }}
        workgroupBarrier();
{{ keep() }}
    }
$$ endmacro

$# Finish the tile whose first column is `first_col`. row: the result's row of the tile's row `line`; count: how many rows are real.
$$ macro results(row, count, first_col, factor="")
$$ set tail = " * factor" if factor else ""
$$ set each = 2 if pairs else 1
    let line_from = {{ "team / %du" % wide if wide > 1 else "team" }} * {{ sub_rows }}u + lane / {{ n // each }}u;
    let col_from = {{ first_col }} / {{ each }}u{{ " + team %% %du * %du" % (wide, sub_cols // each) if wide > 1 }} + lane % {{ n // each }}u;
    let mine = team * {{ m * n }}u + lane * {{ each }}u;
$$ for i in range(down)
$$ for j in range(across)
    subgroupMatrixStore<row_major>(&sums, team * {{ m * n }}u, sum{{ i }}_{{ j }}, {{ n }}u);
    workgroupBarrier();
    {
        let col = col_from + {{ j * n // each }}u;
$$ for e in range(0, m * n // each, subgroup)
        {
            let line = line_from + {{ i * m + e * each // n }}u;
            if (line < {{ count }} && col < {{ N // each }}u) {
                let row = {{ row }};
$$ if factor
                let factor = {{ factor }};
$$ endif
$$ set result = "sums[mine + %du]" % (e * each) + tail
                {{ finish([result, "sums[mine + %du]" % (e * each + 1) + tail] if pairs else result, "row", "col") }}
            }
        }
$$ endfor
    }
$$ if i + 1 < down or j + 1 < across
    workgroupBarrier();
$$ endif
$$ endfor
$$ endfor
$$ endmacro
