$# Round rows to 8-bit integers in blocks of 32, an invocation a quad.
{$ from "rounding.wgsl" import rounding_memory, round_quad with context $}
{{ rounding_memory(lanes, subgroup) }}
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let at = group.x * {{ lanes }}u + index;
    let place = min(at, {{ quads - 1 }}u);
    let spot = group.y * {{ quads }}u + place;
    let plain = {{ x.load4("spot") }};
$$ if weight is defined
    let weighing = {{ weight.load4("place") }};
$$ endif
{{ round_quad(outs[0], outs[1], "plain", "weighing" if weight is defined else "", "spot", "at < %du" % quads, subgroup) }}
}
