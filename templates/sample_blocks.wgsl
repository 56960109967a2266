$$ set keys = outs[0]
$$ set summary = outs[1]
// The keys of a block of one row's tokens; their best; how many tokens and how much mass there are in each octave from the best's down.
{$ include "_sampling.wgsl" $}
{$ include "_sampling_keys.wgsl" $}
{$ include "_sampling_weight.wgsl" $}

var<workgroup> counts: array<atomic<u32>, OCTAVES>;
var<workgroup> masses: array<atomic<u32>, OCTAVES>;

fn key_of(row: u32, slot: u32, index: u32) -> i32 {
    let x = scaled(row, slot, index);
    if (param(row, DRAWS) == 0) { return ordered(x); }
    return i32(floor(clamp(x, -1073741824.0, 1073741824.0)));
}

@compute @workgroup_size({{ lanes }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.y;
    let slot = param(row, SLOT);
    if (slot < 0) { return; }
    for (var octave = lane; octave < OCTAVES; octave += LANES) {
        atomicStore(&counts[octave], 0u);
        atomicStore(&masses[octave], 0u);
    }
    let first = group.x * BLOCK + lane;
    let end = min((group.x + 1u) * BLOCK, VOCAB);
    var key = LOWEST;
    var index = 0xffffffffu;
    for (var i = first; i < end; i += LANES) {
        let found = key_of(row, u32(slot), i);
        {{ keys.store("row * VOCAB + i", "found") }};
        if (found > key) {
            key = found;
            index = i;
        }
    }
    let top = reduce_best(lane, key, index);
    for (var i = first; i < end; i += LANES) {
        let found = {{ keys.load("row * VOCAB + i") }};
        let octave = u32((top.key >> 16u) - (found >> 16u));
        if (octave < OCTAVES) {
            atomicAdd(&counts[octave], 1u);
            atomicAdd(&masses[octave], weight(found));
        }
    }
    workgroupBarrier();
    let record = (row * BLOCKS + group.x) * RECORD;
    for (var octave = lane; octave < OCTAVES; octave += LANES) {
        {{ summary.store("record + octave", "atomicLoad(&counts[octave])") }};
        {{ summary.store("record + OCTAVES + octave", "atomicLoad(&masses[octave])") }};
    }
    if (lane == 0u) {
        {{ summary.store("record + KEY_AT", "bitcast<u32>(top.key)") }};
        {{ summary.store("record + INDEX_AT", "top.index") }};
    }
}
