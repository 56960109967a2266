$# y = the sum over a token's choices, always in the order of the choices: an invocation an element.
$$ set rows, choices, columns = x.shape
@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = (group.x + group.y * {{ across }}u) * {{ lanes }}u + index;
    if (i < {{ rows * columns }}u) {
        let row = i / {{ columns }}u;
        let col = i % {{ columns }}u;
        var sum = 0.0;
        for (var slot = row * {{ choices }}u; slot < (row + 1u) * {{ choices }}u; slot++) {
            sum += {{ x.load("slot * %du + col" % columns) }}{{ " * " + score.load("slot") if score is defined }};
        }
        {{ finish("sum", "row", "col") }}
    }
}
