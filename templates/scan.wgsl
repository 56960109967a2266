$# Element k of a line is at first + k * inner.
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let line = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (line < {{ count }}u) {
        let first = line / {{ inner }}u * {{ length * inner }}u + line % {{ inner }}u;
        var total = {{ scalar }}({{ 1 if attr.how == "product" else 0 }});
        for (var k = 0u; k < {{ length }}u; k += 1u) {
            let i = first + {{ "(%du - k)" % (length - 1) if attr.reverse else "k" }} * {{ inner }}u;
$$ set body = elements(at)
$$ set value = body.load(source, "i")
            {{ body.statements() }}
            let next = total {{ "*" if attr.how == "product" else "+" }} {{ value }};
            {{ out.store("i", "total" if attr.exclusive else "next") }};
            total = next;
        }
    }
}
