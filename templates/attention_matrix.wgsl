$# Attention of many rows of one sequence by products of small matrices. A workgroup takes `pairs` pairs (row, query head) that share their
$# keys, a subgroup those of one matrix; it keeps their queries and results in registers. Scores go through workgroup memory, where
$# `sharing` invocations take a pair each: exp(score - top) becomes an operand again, in f16. Results cannot be scaled where they are, so
$# `top` stays behind the largest score until that is SLACK above it, which is rare: e^SLACK is far from the largest number of f16.
{$ from "_attention.wgsl" import rules, across with context $}
$$ set m, n, depth = matrices.m, matrices.n, matrices.k
$$ set T, H, KV, R, D = q.shape[0], q.shape[1], k.shape[1], k.shape[2], q.shape[2]
$$ set G, units, lanes, sharing = H // KV, D // 4, teams * subgroup, subgroup // m
$$ set pitch, score_pitch, weight_pitch = units + 2, block // 4 + 1, block // 4 + 2
$$ set count, steps = block * units, (block * units + lanes - 1) // lanes
$$ set own, SLACK = block // 4 // sharing, "8.0"
var<workgroup> tile: array<vec4<f16>, {{ lines * pitch }}>;        // keys, then values
var<workgroup> scores: array<vec4<f32>, {{ pairs * score_pitch }}>;
var<workgroup> weights: array<vec4<f16>, {{ pairs * weight_pitch }}>;
var<workgroup> rising: array<atomic<u32>, 4>;      // one of them counts: see tiles_matrix.wgsl for the size
{{ rules(mask, window, cap) }}
$$ macro bent(s)
{{ "vec4<f32>(bend(%s.x), bend(%s.y), bend(%s.z), bend(%s.w))" % (s, s, s, s) if cap else s }}
$$- endmacro
$# Ask memory for the invocation's share of the keys and values from j on.
$$ macro ask(j)
$$ for i in range(steps)
        {
            let item = {{ "index + %du" % (i * lanes) if (i + 1) * lanes <= count else "min(index + %du, %du)" % (i * lanes, count - 1) }};
            let at = cache + u32(min({{ j }} + i32(item / {{ units }}u), end - 1)) % {{ R }}u * {{ units }}u + item % {{ units }}u;
            key_quad{{ i }} = {{ k.half4("at") if halves.k else "vec4<f16>(%s)" % k.load4("at") }};
            value_quad{{ i }} = {{ v.half4("at") if halves.v else "vec4<f16>(%s)" % v.load4("at") }};
        }
$$ endfor
$$ endmacro
$# Every result matrix goes through workgroup memory, where its pair's invocations do what the caller says with each quad, scores[at];
$# with `again` it comes back.
$$ macro each_result(again=false)
$$ for d in range(D // n)
        subgroupMatrixStore<row_major>(&scores, shelf, acc{{ d }}, {{ score_pitch }}u);
        workgroupBarrier();
$$ for e in range(n // 4 // sharing)
        {
            let unit = part + {{ e * sharing }}u;
            let at = shelf + line * {{ score_pitch }}u + unit;
            {{ caller(d) }}
        }
$$ endfor
        workgroupBarrier();
$$ if again
        acc{{ d }} = subgroupMatrixLoad<{{ matrices.sums }}, row_major>(&scores, shelf, {{ score_pitch }}u);
        workgroupBarrier();
$$ endif
$$ endfor
$$ endmacro
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
    let team = min(subgroup, {{ teams - 1 }}u);     // as in tiles_matrix.wgsl
    let line = lane / {{ sharing }}u;
    let part = lane % {{ sharing }}u;
    let start = group.x * {{ pairs }}u;
    let shelf = team * {{ m * score_pitch }}u;
    let cache = (min(u32({{ slot.load("0u") }}), {{ k.shape[0] - 1 }}u) * {{ KV }}u + group.y) * {{ R * units }}u;
    // keys that any row of the tile sees
    var begin = 2147483647;
    var end = 0;
    for (var t = start / {{ G }}u; t < min((start + {{ pairs - 1 }}u) / {{ G }}u + 1u, {{ T }}u); t++) {
        let p = {{ position.load("t") }};
        if (p >= 0) { begin = min(begin, first_key(p)); }
        end = max(end, p + 1);
    }
    for (var i = index; i < {{ pairs * units }}u; i += {{ lanes }}u) {
        let pair = min(start + i / {{ units }}u, {{ T * G - 1 }}u);
        tile[i / {{ units }}u * {{ pitch }}u + i % {{ units }}u]
            = {{ q.half4("(pair / %du * %du + group.y * %du + pair %% %du) * %du + i %% %du" % (G, H, G, G, units, units)) }};
    }
    if (index == 0u) { atomicStore(&rising[0], 0u); }
    workgroupBarrier();
$$ for d in range(D // depth)
    let q{{ d }} = subgroupMatrixLoad<{{ matrices.left }}, row_major>(&tile, team * {{ m * pitch }}u + {{ d * depth // 4 }}u, {{ pitch }}u);
$$ endfor
$$ for d in range(D // n)
    var acc{{ d }} = {{ matrices.sums }}();
$$ endfor
    let pair = start + team * {{ m }}u + line;
    let p = {{ position.load("min(pair / %du, %du)" % (G, T - 1)) }};
    let first = first_key(p);
    var top = -1e30;
    var sum = 0.0;
    // the next block's keys and values are asked for before those at hand are multiplied, so that memory answers meanwhile
$$ for i in range(steps)
    var key_quad{{ i }} = vec4<f16>();
    var value_quad{{ i }} = vec4<f16>();
$$ endfor
{{ ask("begin") }}
    for (var j = begin; j < end; j += {{ block }}) {
        workgroupBarrier();
$$ for i in range(steps)
        {{ "" if (i + 1) * lanes <= count else "if (index < %du) " % (count - i * lanes) }}{
            let to = (index + {{ i * lanes }}u) / {{ units }}u * {{ pitch }}u + (index + {{ i * lanes }}u) % {{ units }}u;
            tile[to] = key_quad{{ i }};
            tile[to + {{ block * pitch }}u] = value_quad{{ i }};
        }
$$ endfor
        workgroupBarrier();
{{ ask("j + %d" % block) }}
$$ for c in range(block // n)
        {
            var score = {{ matrices.sums }}();
$$ for d in range(D // depth)
            score = subgroupMatrixMultiplyAccumulate(q{{ d }}, subgroupMatrixLoad<{{ matrices.right }}, col_major>(
                &tile, {{ c * n * pitch + d * depth // 4 }}u, {{ pitch }}u), score);
$$ endfor
            subgroupMatrixStore<row_major>(&scores, shelf + {{ c * n // 4 }}u, score, {{ score_pitch }}u);
        }
$$ endfor
        workgroupBarrier();
        var best = -1e30;
$$ for e in range(own)
        let key{{ e }} = vec4<i32>(j + 4 * i32(part) + {{ 4 * e * sharing }}) + vec4<i32>(0, 1, 2, 3);
        let seen{{ e }} = (key{{ e }} >= vec4<i32>(first)) & (key{{ e }} <= vec4<i32>(p));
        let raw{{ e }} = scores[shelf + line * {{ score_pitch }}u + part + {{ e * sharing }}u] * {{ scale }};
        let score{{ e }} = select(vec4<f32>(-1e30), {{ bent("raw%d" % e) }}, seen{{ e }});
        best = max(best, max(max(score{{ e }}.x, score{{ e }}.y), max(score{{ e }}.z, score{{ e }}.w)));
$$ endfor
{{ across("max", ["best"], sharing, lanes, subgroup) }}
        let before = top;
        if (best > top + {{ SLACK }}) {
            top = best;
            if (before > -1e29) { atomicStore(&rising[0], 1u); }       // before that there is nothing to scale
        }
        let fade = exp(before - top);
        sum *= fade;
$$ for e in range(own)
        let weight{{ e }} = select(vec4<f32>(), exp(score{{ e }} - top), seen{{ e }});
        sum += dot(weight{{ e }}, vec4<f32>(1.0));
        weights[(team * {{ m }}u + line) * {{ weight_pitch }}u + part + {{ e * sharing }}u] = vec4<f16>(weight{{ e }});
$$ endfor
        workgroupBarrier();
        if (workgroupUniformLoad(&rising[0]) != 0u) {
$$ call(d) each_result(again=true)
scores[at] *= fade;
$$ endcall
            if (index == 0u) { atomicStore(&rising[0], 0u); }
        }
$$ for c in range(block // depth)
        {
            let weight = subgroupMatrixLoad<{{ matrices.left }}, row_major>(
                &weights, team * {{ m * weight_pitch }}u + {{ c * depth // 4 }}u, {{ weight_pitch }}u);
$$ for d in range(D // n)
            acc{{ d }} = subgroupMatrixMultiplyAccumulate(weight, subgroupMatrixLoad<{{ matrices.right }}, row_major>(
                &tile, {{ (block + c * depth) * pitch + d * n // 4 }}u, {{ pitch }}u), acc{{ d }});
$$ endfor
        }
$$ endfor
    }
{{ across("sum", ["sum"], sharing, lanes, subgroup) }}
    let head = group.y * {{ G }}u + pair % {{ G }}u;
$$ if sinks is defined
    let sink = {{ sinks.load("min(head, %du)" % (H - 1)) }};
    let above = max(top, sink);
    let share = exp(top - above) / (sum * exp(top - above) + exp(sink - above));
$$ else
    let share = 1.0 / max(sum, 1e-30);
$$ endif
    workgroupBarrier();
$$ call(d) each_result()
if (pair < {{ T * G }}u) { {{ out.store4("(pair / %du * %du + head) * %du + %du + unit" % (G, H, units, d * n // 4), "scores[at] * share") }}; }
$$ endcall
}
