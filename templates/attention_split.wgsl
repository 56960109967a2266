$# For a row and a part of the keys that it sees: the sum of exp(score - top) * value, then top, then the sum of exp(score - top).
$# A workgroup takes `heads` query heads that share their keys. `cols` invocations share a key, so `teams` keys are at work at a time,
$# `batch` times. Every team keeps a softmax of its own, without barriers; the teams are merged at the end.
$# With `divided` there is one part, and the result is the attention itself.
{$ from "_attention.wgsl" import rules, shared_lanes, across with context $}
$$ set U, D = q.unit, q.shape[2]
$$ set KV, R = k.shape[1], k.shape[2]
$$ set units, G, teams = D // U, q.shape[1] // KV, lanes // cols
$$ set per = units // cols
$$ set V, zero = ("vec4<f32>", "vec4<f32>()") if U == 4 else ("f32", "0.0")
$$ set product = "dot(%s, %s)" if U == 4 else "%s * %s"
$$ set scores = []
$$ for h in range(heads)
$$ for b in range(batch)
$$ do scores.append("s%d_%d" % (h, b))
$$ endfor
$$ endfor
var<workgroup> merged: array<{{ V }}, {{ teams * units }}>;
var<workgroup> tops: array<f32, {{ teams * heads }}>;
var<workgroup> sums: array<f32, {{ teams * heads }}>;
var<workgroup> weights: array<f32, {{ teams * heads }}>;
var<workgroup> best: array<f32, {{ heads }}>;
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
    let each = (max(p + 1 - first, 0) + {{ splits - 1 }}) / {{ splits }};
    let begin = first + i32(group.x) * each;
    let end = min(begin + each, p + 1);
    let cache = (u32({{ slot.load("row") }}) * {{ KV }}u + head / {{ G }}u) * {{ R * units }}u + col;
$$ for h in range(heads)
$$ for u in range(per)
    let q{{ h }}_{{ u }} = {{ q.load_unit("(row * %du + head + %du) * %du + col + %du" % (q.shape[1], h, units, u * cols)) }} * {{ scale }};
    var acc{{ h }}_{{ u }} = {{ zero }};
$$ endfor
    var top{{ h }} = -1e30;
    var sum{{ h }} = 0.0;
$$ endfor
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
    workgroupBarrier();
    for (var i = index; i < {{ heads * teams }}u; i += {{ lanes }}u) {
        let h = i / {{ teams }}u;
        var top = {{ sinks.load("head + h") if sinks is defined else "tops[i]" }};
        for (var t = 0u; t < {{ teams }}u; t++) { top = max(top, tops[h * {{ teams }}u + t]); }
        weights[i] = exp(tops[i] - top);
        if (i % {{ teams }}u == 0u) { best[h] = top; }
    }
$$ for h in range(heads)
$$ set out_row = "(row * %du + head + %du)" % (q.shape[1], h)
$$ set part = "(%s * %du + group.x) * %du" % (out_row, splits, D + 2)
    {
$$ for u in range(per)
        merged[team * {{ units }}u + col + {{ u * cols }}u] = acc{{ h }}_{{ u }};
$$ endfor
        workgroupBarrier();
        for (var i = index; i < {{ units }}u; i += {{ lanes }}u) {
            var value = {{ zero }};
            var total = {{ "exp(%s - best[%d])" % (sinks.load("head + %du" % h), h) if sinks is defined else "0.0" }};
            for (var t = 0u; t < {{ teams }}u; t++) {
                value += weights[{{ h * teams }}u + t] * merged[t * {{ units }}u + i];
                total += weights[{{ h * teams }}u + t] * sums[{{ h * teams }}u + t];
            }
$$ if divided
            {{ (out.store4 if U == 4 else out.store)("%s * %du + i" % (out_row, units), "value / max(total, 1e-30)") }};
$$ else
$$ for e in range(U)
            {{ out.store("%s + i * %du + %du" % (part, U, e), "value[%d]" % e if U == 4 else "value") }};
$$ endfor
            if (i == 0u) {
                {{ out.store("%s + %du" % (part, D), "best[%d]" % h) }};
                {{ out.store("%s + %du" % (part, D + 1), "total") }};
            }
$$ endif
        }
        workgroupBarrier();
    }
$$ endfor
}
