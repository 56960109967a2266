$# No two lines share a place, so an invocation a line needs no atomics.
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let line = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (line < {{ lines }}u) {
        for (var k = 0u; k < {{ steps }}u; k += 1u) {
            let i = line * {{ steps }}u + k;
$$ set body = elements(at)
$$ set place, change = body.load(places, "i"), body.load(changes, "i")
            {{ body.statements() }}
            if ({{ place }} >= 0 && {{ place }} < {{ out.value.size }}) {
                {{ out.store("u32(%s)" % place, changed(out.load("u32(%s)" % place), change)) }};
            }
        }
    }
}
