$# Attention of many rows of one sequence, a tile of them at a time; other rows, each by itself, go the way of attention_split.
$# A tile holds down * rows pairs (row, query head) that share their keys. `wide` invocations share `rows` pairs: each takes `keys`
$# of a block's keys for all its pairs' scores, and the pairs' result columns in the same way. See https://arxiv.org/abs/2307.08691.
$$ if rows is not defined
{$ include "attention_split.wgsl" $}
$$ else
{$ from "_attention.wgsl" import rules, shared_lanes, across with context $}
$$ set T, H, KV, R, units = q.shape[0], q.shape[1], k.shape[1], k.shape[2], q.shape[2] // 4
$$ set G, lanes, pairs, block, per = H // KV, wide * down, down * rows, wide * keys, units // wide
$$ set pitch, row_pitch = units + 1, block + 1
$$ set tops, sums = [], []
$$ for m in range(rows)
$$ do tops.append("best%d" % m)
$$ do sums.append("sum%d" % m)
$$ endfor
var<workgroup> queries: array<vec4<f32>, {{ pairs * units }}>;
$# first the keys of a block, then its values; the odd pitch spreads rows over the banks
var<workgroup> tile: array<vec4<f32>, {{ block * pitch }}>;
var<workgroup> weights: array<f32, {{ pairs * row_pitch }}>;
{{ shared_lanes(rows, wide, lanes, subgroup) }}
{{ rules(mask, window, cap) }}
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let col = index % {{ wide }}u;
    let line = index / {{ wide }}u * {{ rows }}u;
    let start = group.x * {{ pairs }}u;
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
        queries[i] = {{ q.load4("(pair / %du * %du + group.y * %du + pair %% %du) * %du + i %% %du" % (G, H, G, G, units, units)) }} * {{ scale }};
    }
$$ for m in range(rows)
    let pair{{ m }} = start + line + {{ m }}u;
    let p{{ m }} = {{ position.load("min(pair%d / %du, %du)" % (m, G, T - 1)) }};
    let first{{ m }} = first_key(p{{ m }});
    var top{{ m }} = -1e30;
    var sum{{ m }} = 0.0;
$$ for c in range(per)
    var acc{{ m }}_{{ c }} = vec4<f32>();
$$ endfor
$$ endfor
    for (var j = begin; j < end; j += {{ block }}) {
        workgroupBarrier();
        for (var i = index; i < {{ block * units }}u; i += {{ lanes }}u) {
            let key = min(j + i32(i / {{ units }}u), end - 1);
            tile[i / {{ units }}u * {{ pitch }}u + i % {{ units }}u] = {{ k.load4("cache + u32(key) %% %du * %du + i %% %du" % (R, units, units)) }};
        }
        workgroupBarrier();
$$ for m in range(rows)
$$ for n in range(keys)
        var s{{ m }}_{{ n }} = 0.0;
$$ endfor
$$ endfor
        for (var d = 0u; d < {{ units }}u; d++) {
$$ for n in range(keys)
            let k{{ n }} = tile[(col + {{ n * wide }}u) * {{ pitch }}u + d];
$$ endfor
$$ for m in range(rows)
            let q{{ m }} = queries[(line + {{ m }}u) * {{ units }}u + d];
$$ for n in range(keys)
            s{{ m }}_{{ n }} += dot(q{{ m }}, k{{ n }});
$$ endfor
$$ endfor
        }
$$ for m in range(rows)
        var best{{ m }} = top{{ m }};
$$ for n in range(keys)
$$ set key = "j + i32(col) + %d" % (n * wide)
        s{{ m }}_{{ n }} = select(-1e30, bend(s{{ m }}_{{ n }}), {{ key }} >= first{{ m }} && {{ key }} <= p{{ m }});
        best{{ m }} = max(best{{ m }}, s{{ m }}_{{ n }});
$$ endfor
$$ endfor
{{ across("max", tops, wide, lanes, subgroup) }}
$$ if subgroup
        workgroupBarrier();     // all have read the keys
$$ endif
$$ for m in range(rows)
        {
            let fade = exp(top{{ m }} - best{{ m }});
            top{{ m }} = best{{ m }};
            sum{{ m }} *= fade;
$$ for c in range(per)
            acc{{ m }}_{{ c }} *= fade;
$$ endfor
$$ for n in range(keys)
            let w{{ n }} = select(0.0, exp(s{{ m }}_{{ n }} - top{{ m }}), s{{ m }}_{{ n }} > -1e29);
            sum{{ m }} += w{{ n }};
            weights[(line + {{ m }}u) * {{ row_pitch }}u + col + {{ n * wide }}u] = w{{ n }};
$$ endfor
        }
$$ endfor
        for (var i = index; i < {{ block * units }}u; i += {{ lanes }}u) {
            let key = min(j + i32(i / {{ units }}u), end - 1);
            tile[i / {{ units }}u * {{ pitch }}u + i % {{ units }}u] = {{ v.load4("cache + u32(key) %% %du * %du + i %% %du" % (R, units, units)) }};
        }
        workgroupBarrier();
        for (var n = 0u; n < {{ block }}u; n++) {
$$ for c in range(per)
            let v{{ c }} = tile[n * {{ pitch }}u + col + {{ c * wide }}u];
$$ endfor
$$ for m in range(rows)
            let w{{ m }} = weights[(line + {{ m }}u) * {{ row_pitch }}u + n];
$$ for c in range(per)
            acc{{ m }}_{{ c }} += w{{ m }} * v{{ c }};
$$ endfor
$$ endfor
        }
    }
{{ across("sum", sums, wide, lanes, subgroup) }}
$$ for m in range(rows)
    if (pair{{ m }} < {{ T * G }}u) {
        let head = group.y * {{ G }}u + pair{{ m }} % {{ G }}u;
$$ if sinks is defined
        let sink = {{ sinks.load("head") }};
        let top = max(top{{ m }}, sink);
        let share = exp(top{{ m }} - top) / (sum{{ m }} * exp(top{{ m }} - top) + exp(sink - top));
$$ else
        let share = 1.0 / max(sum{{ m }}, 1e-30);
$$ endif
$$ for c in range(per)
        {{ out.store4("(pair%d / %du * %du + head) * %du + col + %du" % (m, G, H, units, c * wide), "acc%d_%d * share" % (m, c)) }};
$$ endfor
    }
$$ endfor
}
$$ endif
