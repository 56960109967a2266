$$ set summary = outs[0]
// The greatest penalised logit of a block of one row's tokens: its order as an integer, its index.
{$ include "_sampling.wgsl" $}
{$ include "_sampling_keys.wgsl" $}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    let slot = param(row, SLOT);
    if (slot < 0) { return; }
    var key = LOWEST;
    var index = 0xffffffffu;
    for (var i = group.x * BLOCK + lane; i < min((group.x + 1u) * BLOCK, VOCAB); i += LANES) {
        let found = ordered(scaled(row, u32(slot), i));
        if (found > key) {
            key = found;
            index = i;
        }
    }
    let top = reduce_best(lane, key, index);
    if (lane == 0u) {
        let at = (row * BLOCKS + group.x) * 2u;
        {{ summary.store("at", "bitcast<u32>(top.key)") }};
        {{ summary.store("at + 1u", "top.index") }};
    }
}
