$# A tile of X Wᵀ a workgroup, as tiles.wgsl, with x in 8-bit integers: `depth` blocks of 32 columns at a time go through workgroup memory,
$# codes of w as bytes, and every invocation sums `rows` by `cols` products of blocks in registers.
{$ from "tiles.wgsl" import threads, TX, TY with context $}
$$ set blocks = w.shape[-1] // 32
$$ set squares = attr.eps is defined

$$ macro memory()
var<workgroup> xs: array<vec4<u32>, {{ 2 * depth * tile_rows }}>;
var<workgroup> x_scales: array<vec4<f32>, {{ depth * tile_rows }}>;
var<workgroup> ws: array<vec4<u32>, {{ 2 * depth * tile_cols }}>;
var<workgroup> w_scales: array<vec4<f32>, {{ depth * tile_cols }}>;
$$ endmacro

$# Sum the tile. x_row: the row of x of line `line` of the tile; w_row: the same for w, counted over all matrices.
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
    for (var k = 0u; k < {{ blocks }}u; k += {{ depth }}u) {
        workgroupBarrier();
        for (var i = index; i < {{ depth * tile_cols }}u; i += {{ threads }}u) {
            let line = i % {{ tile_cols }}u;
            let step = i / {{ tile_cols }}u;
            let from_row = {{ w_row }};
            {{ w.fetch("from_row * %du + k + step" % blocks, "b") }}
            ws[i] = vec4<u32>({{ [w.word("b", 0), w.word("b", 1), w.word("b", 2), w.word("b", 3)] | join(", ") }});
            ws[i + {{ depth * tile_cols }}u] = vec4<u32>({{ [w.word("b", 4), w.word("b", 5), w.word("b", 6), w.word("b", 7)] | join(", ") }});
            w_scales[i] = {{ w.scaling("b") }};
        }
        for (var i = index; i < {{ depth * tile_rows }}u; i += {{ threads }}u) {
            let step = i / {{ tile_rows }}u;
            let line = i % {{ tile_rows }}u;
            let at = ({{ x_row }}) * {{ blocks }}u + k + step;
            xs[i] = {{ x.load4("2u * at") }};
            xs[i + {{ depth * tile_rows }}u] = {{ x.load4("2u * at + 1u") }};
            x_scales[i] = {{ scales.load4("at") }};
        }
        workgroupBarrier();
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
                sum{{ r }}_{{ c }} += s.x * (unit{{ c }}.x * f32({{ first | join(" + ") }}) + unit{{ c }}.y * f32({{ second | join(" + ") }}))
                    + unit{{ c }}.z * s.y + unit{{ c }}.w * s.z;
$$ else
                sum{{ r }}_{{ c }} += s.x * unit{{ c }}.x * f32({{ (first + second) | join(" + ") }}){{ " + unit%d.z * (s.y + s.z)" % c if w.layout.shifted }};
$$ endif
$$ endfor
$$ if squares
                square{{ r }} += s.w;
$$ endif
            }
$$ endfor
        }
$$ endfor
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
