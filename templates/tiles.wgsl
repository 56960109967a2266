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
{{ "(%s ^ (%s & %du))" % (c, q, [across, 8] | min - 1) if across > 1 else c }}
$$- endmacro

$$ macro spot(c, q, across, lines)
({{ q }}) * {{ lines }}u + {{ swapped(c, q, across) }}
$$- endmacro

$# Name the i-th item of `count` that the invocation loads: its line, and its place of `each` in the line.
$$ macro item(name, i, count, each)
        let {{ name }}{{ i }} = {{ "index + %du" % (i * threads) if (i + 1) * threads <= count else "min(index + %du, %du)" % (i * threads, count - 1) }};
        let {{ name }}{{ i }}_line = {{ name }}{{ i }} / {{ each }}u;
        let {{ name }}{{ i }}_k = {{ name }}{{ i }} % {{ each }}u;
$$ endmacro

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
$$ set x_count, w_count, w_each = tile_rows * Q, tile_cols * tile_k // w.block, tile_k // w.block
$$ set x_steps, w_steps = (x_count + threads - 1) // threads, (w_count + threads - 1) // threads
$# all loads come before the first barrier: they wait for memory while others still multiply
$$ for i in range(w_steps)
{{ item("w", i, w_count, w_each) }}
        let w{{ i }}_at = k / {{ w.block }}u + w{{ i }}_k;
        {{ w.fetch("(%s) * %du + %s" % (w_row.replace("line", "w%d_line" % i), K // w.block, "w%d_at" % i if whole else "min(w%d_at, %du)" % (i, K // w.block - 1)), "w%d_block" % i) }}
$$ endfor
$$ for i in range(x_steps)
{{ item("x", i, x_count, Q) }}
        let x{{ i }}_at = k / 4u + x{{ i }}_k;
        let x{{ i }}_quad = {{ x.load4("(%s) * %du + %s" % (x_row.replace("line", "x%d_line" % i), K // 4, "x%d_at" % i if whole else "min(x%d_at, %du)" % (i, K // 4 - 1))) }};
$$ endfor
        workgroupBarrier();
$$ for i in range(w_steps)
        {{ "" if (i + 1) * threads <= w_count else "if (index < %du) " % (w_count - i * threads) }}{
$$ for j in range(w.block // 4)
$$ set quad = w.quad("w%d_block" % i, j)
            ws[{{ spot("w%d_line" % i, "w%d_k * %du + %du" % (i, w.block // 4, j), TX, tile_cols) }}] = {{ quad if whole else "select(vec4<f32>(), %s, w%d_at < %du)" % (quad, i, K // w.block) }};
$$ endfor
        }
$$ endfor
$$ for i in range(x_steps)
        {{ "" if (i + 1) * threads <= x_count else "if (index < %du) " % (x_count - i * threads) }}{
            xs[{{ spot("x%d_line" % i, "x%d_k" % i, TY, tile_rows) }}] = {{ "x%d_quad" % i if whole else "select(vec4<f32>(), x%d_quad, x%d_at < %du)" % (i, i, K // 4) }};
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
            sum{{ r }}_{{ c }} = fma({{ a }}.w, {{ b }}.w, fma({{ a }}.z, {{ b }}.z, fma({{ a }}.y, {{ b }}.y, fma({{ a }}.x, {{ b }}.x, sum{{ r }}_{{ c }}))));
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
$$ for r in range(rows)
    if (ty + {{ r * TY }}u < {{ count }}) {
        let row = {{ row.replace("line", "(ty + %du)" % (r * TY)) }};
$$ if factor
        let factor = {{ factor }};
$$ endif
$$ for c in range(0, cols, each)
$$ set tail = " * factor" if factor else ""
        if ({{ first_col }} / {{ each }}u + tx + {{ c // each * TX }}u < {{ N // each }}u) {{ finish(["sum%d_%d%s" % (r, c, tail), "sum%d_%d%s" % (r, c + 1, tail)] if pairs else "sum%d_%d%s" % (r, c, tail), "row", "(%s / %du + tx + %du)" % (first_col, each, c // each * TX)) }}
$$ endfor
    }
$$ endfor
$$ endmacro
