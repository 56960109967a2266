$# A tile of X Wᵀ a workgroup, as tiles.wgsl, with x in 8-bit integers: `depth` blocks of 32 columns at a time go through workgroup memory,
$# codes of w as bytes, and every invocation sums `rows` by `cols` products of blocks in registers.
{$ from "tiles.wgsl" import threads, TX, TY with context $}
{$ from "whole.wgsl" import number $}
$$ set blocks = w.shape[-1] // 32
$$ set squares = attr.eps is defined
$$ set x_steps, w_steps = (depth * tile_rows + threads - 1) // threads, (depth * tile_cols + threads - 1) // threads

$$ macro memory()
var<workgroup> xs: array<vec4<u32>, {{ 2 * depth * tile_rows }}>;
var<workgroup> x_scales: array<vec4<f32>, {{ depth * tile_rows }}>;
var<workgroup> ws: array<vec4<u32>, {{ 2 * depth * tile_cols }}>;
var<workgroup> w_scales: array<vec4<f32>, {{ depth * tile_cols }}>;
$$ endmacro

$# Ask memory for the invocation's share of the blocks from k on; `keep` puts it into workgroup memory.
$$ macro ask(k, x_row, w_row)
$$ for i in range(w_steps)
$$ set me = "w%d" % i
{{ item(me, i, depth * tile_cols, tile_cols) }}
        {{ w.fetch("(%s) * %du + %s + %s_step" % (w_row.replace("line", me + "_line"), blocks, k, me), me) }}
$$ endfor
$$ for i in range(x_steps)
$$ set me = "x%d" % i
{{ item(me, i, depth * tile_rows, tile_rows) }}
        let {{ me }}_at = ({{ x_row.replace("line", me + "_line") }}) * {{ blocks }}u + {{ k }} + {{ me }}_step;
        let {{ me }}_low = {{ x.load4("2u * %s_at" % me) }};
        let {{ me }}_high = {{ x.load4("2u * %s_at + 1u" % me) }};
        let {{ me }}_scales = {{ scales.load4("%s_at" % me) }};
$$ endfor
$$ endmacro

$$ macro item(name, i, count, lines)
$$ set at = "index + %du" % (i * threads) if i else "index"
        let {{ name }}_item = {{ at if (i + 1) * threads <= count else "min(%s, %du)" % (at, count - 1) }};
        let {{ name }}_line = {{ name }}_item % {{ lines }}u;
        let {{ name }}_step = {{ name }}_item / {{ lines }}u;
$$- endmacro

$$ macro keep()
$$ for i in range(w_steps)
$$ set me, count = "w%d" % i, depth * tile_cols
        {{ "" if (i + 1) * threads <= count else "if (index < %du) " % (count - i * threads) }}{
            ws[{{ me }}_item] = vec4<u32>({{ [w.word(me, 0), w.word(me, 1), w.word(me, 2), w.word(me, 3)] | join(", ") }});
            ws[{{ me }}_item + {{ count }}u] = vec4<u32>({{ [w.word(me, 4), w.word(me, 5), w.word(me, 6), w.word(me, 7)] | join(", ") }});
            w_scales[{{ me }}_item] = {{ w.scaling(me) }};
        }
$$ endfor
$$ for i in range(x_steps)
$$ set me, count = "x%d" % i, depth * tile_rows
        {{ "" if (i + 1) * threads <= count else "if (index < %du) " % (count - i * threads) }}{
            xs[{{ me }}_item] = {{ me }}_low;
            xs[{{ me }}_item + {{ count }}u] = {{ me }}_high;
            x_scales[{{ me }}_item] = {{ me }}_scales;
        }
$$ endfor
$$ endmacro

$# Sum the tile. x_row: the row of x of line `line` of the tile; w_row: the same for w, counted over all matrices. The next blocks are
$# asked for before those at hand are multiplied, so that memory answers meanwhile.
$$ macro products(x_row, w_row)
    let tx = index % {{ TX }}u;
    let ty = {{ "index / %du" % TX if TY > 1 else "0u" }};
$$ for r in range(rows)
$$ for c in range(cols)
    var sum{{ r }}_{{ c }} = 0.0;
$$ endfor
$$ if squares
    var square{{ r }} = 0.0;
$$ endif
$$ endfor
    {
{{ ask("0u", x_row, w_row) }}
{{ keep() }}
    }
    for (var k = 0u; k < {{ blocks }}u; k += {{ depth }}u) {
        workgroupBarrier();
        let next = min(k + {{ depth }}u, {{ blocks - depth }}u);
{{ ask("next", x_row, w_row) }}
$$ for d in range(depth)
        {
$$ for c in range(cols)
            let low{{ c }} = ws[{{ d * tile_cols + c * TX }}u + tx];
            let high{{ c }} = ws[{{ (depth + d) * tile_cols + c * TX }}u + tx];
            let unit{{ c }} = w_scales[{{ d * tile_cols + c * TX }}u + tx];
$$ endfor
$$ for r in range(rows)
            {
                let a = xs[{{ d * tile_rows + r * TY }}u + ty];
                let z = xs[{{ (depth + d) * tile_rows + r * TY }}u + ty];
                let s = x_scales[{{ d * tile_rows + r * TY }}u + ty];
$$ for c in range(cols)
$$ set first, second = [], []
$$ for word in "xyzw"
$$ do first.append("dot4I8Packed(low%d.%s, a.%s)" % (c, word, word))
$$ do second.append("dot4I8Packed(high%d.%s, z.%s)" % (c, word, word))
$$ endfor
$$ if w.layout.halves
                sum{{ r }}_{{ c }} += s.x * (unit{{ c }}.x * {{ number(first) }} + unit{{ c }}.y * {{ number(second) }})
                    + unit{{ c }}.z * s.y + unit{{ c }}.w * s.z;
$$ else
                sum{{ r }}_{{ c }} += s.x * unit{{ c }}.x * {{ number(first + second) }}{{ " + unit%d.z * (s.y + s.z)" % c if w.layout.shifted }};
$$ endif
$$ endfor
$$ if squares
                square{{ r }} += s.w;
$$ endif
            }
$$ endfor
        }
$$ endfor
        workgroupBarrier();
{{ keep() }}
    }
$$ if squares
$$ for r in range(rows)
    square{{ r }} = inverseSqrt(square{{ r }} / {{ blocks * 32 }}.0 + {{ literal(attr.eps) }});
$$ for c in range(cols)
    sum{{ r }}_{{ c }} *= square{{ r }};
$$ endfor
$$ endfor
$$ endif
$$ endmacro
