$# As rows.wgsl, with x in 8-bit integers and integer dot products: `unroll` blocks of every row are on their way at once.
{$ from "rows.wgsl" import K, N with context $}
$$ set blocks, step = K // 32, lanes * unroll
$$ set full = blocks // step * step

$# Blocks from `start` on; beyond the last one they count for nothing.
$$ macro add_blocks(start, guarded)
$$ for u in range(unroll)
        let b{{ u }} = {{ "min(%s + %du, %du)" % (start, u * lanes, blocks - 1) if guarded else "%s + %du" % (start, u * lanes) }};
$$ for r in range(rows)
        {{ w.fetch("row%d + b%d" % (r, u), "w%d_%d" % (r, u)) }}
$$ endfor
$$ endfor
$$ for u in range(unroll)
$$ for t in range(tokens)
        {
            let low = {{ x.load4("(x%d + b%d) * 2u" % (t, u)) }};
            let high = {{ x.load4("(x%d + b%d) * 2u + 1u" % (t, u)) }};
            let scale = {{ scales.load4("x%d + b%d" % (t, u)) }}{{ " * f32(%s + %du < %du)" % (start, u * lanes, blocks) if guarded }};
$$ for r in range(rows)
            sum{{ r }}_{{ t }} += {{ "factor * " if factored }}({{ w.dot("w%d_%d" % (r, u), "low", "high", "scale") }});
$$ endfor
$$ if norm
            square{{ t }} += scale.w;
$$ endif
        }
$$ endfor
$$ endfor
$$ endmacro

$# Add the products of token t's x, which starts at block x<t>, with the rows of the matrix that starts at row `base` of w.
$$ macro products(base="")
$$ for r in range(rows)
$$ set row = "first + %du" % r
    let row{{ r }} = ({{ base + " + " if base }}{{ finish.line(row if N % (rows * groups) == 0 else "min(%s, %du)" % (row, N - 1), r % 2) }}) * {{ blocks }}u;
$$ endfor
$$ if full == step
    {
        let block = lane;
{{ add_blocks("block", false) }}
    }
$$ elif full
    for (var block = lane; block < {{ full }}u; block += {{ step }}u) {
{{ add_blocks("block", false) }}
    }
$$ endif
$$ if full < blocks
    {
        let tail = {{ full }}u + lane;
{{ add_blocks("tail", true) }}
    }
$$ endif
$$ endmacro
