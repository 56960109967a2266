$# For a row and a part of the keys that it sees: the sum of exp(score - top) * value, then top, the sum of exp(score - top), 0, 0.
$# A workgroup takes `heads` query heads that share their keys. `cols` invocations share a key, so `teams` keys are at work at a time,
$# `batch` times. Every team keeps a softmax of its own, without barriers; the teams are merged at the end.
$# With `divided` there is one part, and the result is the attention itself.
{$ from "_attention.wgsl" import rules, shared_lanes, across with context $}
{$ from "reduction.wgsl" import spread with context $}
$$ set U, D = q.unit, q.shape[2]
$$ set KV, R = k.shape[1], k.shape[2]
$$ set units, G, teams = D // U, q.shape[1] // KV, lanes // cols
$$ set per = units // cols
$$ set V, zero = ("vec4<f32>", "vec4<f32>()") if U == 4 else ("f32", "0.0")
$$ set product = "dot(%s, %s)" if U == 4 else "%s * %s"
$# With subgroups the scores of a step are spread over the invocations that share a key, so that each of them makes few exponentials;
$# `own` scores each, of one head, `sharing` invocations to a head, `padded` heads, and `alike` invocations that hold the same.
$$ set spreading = subgroup and cols >= padded
$$ set own, alike = [1, padded * batch // cols] | max, [1, cols // (padded * batch)] | max
$$ set sharing = cols // padded if spreading else 1
$$ set scores = []
$$ for h in range(padded if spreading else heads)
$$ for b in range(batch)
$$ do scores.append("s%d_%d" % (h, b))
$$ endfor
$$ endfor
$$ set P = units if divided else (D + 4) // U

$# Where head h (a number or an expression) of the workgroup keeps its result.
$$ macro place(h)
((row * {{ q.shape[1] }}u + head + {{ "%du" % h if h is number else h }}){{ "" if divided else " * %du + group.x" % splits }}) * {{ P }}u
$$- endmacro
$$ macro store_result(h, i, value)
{{ (out.store4 if U == 4 else out.store)(place(h) + " + " + i, value) }};
$$- endmacro
$$ macro store_header(h, top, total)
$$ if U == 4
{{ out.store4(place(h) + " + %du" % units, "vec4<f32>(%s, %s, 0.0, 0.0)" % (top, total)) }};
$$- else
$$ for value in (top, total, "0.0", "0.0")
{{ out.store(place(h) + " + %du" % (D + loop.index0), value) }};
$$ endfor
$$- endif
$$ endmacro
var<workgroup> merged: array<{{ V }}, {{ together * teams * units }}>;
var<workgroup> tops: array<f32, {{ teams * heads }}>;
var<workgroup> sums: array<f32, {{ teams * heads }}>;
var<workgroup> weights: array<f32, {{ teams * heads }}>;
var<workgroup> best: array<f32, {{ heads }}>;
var<workgroup> totals: array<f32, {{ heads }}>;
{{ shared_lanes(heads * batch, cols, lanes, subgroup) }}
{{ rules(mask, window, cap) }}
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = group.z;
    let head = group.y * {{ heads }}u;
    let col = index % {{ cols }}u;
    let team = index / {{ cols }}u;
    let p = {{ position.load("row") }};
    let first = first_key(p);
    let each = max({{ least }}, (max(p + 1 - first, 0) + {{ splits - 1 }}) / {{ splits }});
    let begin = first + i32(group.x) * each;
    let end = min(begin + each, p + 1);
    if (begin >= end) {
$$ for h in range(heads)
        for (var i = index; i < {{ units }}u; i += {{ lanes }}u) { {{ store_result(h, "i", zero) }} }
$$ if not divided
        if (index == 0u) { {{ store_header(h, "-1e30", "0.0") }} }
$$ endif
$$ endfor
        return;
    }
    let cache = (min(u32({{ slot.load("row") }}), {{ k.shape[0] - 1 }}u) * {{ KV }}u + head / {{ G }}u) * {{ R * units }}u + col;
$$ for h in range(heads)
$$ for u in range(per)
    let q{{ h }}_{{ u }} = {{ q.load_unit("(row * %du + head + %du) * %du + col + %du" % (q.shape[1], h, units, u * cols)) }} * {{ scale }};
    var acc{{ h }}_{{ u }} = {{ zero }};
$$ endfor
$$ if not spreading
    var top{{ h }} = -1e30;
    var sum{{ h }} = 0.0;
$$ endif
$$ endfor
$$ if spreading
    let mine = col {{ "* %du" % own if own > 1 else "/ %du" % alike }};
    let base = index % {{ subgroup }}u / {{ cols }}u * {{ cols }}u;
    var top = -1e30;
    var sum = 0.0;
$$ endif
    // every invocation takes as many steps: keys past the end are read as the last one and weigh nothing
    for (var j = begin; j < end; j += {{ teams * batch }}) {
$$ for b in range(batch)
        let key{{ b }} = j + i32(team) + {{ b * teams }};
        let at{{ b }} = cache + u32(min(key{{ b }}, end - 1)) % {{ R }}u * {{ units }}u;
$$ for u in range(per)
        let k{{ b }}_{{ u }} = {{ k.load_unit("at%d + %du" % (b, u * cols)) }};
$$ endfor
$$ endfor
$$ for b in range(batch)
$$ for u in range(per)
        let v{{ b }}_{{ u }} = {{ v.load_unit("at%d + %du" % (b, u * cols)) }};
$$ endfor
$$ endfor
$$ for h in range(heads)
$$ for b in range(batch)
        var s{{ h }}_{{ b }} = {{ product % ("q%d_0" % h, "k%d_0" % b) }};
$$ for u in range(1, per)
        s{{ h }}_{{ b }} += {{ product % ("q%d_%d" % (h, u), "k%d_%d" % (b, u)) }};
$$ endfor
$$ endfor
$$ endfor
$$ if spreading
$$ for h in range(heads, padded)
$$ for b in range(batch)
        var s{{ h }}_{{ b }} = 0.0;
$$ endfor
$$ endfor
{{ spread(scores, cols) }}
$$ for i in range(own)
        let seen{{ i }} = j + i32(team + (mine % {{ batch }}u{{ " + %du" % i if i }}) * {{ teams }}u) < end;
        let score{{ i }} = select(-1e30, bend(s0_{{ i }}), seen{{ i }});
$$ endfor
        let before = top;
$$ for i in range(own)
        top = max(top, score{{ i }});
$$ endfor
$$ for k in range(6) if 2 ** k < sharing
        top = max(top, subgroupShuffleXor(top, {{ 2 ** k }}u));
$$ endfor
        let fade = exp(before - top);
        sum *= fade;
$$ for i in range(own)
        let weight{{ i }} = select(0.0, exp(score{{ i }} - top), seen{{ i }});
        sum += weight{{ i }};
$$ endfor
$$ for h in range(heads)
        {
            let fading = subgroupShuffle(fade, base + {{ h * sharing }}u);
$$ for u in range(per)
            acc{{ h }}_{{ u }} *= fading;
$$ endfor
$$ for b in range(batch)
$$ set v = h * batch + b
            let w{{ b }} = subgroupShuffle(weight{{ v % own }}, base + {{ v // own * alike }}u);
$$ for u in range(per)
            acc{{ h }}_{{ u }} += w{{ b }} * v{{ b }}_{{ u }};
$$ endfor
$$ endfor
        }
$$ endfor
    }
$$ for k in range(6) if 2 ** k < sharing
    sum += subgroupShuffleXor(sum, {{ 2 ** k }}u);
$$ endfor
    let head_of = mine / {{ batch }}u;
    if (col % {{ sharing }}u == 0u{{ " && head_of < %du" % heads if heads < padded }}) {
        tops[head_of * {{ teams }}u + team] = top;
        sums[head_of * {{ teams }}u + team] = sum{{ " * %f" % (1 / alike) if alike > 1 }};
    }
$$ else
{{ across("sum", scores, cols, lanes, subgroup) }}
$$ for h in range(heads)
        {
            let before = top{{ h }};
$$ for b in range(batch)
            s{{ h }}_{{ b }} = select(-1e30, bend(s{{ h }}_{{ b }}), key{{ b }} < end);
            top{{ h }} = max(top{{ h }}, s{{ h }}_{{ b }});
$$ endfor
            let fade = exp(before - top{{ h }});
            sum{{ h }} *= fade;
$$ for u in range(per)
            acc{{ h }}_{{ u }} *= fade;
$$ endfor
$$ for b in range(batch)
            let w{{ b }} = select(0.0, exp(s{{ h }}_{{ b }} - top{{ h }}), key{{ b }} < end);
            sum{{ h }} += w{{ b }};
$$ for u in range(per)
            acc{{ h }}_{{ u }} += w{{ b }} * v{{ b }}_{{ u }};
$$ endfor
$$ endfor
        }
$$ endfor
    }
    if (col == 0u) {
$$ for h in range(heads)
        tops[{{ h * teams }}u + team] = top{{ h }};
        sums[{{ h * teams }}u + team] = sum{{ h }};
$$ endfor
    }
$$ endif
    workgroupBarrier();
    for (var i = index; i < {{ heads * teams }}u; i += {{ lanes }}u) {
        let h = i / {{ teams }}u;
        var top = {{ sinks.load("head + h") if sinks is defined else "tops[i]" }};
        for (var t = 0u; t < {{ teams }}u; t++) { top = max(top, tops[h * {{ teams }}u + t]); }
        weights[i] = exp(tops[i] - top);
        if (i % {{ teams }}u == 0u) {
            var total = {{ "exp(%s - top)" % sinks.load("head + h") if sinks is defined else "0.0" }};
            for (var t = 0u; t < {{ teams }}u; t++) { total += exp(tops[h * {{ teams }}u + t] - top) * sums[h * {{ teams }}u + t]; }
            best[h] = top;
            totals[h] = total;
        }
    }
$$ for start in range(0, heads, together)
$$ for h in range(start, start + together)
$$ for u in range(per)
    merged[team * {{ units }}u + col + {{ (h - start) * teams * units + u * cols }}u] = acc{{ h }}_{{ u }};
$$ endfor
$$ endfor
    workgroupBarrier();
    for (var j = index; j < {{ together * units }}u; j += {{ lanes }}u) {
        let h = j / {{ units }}u{{ " + %du" % start if start }};
        let i = j % {{ units }}u;
        var value = {{ zero }};
$$ for t in range(teams)
        value += weights[h * {{ teams }}u + {{ t }}u] * merged[(j / {{ units }}u * {{ teams }}u + {{ t }}u) * {{ units }}u + i];
$$ endfor
        {{ store_result("h", "i", "value / max(totals[h], 1e-30)" if divided else "value") }}
$$ if not divided
        if (i == 0u) { {{ store_header("h", "best[h]", "totals[h]") }} }
$$ endif
    }
$$ if start + together < heads
    workgroupBarrier();
$$ endif
$$ endfor
}
