$$ set token_out = token
// The best of the blocks of one row becomes its token.
{$ include "_sampling.wgsl" $}
{$ include "_sampling_feed.wgsl" $}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    let slot = param(row, SLOT);
    if (slot < 0) {
        if (lane == 0u) { {{ token_out.store("row", "-1") }}; }
        return;
    }
    var key = LOWEST;
    var index = 0xffffffffu;
    for (var block = lane; block < BLOCKS; block += LANES) {
        let at = (row * BLOCKS + block) * 2u;
        let found = bitcast<i32>({{ summary.load("at") }});
        if (found > key) {
            key = found;
            index = {{ summary.load("at + 1u") }};
        }
    }
    let top = reduce_best(lane, key, index);
    if (lane == 0u) { feed(row, u32(slot), min(top.index, VOCAB - 1u)); }
}
