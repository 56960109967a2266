$# As expert_matvec, with x in 8-bit integers, by rows_q8.wgsl.
{$ from "rows.wgsl" import memory, place, ahead, results, results_memory, threads, K, N with context $}
{$ from "rows_q8.wgsl" import products with context $}
{{ memory() }}
{{ results_memory() }}
@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
{{ place() }}
{{ ahead("group.z", total) }}
$$ if summed
    for (var choice = 0u; choice < {{ choices }}u; choice++) {
    let slot = group.z * {{ choices }}u + choice;
$$ if factored
    let factor = {{ score.load("slot") }};
$$ endif
$$ else
    {
    let slot = group.z;
$$ endif
    let chosen = min(u32({{ expert.load("slot") }}), {{ w.shape[0] - 1 }}u) * {{ N }}u;
    let x0 = {{ "slot" if x.shape | length == 3 else "slot / %du" % choices }} * {{ K // 32 }}u;
{{ products("chosen") }}
    }
{{ results("group.z", total) }}
}
