$# An element goes to the place that is the number of those before it: larger ones (or smaller ones), and equal ones in front of it.
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (i < {{ size }}u) {
        let line = i / {{ length * inner }}u;
        let mine = i / {{ inner }}u % {{ length }}u;
        let first = line * {{ length * inner }}u + i % {{ inner }}u;
        let value = {{ x.load("i") }};
        var before = 0u;
        for (var k = 0u; k < {{ length }}u; k += 1u) {
            let other = {{ x.load("first + k * %du" % inner) }};
            before += u32(other {{ ">" if attr.largest else "<" }} value || (other == value && k < mine));
        }
        if (before < {{ attr.count }}u) {
            let place = line * {{ attr.count * inner }}u + before * {{ inner }}u + i % {{ inner }}u;
            {{ outs[0].store("place", "value") }};
            {{ outs[1].store("place", "i32(mine)") }};
        }
    }
}
