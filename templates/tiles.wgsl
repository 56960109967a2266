$# A tile of X Wᵀ a workgroup: tiles of x and w go through workgroup memory `tile_k` columns at a time, w dequantised on the way, and
$# every invocation sums `rows` by `cols` products in registers. Tiles are kept as quads of k by row, so that neighbours read neighbours;
$# their rows are swapped by k, so that the invocations that write one row's quads meet different memory banks, too.
$$ set K, N, Q = x.shape[-1], w.shape[-2], tile_k // 4
$$ set TX, TY = tile_cols // cols, tile_rows // rows
$$ set threads = TX * TY
$$ set whole = K % tile_k == 0

$$ macro memory()
var<workgroup> xs: array<vec4<f32>, {{ tile_rows * Q }}>;
var<workgroup> ws: array<vec4<f32>, {{ tile_cols * Q }}>;
$$ endmacro

$# Where quad q of line c is kept.
$$ macro swapped(c, q, across)
{{ "(%s ^ ((%s) & %du))" % (c, q, [across, 8] | min - 1) if across > 1 else c }}
$$- endmacro

$$ macro spot(c, q, across, lines)
({{ q }}) * {{ lines }}u + {{ swapped(c, q, across) }}
$$- endmacro

$# Name the i-th item of `count` that the invocation loads: its line, and its place of `each` in the line.
$$ macro item(name, i, count, each)
$$ set at = "index + %du" % (i * threads)
        let {{ name }} = {{ at if (i + 1) * threads <= count else "min(%s, %du)" % (at, count - 1) }};
        let {{ name }}_line = {{ name }} / {{ each }}u;
        let {{ name }}_k = {{ name }} % {{ each }}u;
$$- endmacro

$# Open the block that keeps the i-th item, if the invocation has one.
$$ macro kept(i, count)
{{ "" if (i + 1) * threads <= count else "if (index < %du) " % (count - i * threads) }}{
$$- endmacro

$# A quad, or zeros beyond the last column.
$$ macro quad_or_zeros(quad, at, count)
{{ quad if whole else "select(vec4<f32>(), %s, %s < %du)" % (quad, at, count) }}
$$- endmacro

$# Sum the tile. x_row: the row of x of line `line` of the tile; w_row: the same for w, counted over all matrices.
$$ macro products(x_row, w_row)
    let tx = index % {{ TX }}u;
    let ty = {{ "index / %du" % TX if TY > 1 else "0u" }};
$$ for r in range(rows)
$$ for c in range(cols)
    var sum{{ r }}_{{ c }} = 0.0;
$$ endfor
$$ endfor
    for (var k = 0u; k < {{ K }}u; k += {{ tile_k }}u) {
$$ set x_count, x_blocks = tile_rows * Q, K // 4
$$ set w_each, w_blocks = tile_k // w.block, K // w.block
$$ set w_count = tile_cols * w_each
$$ set x_steps, w_steps = (x_count + threads - 1) // threads, (w_count + threads - 1) // threads
$# all loads come before the first barrier: they wait for memory while others still multiply
$$ for i in range(w_steps)
$$ set me = "w%d" % i
{{ item(me, i, w_count, w_each) }}
        let {{ me }}_at = k / {{ w.block }}u + {{ me }}_k;
        let {{ me }}_start = ({{ w_row.replace("line", me + "_line") }}) * {{ w_blocks }}u;
        {{ w.fetch("%s_start + %s" % (me, me + "_at" if whole else "min(%s_at, %du)" % (me, w_blocks - 1)), me + "_block") }}
$$ endfor
$$ for i in range(x_steps)
$$ set me = "x%d" % i
{{ item(me, i, x_count, Q) }}
        let {{ me }}_at = k / 4u + {{ me }}_k;
        let {{ me }}_start = ({{ x_row.replace("line", me + "_line") }}) * {{ x_blocks }}u;
        let {{ me }}_quad = {{ x.load4("%s_start + %s" % (me, me + "_at" if whole else "min(%s_at, %du)" % (me, x_blocks - 1))) }};
$$ endfor
        workgroupBarrier();
$$ for i in range(w_steps)
$$ set me = "w%d" % i
        {{ kept(i, w_count) }}
$$ for j in range(w.block // 4)
            ws[{{ spot(me + "_line", "%s_k * %du + %du" % (me, w.block // 4, j), TX, tile_cols) }}]
                = {{ quad_or_zeros(w.quad(me + "_block", j), me + "_at", w_blocks) }};
$$ endfor
        }
$$ endfor
$$ for i in range(x_steps)
$$ set me = "x%d" % i
        {{ kept(i, x_count) }}
            xs[{{ spot(me + "_line", me + "_k", TY, tile_rows) }}] = {{ quad_or_zeros(me + "_quad", me + "_at", x_blocks) }};
        }
$$ endfor
        workgroupBarrier();
        for (var q = 0u; q < {{ Q }}u; q++) {
            let wx = q * {{ tile_cols }}u + {{ swapped("tx", "q", TX) }};
            let xy = q * {{ tile_rows }}u + {{ swapped("ty", "q", TY) }};
$$ for c in range(cols)
            let b{{ c }} = ws[wx + {{ c * TX }}u];
$$ endfor
$$ for r in range(rows)
            let a{{ r }} = xs[xy + {{ r * TY }}u];
$$ for c in range(cols)
$$ set a, b = "a%d" % r, "b%d" % c
            sum{{ r }}_{{ c }} = fma({{ a }}.y, {{ b }}.y, fma({{ a }}.x, {{ b }}.x, sum{{ r }}_{{ c }}));
            sum{{ r }}_{{ c }} = fma({{ a }}.w, {{ b }}.w, fma({{ a }}.z, {{ b }}.z, sum{{ r }}_{{ c }}));
$$ endfor
$$ endfor
        }
    }
$$ endmacro

$# The column of the result's tile that line `line` of ws holds: with pairs, one invocation has both columns of a pair.
$$ macro column()
{{ "((line / %du * %du + line %% %du) * 2u + line / %du %% 2u)" % (2 * TX, TX, TX, TX) if pairs else "line" }}
$$- endmacro

$# Finish the tile whose first column is `first_col`. row: the result's row of the tile's row `line`; count: how many rows are real.
$$ macro results(row, count, first_col, factor="")
$$ set each = 2 if pairs else 1
$$ set tail = " * factor" if factor else ""
$$ for r in range(rows)
    if (ty + {{ r * TY }}u < {{ count }}) {
        let row = {{ row.replace("line", "(ty + %du)" % (r * TY)) }};
$$ if factor
        let factor = {{ factor }};
$$ endif
$$ for c in range(0, cols, each)
        let col{{ c }} = {{ first_col }} / {{ each }}u + tx + {{ c // each * TX }}u;
$$ set result = "sum%d_%d%s" % (r, c, tail)
        if (col{{ c }} < {{ N // each }}u) {{ finish([result, "sum%d_%d%s" % (r, c + 1, tail)] if pairs else result, "row", "col%d" % c) }}
$$ endfor
    }
$$ endfor
$$ endmacro
