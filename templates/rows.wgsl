$# Rows of W times a few tokens: `lanes` invocations share the sums of `rows` rows for `tokens` tokens, holding x in registers across
$# the rows. With `norm`, x is normalised on the way: the sum of squares is gathered beside the products and divided out at the end.
{$ from "reduction.wgsl" import scratch, reduce, spread with context $}
{$ from "rounding.wgsl" import rounding_memory, round_quad with context $}
$$ set U, K, N = x.unit, w.shape[-1], w.shape[-2]
$$ set blocks, quads, units = K // w.block, w.block // U, K // U
$$ set threads, step = lanes * groups, lanes * unroll
$$ set product = "dot(%s, %s)" if U == 4 else "%s * %s"
$$ set sums = []
$$ for t in range(tokens)
$$ for r in range(rows)
$$ do sums.append("sum%d_%d" % (r, t))
$$ endfor
$$ if norm
$$ do sums.append("square%d" % t)
$$ endif
$$ endfor

$$ macro memory()
{{ scratch(sums | length, lanes, threads, subgroup) }}
$$- endmacro

$# The invocation's place: its lane and its first row of W; and its sums.
$$ macro place()
    let lane = index % {{ lanes }}u;
    let first = ((group.x + group.y * {{ across }}u) * {{ groups }}u + index / {{ lanes }}u) * {{ rows }}u;
$$ for name in sums
    var {{ name }} = 0.0;
$$ endfor
$$ endmacro

$# The blocks from `block` on, `unroll` of every row on their way at once.
$$ macro add_blocks(factor)
$$ for u in range(unroll)
        let b{{ u }} = block{{ " + %du" % (u * lanes) if u }};
$$ for r in range(rows)
        {{ w.fetch("row%d + b%d" % (r, u), "w%d_%d" % (r, u)) }}
$$ endfor
$$ endfor
$$ for u in range(unroll)
        {
$$ for j in range(quads)
$$ if norm and norm.weight
            let g{{ j }} = {{ norm.weight.load_unit("b%d * %du + %du" % (u, quads, j)) }};
$$ endif
$$ for t in range(tokens)
            let x{{ t }}_{{ j }} = {{ x.load_unit("x%d + b%d * %du + %du" % (t, u, quads, j)) }};
$$ if norm
            square{{ t }} += {{ product % ("x%d_%d" % (t, j), "x%d_%d" % (t, j)) }};
$$ endif
            let v{{ t }}_{{ j }} = x{{ t }}_{{ j }}{{ " * g%d" % j if norm and norm.weight }}{{ " * " + factor if factor }};
$$ endfor
$$ for r in range(rows)
            let q{{ r }}_{{ j }} = {{ w.quad("w%d_%d" % (r, u), j) }};
$$ for t in range(tokens)
            sum{{ r }}_{{ t }} += {{ product % ("q%d_%d" % (r, j), "v%d_%d" % (t, j)) }};
$$ endfor
$$ endfor
$$ endfor
        }
$$ endfor
$$ endmacro

$# Add the products of token t's x, which starts at unit x<t>, with the rows of the matrix that starts at row `base` of w.
$$ macro products(base="", factor="")
$$ for r in range(rows)
$$ set row = "first + %du" % r
    let row{{ r }} = ({{ base + " + " if base }}{{ finish.line(row if N % (rows * groups) == 0 else "min(%s, %du)" % (row, N - 1), r % 2) }}) * {{ blocks }}u;
$$ endfor
$$ if blocks == step
    {
        let block = lane;
{{ add_blocks(factor) }}
    }
$$ else
    for (var block = lane; block < {{ blocks }}u; block += {{ step }}u) {
{{ add_blocks(factor) }}
    }
$$ endif
$$ endmacro

$# Memory for results that are rounded: those of the workgroup, in order of tokens.
$$ macro results_memory()
$$ if rounding
var<workgroup> kept: array<f32, {{ tokens * rows // (2 if pairs else 1) * groups }}>;
{{ rounding_memory(threads, subgroup >= 8) }}
$$ endif
$$ endmacro

$$ set each = 2 if pairs else 1
$$ set items = rows // each
$$ set width = items * groups
$$ set quads_kept = tokens * width // 4
$# Where the invocation's result goes, one of the rows of the result from `token` on, and what its epilogue reads there.
$$ macro ahead(token, total)
    // invocation `lane` stores result `lane`
    let mine = lane % {{ items }}u;
    let at = {{ token }}{{ " + lane / %du" % items if tokens > 1 }};
    let col = first / {{ each }}u + mine;
    {{ finish.ahead("min(at, %du)" % (total - 1), "col" if N % (rows * groups) == 0 else "min(col, %du)" % (N // each - 1)) }}
$$ if rounding
    let quad = min(index, {{ quads_kept - 1 }}u);
    let place = (group.x + group.y * {{ across }}u) * {{ width // 4 }}u + quad % {{ width // 4 }}u;
$$ if rounding.weight
    let weighing = {{ rounding.weight.load4("min(place, %du)" % (N // each // 4 - 1)) }};
$$ endif
$$ endif
$$ endmacro

$# Invocation `lane` gets the sums of its result, every one having got all of them.
$$ macro own_sums()
{{ reduce("sum", sums, lanes, threads, subgroup) }}
$$ if norm
$$ for t in range(tokens)
    square{{ t }} = inverseSqrt(square{{ t }} / {{ K }}.0 + {{ norm.eps }});
$$ for r in range(rows)
    sum{{ r }}_{{ t }} *= square{{ t }};
$$ endfor
$$ endfor
$$ endif
$$ for part in range(each)
    var result{{ part }} = sum{{ part }}_0;
$$ for t in range(tokens)
$$ for i in range(items)
$$ if t or i
    if (lane == {{ t * items + i }}u) { result{{ part }} = sum{{ i * each + part }}_{{ t }}; }
$$ endif
$$ endfor
$$ endfor
$$ endfor
$$ endmacro

$# The same from sums that are spread over subgroups.
$$ macro spread_sums()
$$ set products = []
$$ for t in range(tokens)
$$ for r in range(rows)
$$ do products.append("sum%d_%d" % (r, t))
$$ endfor
$$ endfor
$$ set count, apart = products | length, subgroup // (products | length)
$$ set parts, pitch = lanes // subgroup, (products | length) + (tokens if norm else 0)
{{ spread(products, subgroup) }}
$$ if norm
$$ for t in range(tokens)
    square{{ t }} = subgroupAdd(square{{ t }});
$$ endfor
$$ endif
$$ if parts == 1
$$ for part in range(each)
    var result{{ part }} = {{ products[0] if apart == each == 1 else "subgroupShuffle(%s, min(lane * %du + %du, %du) * %du)" % (products[0], each, part, count - 1, apart) }};
$$ endfor
$$ if norm
    var square = square0;
$$ for t in range(1, tokens)
    if (lane / {{ items }}u == {{ t }}u) { square = square{{ t }}; }
$$ endfor
$$ endif
$$ else
    let shelf = index / {{ subgroup }}u * {{ pitch }}u;
    if (index % {{ apart }}u == 0u) { scratch[shelf + index % {{ subgroup }}u / {{ apart }}u] = {{ products[0] }}; }
$$ if norm
    if (index % {{ subgroup }}u == 0u) {
$$ for t in range(tokens)
        scratch[shelf + {{ count + t }}u] = square{{ t }};
$$ endfor
    }
    var square = 0.0;
$$ endif
    workgroupBarrier();
$$ for part in range(each)
    var result{{ part }} = 0.0;
$$ endfor
    if (lane < {{ items * tokens }}u) {
        let first_shelf = index / {{ lanes }}u * {{ parts * pitch }}u;
$$ for p in range(parts)
$$ for part in range(each)
        result{{ part }} += scratch[first_shelf + {{ p * pitch + part }}u + lane * {{ each }}u];
$$ endfor
$$ if norm
        square += scratch[first_shelf + {{ p * pitch + count }}u{{ " + lane / %du" % items if tokens > 1 }}];
$$ endif
$$ endfor
    }
$$ endif
$$ if norm
    square = inverseSqrt(square / {{ K }}.0 + {{ norm.eps }});
$$ for part in range(each)
    result{{ part }} *= square;
$$ endfor
$$ endif
$$ endmacro

$# Finish the sums, and put the results where `ahead` says.
$$ macro results(token, total)
$$ if subgroup and rows * tokens <= subgroup
{{ spread_sums() }}
$$ else
{{ own_sums() }}
$$ endif
    if (lane < {{ items * tokens }}u && col < {{ N // each }}u && at < {{ total }}u)
        {{ finish(["result0", "result1"] if pairs else "result0", "at", "col",
                  "kept[lane / %du * %du + index / %du * %du + mine]" % (items, width, lanes, items)) }}
$$ if rounding
    workgroupBarrier();
    let plain = vec4<f32>(kept[4u * quad], kept[4u * quad + 1u], kept[4u * quad + 2u], kept[4u * quad + 3u]);
    let line = {{ token }} + quad / {{ width // 4 }}u;
    let live = index < {{ quads_kept }}u && place < {{ N // each // 4 }}u && line < {{ total }}u;
{{ round_quad(rounding.integers, rounding.scales, "plain", "weighing" if rounding.weight else "", "line * %du + place" % (N // each // 4),
              "live", subgroup >= 8) }}
$$ endif
$$ endmacro
