$# Every element of the result is an expression over its index.
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (i < {{ count }}u) {
$$ set body = elements(at)
$$ set value = body.load(result, "i")
        {{ body.statements() }}
        {{ out.store("i", value) }};
    }
}
