$# Choose the `top_k` largest logits of every token: each logit's place is the number of logits before it, ties by the lower index.
{$ from "reduction.wgsl" import scratch, reduce with context $}
$$ set E, top = logits.shape[-1], attr.top_k
$$ set normalize = attr.normalize | default(false)
$# over the chosen ones the sum is short; only softmax over all of them needs every lane
$$ set all = attr.score == "softmax" and not normalize
var<workgroup> all_logits: array<f32, {{ E }}>;
var<workgroup> best: array<f32, {{ top }}>;
{{ scratch(1, lanes, lanes, subgroup) if all else "" }}
fn weight(v: f32) -> f32 { return {{ "1.0 / (1.0 + exp(-v))" if attr.score == "sigmoid" else "exp(v - best[0])" }}; }

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let token = min(group.x + group.y * {{ across }}u, {{ tokens - 1 }}u);
    for (var e = index; e < {{ E }}u; e += {{ lanes }}u) { all_logits[e] = {{ logits.load("token * %du + e" % E) }}; }
    workgroupBarrier();
    for (var e = index; e < {{ E }}u; e += {{ lanes }}u) {
        let mine = all_logits[e];
        var place = 0u;
        for (var other = 0u; other < {{ E }}u; other++) {
            let v = all_logits[other];
            place += u32(v > mine || (v == mine && other < e));
        }
        if (place < {{ top }}u) {
            best[place] = mine;
            {{ outs[0].store("token * %du + place" % top, "i32(e)") }};
        }
    }
    workgroupBarrier();
$$ if all
    var total = 0.0;
    for (var e = index; e < {{ E }}u; e += {{ lanes }}u) { total += weight(all_logits[e]); }
{{ reduce("sum", ["total"], lanes, lanes, subgroup) }}
$$ endif
    for (var i = index; i < {{ top }}u; i += {{ lanes }}u) {
$$ if attr.score == "sigmoid" and not normalize
        let total = 1.0;
$$ elif not all
        var total = 0.0;
        for (var other = 0u; other < {{ top }}u; other++) { total += weight(best[other]); }
$$ endif
        {{ outs[1].store("token * %du + i" % top, "weight(best[i]) / total") }};
    }
}
