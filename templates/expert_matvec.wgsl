$# y = W[expert] x for every token and choice, or the sum over a token's choices, by rows.wgsl: only chosen experts are read.
{$ from "rows.wgsl" import memory, place, ahead, products, results, threads, units, N with context $}
$$ set experts = w.shape[0]
{{ memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
{{ place() }}
{{ ahead("group.z", total) }}
$$ if summed
    for (var choice = 0u; choice < {{ choices }}u; choice++) {
    let slot = group.z * {{ choices }}u + choice;
$$ if score is defined
    let factor = {{ score.load("slot") }};
$$ endif
$$ else
    {
    let slot = group.z;
$$ endif
    let chosen = min(u32({{ expert.load("slot") }}), {{ experts - 1 }}u) * {{ N }}u;
    let x0 = {{ "slot" if x.shape | length == 3 else "slot / %du" % choices }} * {{ units }}u;
{{ products("chosen", "factor" if summed and score is defined else "") }}
    }
{{ results("group.z", total) }}
}
